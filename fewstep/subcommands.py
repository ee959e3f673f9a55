"""Command lines without tyro, which would slow the list of commands: the first word, and flags that argparse reads."""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

REFUSED = 2


def refuse(sentence: str) -> NoReturn:
    """End the process with status 2 and one line on stderr."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(REFUSED)


def refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an argument without a character: as a path it would be the current folder."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            place = argument.rstrip("=") or (before if before.startswith("--") else "an argument")
            refuse(f"{place} is empty; give a value (a variable of the shell may not be set)")


class Parser(argparse.ArgumentParser):
    """argparse's, with full names of flags only; what it refuses is one line that `refuse` says."""

    def __init__(self, **how: Any) -> None:
        super().__init__(allow_abbrev=False, **how)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # pyright: ignore[reportIncompatibleMethodOverride]
        arguments = sys.argv[1:] if args is None else args
        refuse_empty(arguments)
        return super().parse_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        lists = f"`{self.prog} --help` lists the flags"
        kind, _, names = message.partition(": ")
        if kind == "the following arguments are required":
            *first, last = names.split(", ")
            refuse(f"{', '.join(first)} and {last} are required; {lists}" if first else f"{last} is required; {lists}")
        if kind == "unrecognized arguments":
            flag = names.split()[0].partition("=")[0]
            if not flag.startswith("-"):
                refuse(f"{flag!r} belongs to no flag; {lists}")
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(flag, known, n=1)
            refuse(f"there is no flag {flag}; " + (f"did you mean {near[0]}?" if near else lists))
        if kind.startswith("argument "):
            flag = kind.removeprefix("argument ")
            refuse(f"{flag} needs a value; {lists}" if names.startswith("expected ") else f"{flag}: {names}")
        refuse(f"{message}; {lists}")


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
        text = f"usage: {prog} COMMAND ...\n\n{opening}\n\n{listed}\n\n`{prog} COMMAND --help` lists the flags of one."
        try:
            print(text, flush=True)
        except OSError as error:  # a full disk, a closed pipe
            refuse(f"stdout cannot be written: {error.strerror}")
        raise SystemExit(0)
    said = f"there is no command {name!r}" if name else "no command is named"
    refuse(f"{said}; {_nearest(name, commands)} ({prog} --help)")


def as_sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."


def _nearest(name: str, commands: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, commands, n=1)
    return f"did you mean {near[0]}?" if near else f"choose {', '.join(commands)}"
