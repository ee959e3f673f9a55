"""One command per question; `python benchmarks/NAME.py --help` says which."""
