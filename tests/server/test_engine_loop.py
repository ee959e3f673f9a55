import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine_loop import EngineLoop, Finished
from server.messages import Cancel, Failed, Submit
from server.requests import GenerateRequest
from server.slots import SlotTable, buckets_for
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, GaussianNetwork, expected_pixels


class Bench:
    """An engine loop with a fake network and a fake clock that moves one second per network call."""

    def __init__(self, capacity: int) -> None:
        self.now_s = 0.0
        self.results: list[Finished | Failed] = []
        self.network = GaussianNetwork()
        self.network.before = self.tick_clock
        self.table = SlotTable(self.network, SHAPE, CLASSES, SIGMA_DATA, buckets_for(capacity, exact=False))
        self.loop = EngineLoop(self.table, LEVELS, self.results.append, clock=lambda: self.now_s)

    def tick_clock(self, x: np.ndarray, c_noise: np.ndarray) -> None:
        self.now_s += 1

    def submit(self, number: int, steps: int, images: int = 1, seed: int = 0) -> None:
        request = GenerateRequest(steps, images, seed, tuple(i % CLASSES for i in range(images)), "png")
        self.loop.inbox.put(Submit(number, request, self.now_s))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.loop.receive(block=False)
            self.loop.turn()

    def finished(self) -> list[int]:
        return [result.id for result in self.results if isinstance(result, Finished)]


@pytest.fixture
def bench() -> Bench:
    return Bench(capacity=4)


def test_a_short_request_overtakes_a_long_one_that_is_already_running(bench: Bench):
    bench.submit(0, steps=8)
    bench.turn(2)
    bench.submit(1, steps=1)
    bench.turn(1)
    assert bench.finished() == [1]
    bench.turn(5)
    assert bench.finished() == [1, 0]


def test_a_request_larger_than_the_table_is_made_image_by_image_in_the_order_of_its_seeds(bench: Bench):
    bench.submit(0, steps=2, images=10, seed=100)
    bench.turn(6)
    (result,) = bench.results
    assert isinstance(result, Finished)
    for i, pixels in enumerate(result.pixels):
        np.testing.assert_array_equal(pixels, expected_pixels(100 + i, i % CLASSES, 2))
    assert bench.network.batches == [4, 4, 4, 4, 2, 2]


def test_queue_and_engine_time_are_told_apart(bench: Bench):
    bench.submit(0, steps=3, images=4)
    bench.submit(1, steps=2)
    bench.turn(5)
    first, second = bench.results
    assert isinstance(first, Finished) and isinstance(second, Finished)
    assert (first.queue_s, first.engine_s) == (0.0, 3.0)
    assert (second.queue_s, second.engine_s) == (3.0, 2.0)


@pytest.mark.parametrize("turns", [0, 1])
def test_a_cancelled_request_frees_its_slots_before_the_next_call_and_delivers_nothing(bench: Bench, turns: int):
    bench.submit(0, steps=8, images=6)
    bench.turn(turns)
    bench.loop.inbox.put(Cancel(0))
    bench.submit(1, steps=1, images=4)
    bench.turn(1)
    assert bench.finished() == [1]
    assert (bench.table.free, bench.loop.flights, bench.loop.waiting) == (4, {}, {})


def test_a_network_that_raises_fails_the_requests_in_the_call_and_not_those_that_wait(bench: Bench):
    def explode(x: np.ndarray, c_noise: np.ndarray) -> None:
        raise RuntimeError("out of memory")

    bench.network.before = explode
    bench.submit(0, steps=2, images=3)
    bench.submit(1, steps=1, images=5)  # one of its images is in the call
    bench.submit(2, steps=1)
    bench.turn(1)
    bench.network.before = bench.tick_clock
    bench.turn(1)
    failures = [result for result in bench.results if isinstance(result, Failed)]
    assert {failure.id for failure in failures} == {0, 1}
    assert all("out of memory" in failure.message for failure in failures)
    assert bench.finished() == [2]


def test_values_that_are_not_finite_fail_only_their_own_request(bench: Bench):
    def poison(x: np.ndarray, c_noise: np.ndarray) -> None:
        x[:2] = np.nan

    bench.network.before = poison
    bench.submit(0, steps=1, images=3)
    bench.submit(1, steps=1)
    bench.turn(1)
    assert [(r.id, type(r)) for r in bench.results] == [(0, Failed), (1, Finished)]
    assert bench.table.free == 4


def test_the_loop_stops_when_told(bench: Bench):
    bench.submit(0, steps=2)
    bench.loop.inbox.put(None)
    assert bench.loop.receive(block=True) is False


class RandomTraffic(RuleBasedStateMachine):
    """Arrivals, cancels and faults in any order: every request ends exactly once, and no slot leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(capacity=5)
        self.submitted: dict[int, int] = {}
        self.cancelled: set[int] = set()

    @rule(steps=st.integers(1, 8), images=st.integers(1, 12))
    def arrive(self, steps: int, images: int) -> None:
        number = len(self.submitted)
        self.submitted[number] = images
        self.bench.submit(number, steps, images, seed=number)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.submitted)))
        self.cancelled.add(number)
        self.bench.loop.inbox.put(Cancel(number))

    @rule(fault=st.sampled_from(["none", "none", "none", "raise", "nan"]))
    def turn(self, fault: str) -> None:
        def before(x: np.ndarray, c_noise: np.ndarray) -> None:
            if fault == "raise":
                raise RuntimeError("fault")
            if fault == "nan":
                x[0] = np.nan

        self.bench.network.before = before
        self.bench.turn()

    @invariant()
    def slots_and_flights_agree(self) -> None:
        loop, table = self.bench.loop, self.bench.table
        assert table.requests() <= set(loop.flights)
        assert int(table.active.sum()) == sum(key is not None for key in table.keys)
        ended = [result.id for result in self.bench.results]
        assert len(ended) == len(set(ended))
        assert not set(ended) & set(loop.flights)

    def teardown(self) -> None:
        self.bench.network.before = lambda x, c_noise: None
        for _ in range(8 * sum(self.submitted.values()) + 8):
            self.bench.turn()
        ended = {result.id for result in self.bench.results}
        assert ended | self.cancelled == set(self.submitted)
        assert self.bench.table.free == 5
        assert not self.bench.loop.flights and not self.bench.loop.waiting


RandomTraffic.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestRandomTraffic = RandomTraffic.TestCase
