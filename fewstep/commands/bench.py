"""`fewstep bench`: the benchmarks that answer a question about a model of one's own."""

import runpy
import sys
from collections.abc import Sequence

from fewstep import extras
from fewstep.subcommands import subcommand

QUESTIONS = {
    "latency": "a student's time and quality for 1 to 8 calls, beside its teacher's samplers; the default",
    "quality": "distances to real images, of samples from many seeds",
    "panel": "metrics that took no part in training",
}
DEFAULT = "latency"


def main(arguments: Sequence[str]) -> int:
    """Runs benchmarks/QUESTION.py with its options; without a question, the first one. Returns the exit status."""
    given = list(arguments)
    if given[:1] not in (["-h"], ["--help"]) and (not given or given[0].startswith("-")):
        given = [DEFAULT, *given]
    question, options = subcommand(
        given, "fewstep bench", QUESTIONS, "Answers a question about a model; where none is named, the first."
    )
    sys.argv = [f"fewstep bench {question}", *options]
    with extras.named(script=True):
        runpy.run_module(f"benchmarks.{question}", run_name="__main__")
    return 0
