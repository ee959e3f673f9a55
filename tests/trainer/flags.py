"""The flags of a command that take a number, from the dataclass behind it."""

from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass
from typing import Any, cast, get_args, get_type_hints

from tyro.constructors import PrimitiveConstructorSpec

from fewstep.command_line import FlagsOf
from fewstep.ranges import flag_of, ranges_of
from trainer.settings import PosteriorConfig


def settings(command: type) -> Iterator[tuple[type, str]]:
    """(dataclass, field) of everything that a command line sets, hidden fields too."""
    for name, kind in get_type_hints(command, include_extras=True).items():
        notes = getattr(kind, "__metadata__", ())
        subset = next((note for note in notes if isinstance(note, FlagsOf)), None)
        inner: Any = get_args(kind)[0] if notes else kind
        if subset:
            yield from ((subset.config, each) for each in subset.names)
        elif is_dataclass(inner) and inner is not PosteriorConfig:  # of which only `FlagsOf` has flags
            yield from settings(cast(type, inner))
        else:
            yield command, name


def numeric_flags(command: type) -> Iterator[tuple[str, Any]]:
    """(flag, default) of every field that holds numbers. One that is neither in a range nor read by us fails here."""
    for config, name in settings(command):
        kind = get_type_hints(config, include_extras=True)[name]
        notes = getattr(kind, "__metadata__", ())
        bare = get_args(kind)[0] if notes else kind
        if {int, float} & {bare, *get_args(bare)}:
            default = config.__dataclass_fields__[name].default
            read = any(isinstance(note, PrimitiveConstructorSpec) for note in notes)
            assert read or name in ranges_of(config), f"{config.__name__}.{name} has no range"
            yield flag_of(config, name), None if default is MISSING else default
