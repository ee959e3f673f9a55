"""Open-loop schedules: when each request is due and what it asks for. Pure: one seed, one schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEP_MIX = (1, 2, 4, 8)


@dataclass(frozen=True)
class Arrival:
    """One request of a schedule."""

    due_s: float  # since the start of the run; latency counts from here, whenever the request really leaves
    steps: int
    images: int
    seed: int
    kind: int = 0  # of a mix (benchmarks/serving/mix.py), by its place there


def poisson(
    rate: float, duration_s: float, *, steps: Sequence[int] = STEP_MIX, images: int = 1, seed: int = 0
) -> tuple[Arrival, ...]:
    """Poisson arrivals at `rate` requests/s over `duration_s`, step counts in equal shares and random order.

    The process is conditioned on its number of arrivals, round(rate * duration_s): sorted uniform times. Two runs at
    one rate then offer exactly the same work, and a load of 0.8 is 0.8 and not 0.77 or 0.83. Raises ValueError when
    that leaves no arrival.
    """
    count = round(rate * duration_s)
    if count < 1:
        raise ValueError(f"{rate:g} requests/s for {duration_s:g} s make no request; run longer or faster")
    times, order = np.random.default_rng(seed).spawn(2)
    due = np.sort(times.uniform(0, duration_s, count))
    mixed = order.permutation(np.resize(steps, count))
    return tuple(
        Arrival(float(at), int(taken), images, seed * 1_000_003 + index * images)
        for index, (at, taken) in enumerate(zip(due, mixed, strict=True))
    )


def mean_steps(steps: Sequence[int] = STEP_MIX) -> float:
    """E[S]: network calls per image of the mix."""
    return sum(steps) / len(steps)
