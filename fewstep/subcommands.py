"""The first word of a command line: which command it names. Without tyro, which would slow the list of commands."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

REFUSED = 2


def refuse(sentence: str) -> NoReturn:
    """End the process with status 2 and one line on stderr."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(REFUSED)


def subcommand(arguments: Sequence[str], prog: str, commands: Mapping[str, str], opening: str) -> tuple[str, list[str]]:
    """The command that is named first, and the arguments after it.

    commands: what each does, in the order in which they are listed. opening: a sentence, the first of the help.
    --help ends the process with status 0, a name that is not listed with 2.
    """
    name, *rest = arguments or [""]
    if name in commands:
        return name, rest
    if name in ("-h", "--help"):
        width = max(map(len, commands))
        listed = "\n".join(f"  {known:<{width}}  {says}" for known, says in commands.items())
        print(f"usage: {prog} COMMAND ...\n\n{opening}\n\n{listed}\n\n`{prog} COMMAND --help` lists the flags of one.")
        raise SystemExit(0)
    said = f"there is no command {name!r}" if name else "no command is named"
    refuse(f"{said}; {_nearest(name, commands)} ({prog} --help)")


def as_sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."


def _nearest(name: str, commands: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, commands, n=1)
    return f"did you mean {near[0]}?" if near else f"choose {', '.join(commands)}"
