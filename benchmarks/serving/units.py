"""Times with a unit on a command line: 5us, 50ms, 2s, 10m, 1h."""

import re

from fewstep.ranges import Range

RATES = Range(0.001, 1_000_000)  # requests a second that can be asked for
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """A time above 0, in seconds. Raises ValueError with a sentence."""
    value = seconds_or_none(text)
    if not value:
        raise ValueError(f"{text!r} is not a time above 0; write 5us, 50ms, 2s, 10m or 1h")
    return value


def seconds_from_zero(text: str) -> float:
    """A time from 0 up, in seconds; 0 needs no unit. Raises ValueError with a sentence."""
    value = 0.0 if text == "0" else seconds_or_none(text)
    if value is None:
        raise ValueError(f"{text!r} is not a time; write 0, 5us, 50ms, 2s, 10m or 1h")
    return value


def seconds_or_none(text: str) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(us|ms|s|m|h)", text)
    return float(match[1]) * UNITS[match[2]] if match else None


def shown(value_s: float) -> str:
    """A time as a person writes it, to three significant digits."""
    unit = "s" if value_s >= 1 else "ms" if value_s >= 1e-3 else "us"
    return f"{value_s / UNITS[unit]:.3g} {unit}"
