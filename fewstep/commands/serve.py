"""`fewstep serve`: the program of server/__main__.py, with its options."""

import runpy
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Does not return: the server ends the process with its own status."""
    sys.argv = ["fewstep serve", *arguments]
    # As a program, and not as a function: it sets its signals before it imports the rest.
    runpy.run_module("server", run_name="__main__")
    raise AssertionError("a server that ends, ends the process")
