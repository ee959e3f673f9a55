"""`fewstep bench`: the benchmarks that answer a question about a model of one's own."""

import argparse
import runpy
import sys
from collections.abc import Sequence

QUESTIONS = {
    "latency": "a student's time and quality for 1 to 8 calls, beside its teacher's samplers; the default",
    "quality": "distances to real images, of samples from many seeds",
    "panel": "metrics that took no part in training",
}
DEFAULT = "latency"


def main(arguments: Sequence[str]) -> int:
    """Runs benchmarks/QUESTION.py with its options; without a question, the first one. Returns the exit status."""
    given = list(arguments)
    if given and given[0] in QUESTIONS:
        question, options = given[0], given[1:]
    elif given and not given[0].startswith("-"):
        _parser().parse_args(given[:1])  # refuses it
        raise AssertionError("the parser knows the questions")
    else:
        question, options = DEFAULT, given
    if options in (["-h"], ["--help"]) and not (given and given[0] in QUESTIONS):
        _parser().print_help()
        return 0
    sys.argv = [f"fewstep bench {question}", *options]
    runpy.run_module(f"benchmarks.{question}", run_name="__main__")
    return 0


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<12}{says}" for name, says in QUESTIONS.items())
    parser = argparse.ArgumentParser(
        prog="fewstep bench",
        usage="fewstep bench [QUESTION] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"questions:\n{listed}\n\n`fewstep bench QUESTION --help` lists the options of one.",
    )
    parser.add_argument("question", choices=QUESTIONS, metavar="QUESTION")
    return parser
