"""The `fewstep` commands: train, posterior, remake."""

import argparse
import sys
import time
from collections.abc import Sequence

from fewstep import extras

INTERRUPTED = 130
COMMANDS = {
    "train": "from pictures to a student that can be served",
    "posterior": "from a prior and a reward to a sampler of their posterior",
    "remake": "make an image of the server again, from its PNG alone",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 complete, 2 refused with a sentence on stderr, 130 interrupted."""
    began = time.monotonic()
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = _parser().parse_args(given[:1]).command
    try:
        with extras.named():
            return _run(command, given[1:], began)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED


def _run(command: str, arguments: list[str], began: float) -> int:
    if command == "train":
        from fewstep.commands import train

        return train.main(arguments, began)
    if command == "posterior":
        from trainer import posterior

        return posterior.main(arguments)
    from fewstep.commands import remake

    return remake.main(arguments)


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<12}{says}" for name, says in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m fewstep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\n\n`python -m fewstep COMMAND --help` lists the options of one.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
