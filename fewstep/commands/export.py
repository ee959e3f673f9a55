"""`fewstep export`: the program of export/__main__.py, with its options."""

import runpy
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Does not return: the export ends the process with its own status."""
    sys.argv = ["fewstep export", *arguments]
    # As a program, and not as a function: it loads its libraries before it sets its signals.
    runpy.run_module("export", run_name="__main__")
    raise AssertionError("an export that ends, ends the process")
