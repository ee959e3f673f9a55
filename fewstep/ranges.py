"""Which numbers a setting takes, said in a sentence: for command lines and for the dataclasses behind them."""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

N = TypeVar("N", int, float)


class RangeError(ValueError):
    """A number out of its range; the message names the setting, what was given and what is allowed."""


@dataclass(frozen=True)
class Range:
    low: float
    high: float = math.inf
    whole: bool = False  # only whole numbers
    above: bool = False  # `low` itself is not allowed

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and (self.whole or not math.isfinite(value)):  # of an integer it may overflow
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low, high = (f"{int(bound):,}" if bound == int(bound) else f"{bound:g}" for bound in (self.low, self._top))
        if self.above:
            return f"{kind} above {low}" + (f" and at most {high}" if self.high < math.inf else "")
        return f"{kind} from {low} " + (f"to {high}" if self.high < math.inf else "up")

    @property
    def _top(self) -> float:
        return self.high if self.high < math.inf else 0


POSITIVE = Range(0, above=True)
SHARE = Range(0, 1)
COUNT = Range(1, 10**12, whole=True)
SEED = Range(0, 2**63 - 1, whole=True)


def check_ranges(config: object, **ranges: Range) -> None:
    """Raise RangeError for a field of `config` out of its range: of its annotation (`ranges_of`), or named here.

    None is not checked; of a tuple, every entry is.
    """
    for name, allowed in (ranges_of(type(config)) | ranges).items():
        check_range(flag_of(type(config), name), getattr(config, name), allowed)


def check_given(config: type, given: Mapping[str, object]) -> None:
    """Raise RangeError for a value out of the range that the field of its name has in a dataclass."""
    ranges = ranges_of(config)
    for name in given.keys() & ranges.keys():
        check_range(flag_of(config, name), given[name], ranges[name])


def ranges_of(config: type) -> dict[str, Range]:
    """The ranges of a dataclass's fields that are annotated with one, such as `Annotated[float, SHARE]`."""
    notes = {name: _notes(config, name) for name in getattr(config, "__dataclass_fields__", ())}
    return {name: note for name, found in notes.items() for note in found if isinstance(note, Range)}


def flag_of(config: type, name: str) -> str:
    """The flag of a field: its own name, unless its annotation has another (`tyro.conf.arg(name=...)`)."""
    named = (note.name for note in _notes(config, name) if getattr(note, "name", None))
    return f"--{next(named, name).replace('_', '-')}"


def _notes(config: type, name: str) -> tuple[Any, ...]:
    return getattr(config.__dataclass_fields__[name].type, "__metadata__", ())


def check_range(name: str, value: object, allowed: Range) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and number not in allowed:
            said = f"{number:g}" if isinstance(number, float) else number
            raise RangeError(f"{name} must be {allowed}, not {said}")


def whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    """argparse's type of a whole number in a range."""
    return _typed(Range(low, high, whole=True), int)


def number(allowed: Range) -> Callable[[str], float]:
    """argparse's type of a number in a range, which is none of whole numbers: `whole` is for those."""
    assert not allowed.whole, "a float is in no range of whole numbers"
    return _typed(allowed, float)


def _typed(allowed: Range, kind: Callable[[str], N]) -> Callable[[str], N]:
    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}") from None
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return parse
