"""Search for the levels at which a student makes the best images with k calls. The objective is a function of them.

The first level is fixed unless it is the only one: the best level of a single call may differ from the first level that
all lists share. The others are moved one at a time, high to low, by golden-section search in ln sigma, first in a wide
window and then in a narrower one, as Song et al. 2023 (Section 3) choose the levels of a consistency model.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from fewstep.schedule import SIGMA_MAX

Levels = tuple[float, ...]
Objective = Callable[[Levels], float]  # lower is better
Searched = TypeVar("Searched")  # what is searched for: Levels here, a solver's schedule in benchmarks/solver_search.py


@dataclass(frozen=True)
class SearchConfig:
    lowest: float = 0.02  # no level is lower: calls there change nothing visible
    ratio: float = 1.1  # smallest ratio of neighbouring levels
    windows: tuple[float, ...] = (4.0, 2.0)  # of each sweep over all levels: by which factor a level may move
    tries: int = 7  # values of one level tried in one window


class Found(NamedTuple):
    levels: Levels
    value: float


def search(objective: Objective, starts: Iterable[Levels], config: SearchConfig = SearchConfig()) -> Found:
    """The best list found, and its objective. The search starts at the best of `starts`."""
    best = min((Found(levels, objective(levels)) for levels in starts), key=lambda found: found.value)
    for window in config.windows:
        for index in range(1, len(best.levels)) if len(best.levels) > 1 else (0,):
            best = move_level(objective, best, index, window, config)
    return best


def evaluations(steps: int, starts: int, config: SearchConfig) -> int:
    """The largest number of evaluations of the objective by `search`."""
    return starts + len(config.windows) * max(steps - 1, 1) * config.tries


def insertions(levels: Levels, config: SearchConfig = SearchConfig()) -> list[Levels]:
    """The lists with one more level: the middle (in ln sigma) of each gap, including the one below the last level."""
    room = [
        (index, math.sqrt(above * below))
        for index, (above, below) in enumerate(pairwise((*levels, config.lowest)), start=1)
        if above > config.ratio**2 * below
    ]
    return [(*levels[:index], middle, *levels[index:]) for index, middle in room]


def move_level(objective: Objective, best: Found, index: int, window: float, config: SearchConfig) -> Found:
    """`best`, or a better list in which one level has moved by a factor of at most `window`."""
    levels = best.levels
    below = config.ratio * levels[index + 1] if index + 1 < len(levels) else config.lowest
    low = max(levels[index] / window, below)
    high = min(levels[index] * window, levels[index - 1] / config.ratio if index else SIGMA_MAX)
    if low >= high:
        return best

    def at(log_sigma: float) -> Levels:
        return (*levels[:index], math.exp(log_sigma), *levels[index + 1 :])

    log_sigma, value = golden_section(lambda x: objective(at(x)), math.log(low), math.log(high), config.tries)
    return Found(at(log_sigma), value) if value < best.value else best


def golden_section(function: Callable[[float], float], low: float, high: float, tries: int) -> tuple[float, float]:
    """The best point found in [low, high], and its value, after `tries` >= 2 evaluations (Kiefer 1953).

    It converges to the minimum of a unimodal function. Each try after the second shrinks the bracket by 0.618.
    """
    share = (math.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = function(left), function(right)
    best = min((at_left, left), (at_right, right))
    for _ in range(tries - 2):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = function(left)
            best = min(best, (at_left, left))
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = function(right)
            best = min(best, (at_right, right))
    return best[1], best[0]


@dataclass(frozen=True)
class Trial(Generic[Searched]):
    """The result of a search for one step count. Distances are in the teacher's features."""

    start: Searched
    found: Searched
    accepted: bool
    before: float  # of `start`, on the seeds of the search
    after: float  # of `found`
    held_out_before: tuple[float, ...]  # the same, one for each held-out range
    held_out_after: tuple[float, ...]


def search_and_check(
    objectives: Sequence[Objective], start: Levels, shorter: Levels | None, config: SearchConfig = SearchConfig()
) -> Trial[Levels]:
    """Search on objectives[0], check on the others. `shorter`, a list with one level less, adds starting points."""
    searched = functools.cache(objectives[0])
    starts = [start]
    if shorter and (len(shorter) == 1 or shorter[1] < start[0]):
        starts += insertions((start[0], *shorter[1:]), config)
    found = search(searched, starts, config)
    before, after = (tuple(check(levels) for check in objectives[1:]) for levels in (start, found.levels))
    return Trial(start, found.levels, is_better(before, after), searched(start), found.value, before, after)


def is_better(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the mean gain exceeds two of its standard errors. The two values of a pair have the same seeds."""
    gains = np.subtract(before, after)
    return bool(gains.mean() > 2 * gains.std(ddof=1) / len(gains) ** 0.5)
