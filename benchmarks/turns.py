"""Timed turns of many things within a given time: all get equal time, so that quick ones have more turns."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

R = TypeVar("R")


def take_turns(
    calls: Mapping[str, Callable[[], R]],
    budget_s: float,
    most: int,
    tick: Callable[[float], object] = lambda seconds: None,
) -> dict[str, list[R]]:
    """What each call returned, turn by turn, after a first one that is not kept.

    Whoever has had the least time so far is next, so that turns are spread over the whole time; of equals, one in a
    random order. Nothing has more than `most` turns. The first calls are part of the time, and the turns end with it: a
    machine that slows down gives fewer turns. What has had no turn by then keeps its first call.
    tick: seconds that have passed since it was last called.
    """
    ends = time.perf_counter() + budget_s
    firsts: dict[str, R] = {}
    results: dict[str, list[R]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    place = dict(zip(calls, np.random.default_rng(0).permutation(len(calls)).tolist(), strict=True))

    def timed(name: str) -> tuple[R, float]:
        began = time.perf_counter()
        result = calls[name]()
        taken = time.perf_counter() - began
        tick(taken)
        return result, taken

    for name in calls:
        firsts[name], _ = timed(name)
    while time.perf_counter() < ends and (due := [name for name in calls if len(results[name]) < most]):
        name = min(due, key=lambda name: (spent[name], place[name]))
        result, taken = timed(name)
        results[name].append(result)
        spent[name] += taken
    return {name: runs or [firsts[name]] for name, runs in results.items()}
