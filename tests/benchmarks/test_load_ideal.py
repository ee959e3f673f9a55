"""The ideal server: answers that can be worked out by hand, and bounds that hold for every schedule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.load.arrivals import Arrival, poisson
from benchmarks.load.fixed_cost import Cost
from benchmarks.load.ideal import ideal_latencies, main, p99_over_goal


def arrivals(*pairs: tuple[float, int]) -> list[Arrival]:
    return [Arrival(due_s, steps, 1, seed) for seed, (due_s, steps) in enumerate(pairs)]


def test_alone_a_request_takes_its_calls():
    assert ideal_latencies(arrivals((3.0, 4)), 8, lambda images: 0.5) == pytest.approx([2.0])


def test_a_newcomer_joins_at_the_next_call_and_pays_for_the_company():
    """Calls at 0 (one image, 1 s), 1 (both, 2 s), 3 (the second alone, 1 s)."""
    found = ideal_latencies(arrivals((0.0, 2), (0.25, 2)), 8, lambda images: float(images))
    assert found == pytest.approx([3.0, 4.0 - 0.25])


def test_without_a_free_slot_one_waits_for_the_first_to_leave():
    found = ideal_latencies(arrivals((0.0, 1), (0.0, 3), (0.0, 1)), 2, lambda images: 1.0)
    assert found == pytest.approx([1.0, 3.0, 2.0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.2, 1.5))
def test_nobody_is_faster_than_alone_and_all_are_answered(seed: int, capacity: int, load: float):
    cost = Cost(20, 1.25)
    schedule = poisson(load * capacity / cost.seconds(capacity) / 3.75, 3.0, seed=seed)
    found = ideal_latencies(schedule, capacity, cost.seconds)
    alone = np.array([arrival.steps * cost.seconds(1) for arrival in schedule])
    assert (found >= alone - 1e-9).all() and np.isfinite(found).all()


def test_overhead_only_costs():
    free, paid = (p99_over_goal(Cost(20, 1.25), 16, 0.8, 9, 0, overhead) for overhead in (0.0, 0.003))
    assert 0 < free < paid


def test_the_command_runs(capsys: pytest.CaptureFixture[str]):
    main(["--capacity", "2", "4", "--seconds", "3", "--draws", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 4
