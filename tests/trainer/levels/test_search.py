"""The search for levels: closed forms, bounds, and the check against fitted noise."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from trainer.levels.search import (
    SearchConfig,
    evaluations,
    golden_section,
    insertions,
    is_better,
    search,
    search_and_check,
)

CONFIG = SearchConfig()


def off(*optimum: float):
    """An objective with its minimum, zero, where the levels below the top are these."""
    return lambda levels: sum(math.log(a / b) ** 2 for a, b in zip(levels[1:], optimum, strict=True))


def test_golden_section_closes_in_on_the_minimum():
    tried = []

    def function(x: float) -> float:
        tried.append(x)
        return (x - 1.3) ** 2

    best, value = golden_section(function, 0.0, 4.0, tries=14)
    assert abs(best - 1.3) < 4 * 0.618**12 and value == (best - 1.3) ** 2
    assert len(tried) == 14 and all(0 <= x <= 4 for x in tried)


@pytest.mark.parametrize("optimum", [(3.0,), (9.0, 0.6), (30.0, 4.0, 0.3)])
def test_search_finds_planted_levels(optimum):
    starts = {1: (80.0, 1.26), 2: (80.0, 11.6, 0.8), 3: (80.0, 19.8, 3.46, 0.34)}
    found = search(off(*optimum), [starts[len(optimum)]])
    assert found.levels[0] == 80.0
    assert found.levels[1:] == pytest.approx(optimum, rel=0.1)


@pytest.mark.parametrize("optimum", [0.9, 2.7, 7.0])
def test_the_only_level_of_a_list_moves(optimum):
    lists: list[tuple[float, ...]] = []

    def objective(levels: tuple[float, ...]) -> float:
        lists.append(levels)
        return math.log(levels[0] / optimum) ** 2

    assert search(objective, [(2.5,)]).levels == (pytest.approx(optimum, rel=0.1),)
    assert len(lists) <= evaluations(1, 1, CONFIG)


def test_the_only_level_stays_where_the_schedule_has_levels():
    assert search(lambda levels: -levels[0], [(70.0,)]).levels[0] <= 80.0
    assert search(lambda levels: levels[0], [(0.03,)]).levels[0] >= CONFIG.lowest * (1 - 1e-9)


def test_search_begins_at_the_best_start():
    wide = replace(CONFIG, windows=())
    assert search(off(3.0), [(80.0, 20.0), (80.0, 4.0), (80.0, 0.1)], wide).levels == (80.0, 4.0)


def test_search_stays_within_its_bounds_and_its_budget():
    # Every level wants to be as low as it can: they come to lie just above one another, the last at the bottom.
    lists = []
    found = search(lambda levels: lists.append(levels) or sum(map(math.log, levels)), [(80.0, 2.0, 1.5, 0.05)])
    for levels in lists:
        assert levels[0] == 80.0 and all(a >= CONFIG.ratio * b * (1 - 1e-9) for a, b in pairwise(levels))
        assert levels[-1] >= CONFIG.lowest * (1 - 1e-9)
    assert found.levels[-1] < 0.03 and len(lists) <= evaluations(4, 1, CONFIG)


def test_insertions_add_one_level_to_every_gap():
    made = insertions((80.0, 0.8))
    assert made == [(80.0, 8.0, 0.8), (80.0, 0.8, pytest.approx(math.sqrt(0.8 * CONFIG.lowest)))]
    assert insertions((80.0, 0.0202)) == [(80.0, pytest.approx(math.sqrt(80 * 0.0202)), 0.0202)]  # no room below


def test_the_shorter_list_helps_where_the_cards_own_is_far_off():
    trial = search_and_check([off(3.0, 0.2)] * 3, (80.0, 60.0, 50.0), (80.0, 3.0))
    assert trial.accepted and trial.found[1:] == pytest.approx((3.0, 0.2), rel=0.15)
    elsewhere = search_and_check([off(3.0, 0.2)] * 3, (80.0, 60.0, 50.0), (40.0, 3.0))
    assert elsewhere.found == trial.found  # the list's own top stays
    alone = search_and_check([off(3.0, 0.2)] * 3, (80.0, 60.0, 50.0), None)
    assert alone.after > trial.after


def noisy(seed: int, signal):
    """An objective as a finite sample shows it: smooth, but bent by noise that other seeds do not share."""
    waves = np.random.default_rng(seed).normal(size=(4, 2))
    return lambda levels: (
        signal(levels)
        + 0.05 * sum(a * math.sin(j * sum(map(math.log, levels)) + b) for j, (a, b) in enumerate(waves, start=1))
    )


def test_what_only_fits_noise_is_rejected_and_a_real_gain_is_kept():
    flat, real = lambda levels: 1.0, lambda levels: 1.0 + off(3.0)(levels)
    trials = {
        name: [search_and_check([noisy(5 * i + j, signal) for j in range(5)], (80.0, 9.0), None) for i in range(40)]
        for name, signal in (("flat", flat), ("real", real))
    }
    assert all(trial.after <= trial.before for trial in trials["flat"])  # the search always thinks it won
    assert sum(trial.accepted for trial in trials["flat"]) <= 4
    assert all(trial.accepted for trial in trials["real"])


def test_gains_are_weighed_against_their_scatter():
    assert is_better([1.0, 1.1, 0.9, 1.0], [0.9, 1.0, 0.8, 0.91])
    assert not is_better([1.0, 1.1, 0.9, 1.0], [0.7, 1.2, 1.1, 0.9])
    assert not is_better([1.0, 1.0], [1.0, 1.0])
