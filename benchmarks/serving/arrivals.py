"""When requests come: Poisson, bursty and diurnal arrivals, each a function of its seed.

All are Poisson processes with a rate of their own, r(t): unit-rate arrivals E_1, E_1 + E_2, ... are sent through the
inverse of the integral of r (the time change theorem), so one seed gives all of them the same random numbers.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Process = Literal["poisson", "bursty", "diurnal"]
PROCESSES: tuple[Process, ...] = ("poisson", "bursty", "diurnal")

BURST = 3.0  # the rate in a burst, over the mean rate
CALM = 0.5  # the rate between bursts, over the mean rate: a fifth of the time is burst, and 3/5 + .5 * 4/5 is 1
BURST_S, CALM_S = 2.0, 8.0  # mean lengths, exponential
SWING = 0.6  # of a day: the rate goes from .4 to 1.6 of the mean and back
GRID = 10_001  # points of a day's integral; linear between them


def times(process: Process, rate: float, duration_s: float, rng: np.random.Generator) -> Floats:
    """Ascending seconds in [0, duration_s) at which requests come, `rate` a second in the mean.

    bursty: phases of exponential length, a fifth of the time at three times the rate, else at half of it. diurnal: one
    day, a sine, pressed into the duration; its answer is right as long as a day is long beside a request.
    """
    if process == "poisson":
        return _unit_arrivals(rate * duration_s, rng) / rate
    integral = _diurnal(duration_s) if process == "diurnal" else _bursty(duration_s, rng)
    at, passed = integral
    return np.interp(_unit_arrivals(rate * passed[-1], rng), rate * passed, at)


def first(rate: float, count: int, rng: np.random.Generator) -> Floats:
    """The first `count` Poisson arrivals."""
    return np.cumsum(rng.exponential(1 / rate, count))


def _unit_arrivals(until: float, rng: np.random.Generator) -> Floats:
    """Of a Poisson process of rate 1 on [0, until)."""
    due = np.cumsum(rng.exponential(size=int(until + 6 * np.sqrt(until) + 30)))
    return due[: np.searchsorted(due, until)]


def _diurnal(duration_s: float) -> tuple[Floats, Floats]:
    """Times, and the integral of 1 - SWING cos(2 pi t / duration) up to them: it begins at night."""
    share = np.linspace(0, 1, GRID)
    return duration_s * share, duration_s * (share - SWING / (2 * np.pi) * np.sin(2 * np.pi * share))


def _bursty(duration_s: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Times at which the rate changes, and its integral up to them, scaled to the duration: a mean of 1 exactly."""
    phases = 2 * int(duration_s / (BURST_S + CALM_S) * 2 + 50)
    lengths = rng.exponential(np.resize([CALM_S, BURST_S], phases))
    at = np.concatenate([[0.0], np.cumsum(lengths)])
    passed = np.concatenate([[0.0], np.cumsum(lengths * np.resize([CALM, BURST], phases))])
    end = np.interp(duration_s, at, passed)
    inside = at < duration_s
    at, passed = np.append(at[inside], duration_s), np.append(passed[inside], end)
    return at, passed * (duration_s / passed[-1])
