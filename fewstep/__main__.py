"""The `fewstep` command: serve, cluster, generate, train, trainer, posterior, export, bench, remake."""

import sys
import time
from collections.abc import Sequence
from importlib import import_module

from fewstep import __version__, application, extras
from fewstep.subcommands import subcommand

INTERRUPTED = 130
COMMANDS = {
    "serve": "a server of one or several models",
    "cluster": "the same on a Ray cluster, of several machines",
    "generate": "images of many seeds into a folder, a sheet, or a file of a data set",
    "train": "from pictures to a student that can be served",
    "trainer": "one training command alone: a data set, a teacher, a student, levels, a classifier",
    "posterior": "from a prior and a reward to a sampler of their posterior",
    "export": "from a checkpoint to an engine, with proof that both make the same images",
    "bench": "how fast a model is here, and how good",
    "remake": "make an image of the server again, from its PNG alone",
}
RESUMED = ("train", "posterior", "generate")  # the same command goes on where it was stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 complete, 2 refused with a sentence on stderr, 130 interrupted."""
    began = time.monotonic()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--version"]:
        print(f"fewstep {__version__}")
        return 0
    command, options = subcommand(given, "fewstep", COMMANDS, "Makes small pictures of your kind, and serves them.")
    application.put_on_path()
    try:
        with extras.named():
            return _run(command, options, began)
    except KeyboardInterrupt:
        resumed = command in RESUMED and "--dry-run" not in options  # which stores nothing
        goes_on = "; the same command goes on where it stopped" if resumed else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED


def _run(command: str, arguments: list[str], began: float) -> int:
    if command == "train":
        from fewstep.commands import train

        return train.main(arguments, began)
    if command == "trainer":
        from trainer import __main__ as trainer

        return trainer.main(arguments)
    if command == "posterior":
        from trainer import posterior

        return posterior.main(arguments)
    return import_module(f"fewstep.commands.{command}").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
