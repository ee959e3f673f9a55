"""The simulation beside closed forms, beside the ideal server, and beside the real engine loop on a virtual clock."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.load.arrivals import Arrival
from benchmarks.load.ideal import ideal_latencies
from benchmarks.serving.arrivals import PROCESSES, SWING, times
from benchmarks.serving.simulate import Requests, Site, simulate
from server.scheduler.events import Finished
from server.scheduler.policy import Policy, behind_interactive, earliest_deadline, fifo, shortest
from server.scheduler.request import ImageRequest, Submit
from tests.server.fakes import CLASSES, LEVELS
from tests.server.loop_bench import Bench

POLICIES: dict[str, Policy] = {
    "fifo": fifo,
    "deadline": earliest_deadline,
    "shortest": partial(shortest, ageing=0.7),
    "fifo with batch requests": partial(behind_interactive, policy=fifo, delay_s=3.0),
    "shortest with batch requests": partial(behind_interactive, policy=partial(shortest, ageing=2.0), delay_s=3.0),
}


def requests(rows: list[tuple[float, int, int, bool]]) -> Requests:
    due, steps, images, batch = map(np.array, zip(*sorted(rows, key=lambda row: row[0]), strict=True))
    return Requests(due.astype(float), steps, images, batch)


def poisson(rate: float, count: int, steps: int = 1) -> Requests:
    due = times("poisson", rate, count / rate, np.random.default_rng(3))
    ones = np.ones(len(due), np.int64)
    return Requests(due, ones * steps, ones, np.zeros(len(due), bool))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_with_one_slot_it_is_the_queue_m_d_1(load: float):
    """Pollaczek and Khinchine's mean, and Erlang's distribution of the waiting time for fixed service."""
    service_s = 0.01
    waits = simulate(poisson(load / service_s, 400_000), Site(1, [0.0, service_s], fifo)).latency_s - service_s
    assert waits.mean() == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.04)
    for units in (0.5, 1.5, 3.0):
        terms = [
            (-load * (units - k)) ** k / math.factorial(k) * math.exp(load * (units - k)) for k in range(int(units) + 1)
        ]
        assert np.mean(waits <= units * service_s) == pytest.approx((1 - load) * sum(terms), abs=0.006)


def test_with_room_for_all_a_call_waits_for_half_of_the_one_before():
    """At a high rate a request waits for the rest of a call, uniformly long, and then for its own three."""
    taken = simulate(poisson(1_000, 50_000, steps=3), Site(1, [1.0] * 5_000, fifo)).latency_s
    assert taken.mean() == pytest.approx(3.5, rel=0.01) and taken.min() >= 3 and taken.max() <= 4 + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 8)), min_size=1, max_size=40), st.integers(1, 5))
def test_single_images_are_answered_as_by_the_ideal_server(rows: list[tuple[float, int]], capacity: int):
    rows = sorted(rows)
    asked = requests([(due, steps, 1, False) for due, steps in rows])
    ideal = ideal_latencies([Arrival(due, steps, 1, 0) for due, steps in rows], capacity, lambda n: 0.1 + 0.02 * n)
    found = simulate(asked, Site(1, [0.1 + 0.02 * n for n in range(capacity + 1)], fifo)).latency_s
    assert found == pytest.approx(ideal)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 8), st.integers(1, 6), st.booleans()), min_size=1, max_size=20)
)
def test_requests_take_as_long_as_in_the_real_engine_loop(policy: Policy, rows: list[tuple[float, int, int, bool]]):
    asked = requests(rows)
    found = simulate(asked, Site(1, [0.5 + 0.125 * n for n in range(5)], policy))
    assert found.latency_s == pytest.approx(played(asked, policy))


def played(asked: Requests, policy: Policy) -> list[float]:
    """Latencies in EngineLoop with SlotTable, four slots and calls of 0.5 + 0.125 B seconds."""
    bench = Bench(4, policy, {"tiny": 0.5})

    def longer(x: np.ndarray) -> None:
        bench.now_s += 0.125 * len(x)

    bench.faults["tiny"] = longer
    due, nxt = asked.due_s.tolist(), 0
    while nxt < len(due) or bench.loop.flights:
        if not bench.loop.flights:
            bench.now_s = max(bench.now_s, due[nxt])
        while nxt < len(due) and due[nxt] <= bench.now_s:
            images, steps = int(asked.images[nxt]), int(asked.steps[nxt])
            request = ImageRequest(
                "tiny", steps, tuple(range(images)), tuple(i % CLASSES for i in range(images)), LEVELS[steps],
                priority="batch" if asked.batch[nxt] else "interactive",
            )  # fmt: skip
            bench.inbox.put(Submit(nxt, request, due[nxt], math.inf))
            nxt += 1
        bench.turn()
    ended = {each.id: each.queue_s + each.engine_s for each in bench.results if isinstance(each, Finished)}
    return [ended[number] for number in range(len(due))]


def test_the_request_goes_to_the_device_with_the_least_work():
    """At 0 one of eight calls goes to the first device; what comes at 1 goes to the second, without a wait."""
    found = simulate(requests([(0.0, 8, 1, False), (1.0, 2, 1, False)]), Site(2, [0.0, 1.0], fifo))
    assert found.latency_s.tolist() == [8.0, 2.0] and found.busy_s == 10.0


@pytest.mark.parametrize("devices", [1, 40])
def test_what_does_not_fit_into_the_queue_is_refused(devices: int):
    rows = [(0.0, 1, 1, False)] * (3 * devices + 4)
    found = simulate(requests(rows), Site(devices, [0.0, 1.0, 1.0], fifo, max_queue=devices))
    assert np.isinf(found.latency_s).sum() == 4 and np.nanmax(found.latency_s[: 3 * devices]) == 2.0
    assert found.rows == 3 * devices


@pytest.mark.parametrize("process", PROCESSES)
def test_arrivals_have_their_rate_and_are_a_function_of_the_seed(process):
    due, again = (times(process, 50.0, 2_000.0, np.random.default_rng(1)) for _ in range(2))
    assert (due == again).all() and (np.diff(due) >= 0).all() and due[0] >= 0 and due[-1] < 2_000
    assert len(due) == pytest.approx(100_000, rel=0.02)
    counts = np.histogram(due, 2_000, (0, 2_000))[0]
    spread = counts.var() / counts.mean()  # 1 of a Poisson process
    assert spread == pytest.approx(1, abs=0.15) if process == "poisson" else spread > 5


def test_a_day_has_its_least_at_both_ends_and_its_most_in_the_middle():
    due = times("diurnal", 1_000.0, 100.0, np.random.default_rng(0))
    night, noon = np.sum(due < 5), np.sum(abs(due - 50) < 2.5)
    assert (night / 5_000, noon / 5_000) == pytest.approx((1 - SWING, 1 + SWING), rel=0.1)


def test_batch_requests_pay_for_interactive_ones():
    """At load 0.9, with a delay longer than the run, interactive requests wait as if batch ones were hardly there."""
    asked = poisson(0.9, 20_000)
    batch = np.random.default_rng(0).random(len(asked.due_s)) < 0.5
    mixed = Requests(asked.due_s, asked.steps, asked.images, batch)
    policy = partial(behind_interactive, policy=fifo, delay_s=1e6)
    found = simulate(mixed, Site(1, [0.0, 1.0], policy)).latency_s
    means = [found[~batch].mean() - 1, found[batch].mean() - 1]
    # Cobham's formulas of a queue with two priorities, no preemption: the load is .45 of each.
    residual = 0.9 / 2
    assert means == pytest.approx([residual / 0.55, residual / (0.55 * 0.1)], rel=0.15)
    assert all(low <= high for low, high in pairwise(means))
