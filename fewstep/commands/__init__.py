"""One file per command of `fewstep`. They stand above all rooms; `fewstep.__main__` dispatches to them."""
