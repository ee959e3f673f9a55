"""Timed turns of many things within a given time: quick ones get more turns, and all of them take turns evenly."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

R = TypeVar("R")
FEWEST = 2  # turns, whatever they cost


def shared_out(costs_s: Sequence[float], budget_s: float, most: int) -> list[int]:
    """How many turns each of some things gets, FEWEST to `most`, so that none takes more than its equal share.

    What a thing leaves of its share because it has `most` turns goes to the others.
    """
    counts = [0] * len(costs_s)
    order = sorted(range(len(costs_s)), key=lambda index: costs_s[index])
    for place, index in enumerate(order):
        share = max(budget_s, 0.0) / (len(order) - place)
        counts[index] = int(min(max(share // max(costs_s[index], 1e-9), min(FEWEST, most)), most))
        budget_s -= counts[index] * costs_s[index]
    return counts


def evenly(counts: Mapping[str, int]) -> Iterator[list[str]]:
    """Rounds: whose turn it is, each name as often as its count, spread evenly over the rounds and mixed within one."""
    order, rounds = np.random.default_rng(0), max(counts.values(), default=0)
    for number in range(rounds):
        due = [name for name, count in counts.items() if (number + 1) * count // rounds > number * count // rounds]
        yield [due[index] for index in order.permutation(len(due))]


def take_turns(
    calls: Mapping[str, Callable[[], R]],
    budget_s: float,
    most: int,
    tick: Callable[[float], object] = lambda seconds: None,
) -> dict[str, list[R]]:
    """What each call returned, turn by turn, after one that is not kept and tells its cost.

    The first calls are part of the time, and the turns end with the budget once everything has had a turn: a
    machine that slows down gives fewer turns. tick: seconds that have passed since it was last called.
    """
    began = ticked = time.perf_counter()

    def passed() -> None:
        nonlocal ticked
        before, ticked = ticked, time.perf_counter()
        tick(ticked - before)

    costs = []
    for call in calls.values():
        started = time.perf_counter()
        call()
        costs.append(time.perf_counter() - started)
        passed()
    counts = shared_out(costs, budget_s - sum(costs), most)
    results: dict[str, list[R]] = {name: [] for name in calls}
    for names in evenly(dict(zip(calls, counts, strict=True))):
        for name in names:
            if results[name] and time.perf_counter() - began > budget_s:
                continue
            results[name].append(calls[name]())
            passed()
    return results
