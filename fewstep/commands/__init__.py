"""One file per command of `fewstep`. They may import every folder; `fewstep.__main__` dispatches to them."""
