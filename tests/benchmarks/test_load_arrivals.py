"""A schedule offers exactly the load it says, as a Poisson process does, and the same one every time."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import kstest

from benchmarks.load.arrivals import STEP_MIX, mean_steps, poisson


def test_a_schedule_is_a_function_of_its_seed():
    assert poisson(50, 4, seed=3) == poisson(50, 4, seed=3)
    assert [a.due_s for a in poisson(50, 4, seed=3)] != [a.due_s for a in poisson(50, 4, seed=4)]


def test_rate_and_mix_are_exactly_what_was_asked_for():
    schedule = poisson(40, 25)
    assert len(schedule) == 1000
    assert Counter(a.steps for a in schedule) == dict.fromkeys(STEP_MIX, 250)
    assert sum(a.steps for a in schedule) / len(schedule) == mean_steps() == 3.75


def test_times_are_in_order_and_gaps_exponential():
    due = np.array([a.due_s for a in poisson(200, 100, seed=1)])
    gaps = np.diff(due)
    assert (gaps >= 0).all() and due[0] >= 0 and due[-1] < 100
    assert kstest(gaps, "expon", args=(0, 1 / 200)).pvalue > 0.01
    assert np.std(gaps) == pytest.approx(1 / 200, rel=0.05)  # a clock's would be 0


def test_counts_in_short_windows_vary_like_poissons():
    due = [a.due_s for a in poisson(200, 100, seed=2)]
    counts = np.histogram(due, bins=np.arange(0, 100.5, 0.5))[0]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.3)


def test_step_counts_do_not_follow_the_time():
    steps = np.array([a.steps for a in poisson(200, 100, seed=5)])
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(steps, np.arange(len(steps)))[0, 1]) < 0.03


def test_requests_share_no_images():
    seeds = [a.seed + i for a in poisson(10, 10, images=8, seed=6) for i in range(a.images)]
    assert len(seeds) == len(set(seeds)) == 800


def test_a_schedule_without_requests_is_refused():
    with pytest.raises(ValueError, match="make no request"):
        poisson(0.01, 1)
