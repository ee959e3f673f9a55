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
    "serve": "latency and throughput of a running server, ours or another with OpenAI's Images API, at a rate",
    "plan": "how many devices a load needs, simulated with the server's own scheduling",
}
FOLDERS = {"serve": "serving", "plan": "serving"}  # of those that are not in benchmarks/ itself
DEFAULT = "latency"


def main(arguments: Sequence[str]) -> int:
    """Runs the script of benchmarks/ that is named as the question; without one, DEFAULT. Returns the exit status."""
    given = list(arguments)
    if given[:1] not in (["-h"], ["--help"]) and (not given or given[0].startswith("-")):
        given = [DEFAULT, *given]
    question, options = subcommand(
        given, "fewstep bench", QUESTIONS, "Answers a question about a model; where none is named, the first."
    )
    sys.argv = [f"fewstep bench {question}", *options]
    with extras.named(script=True):
        module = ".".join(filter(None, ("benchmarks", FOLDERS.get(question), question)))
        runpy.run_module(module, run_name="__main__")
    return 0
