"""An engine loop whose network fails: which requests end, which are given back, and how it recovers."""

import numpy as np
import pytest

from server.scheduler.events import Failed, Finished, Health
from server.scheduler.loop import PROBE_EVERY_S
from server.scheduler.model import FAILING_AFTER
from tests.server.loop_bench import Bench, explode, poison_all


@pytest.fixture
def bench() -> Bench:
    return Bench(capacities=4)


def test_a_network_that_raises_fails_the_requests_in_the_call_and_not_those_that_wait(bench: Bench):
    bench.faults["tiny"] = explode
    bench.submit(0, steps=2, images=3)
    bench.submit(1, steps=1, images=5)  # one of its images is in the call
    bench.submit(2, steps=1)
    bench.turn(1)
    bench.faults.clear()
    bench.turn(2)  # a probe first
    assert bench.failed() == {0: "network_error", 1: "network_error"}
    assert not any("memory" in result.message for result in bench.results if isinstance(result, Failed)), "internals"
    assert bench.finished() == [2]


def test_values_that_are_not_finite_fail_only_their_own_request(bench: Bench):
    def poison(x: np.ndarray) -> None:
        x[:2] = np.nan

    bench.faults["tiny"] = poison
    bench.submit(0, steps=1, images=3)
    bench.submit(1, steps=1)
    bench.turn(1)
    assert [(r.id, type(r)) for r in bench.results] == [(0, Failed), (1, Finished)]
    assert bench.models["tiny"].table.free == 4


@pytest.mark.parametrize("fault", [explode, poison_all])
def test_a_model_that_keeps_failing_says_so_once_and_recovers_by_itself(bench: Bench, fault):
    bench.faults["tiny"] = fault
    for number in range(FAILING_AFTER - 1):
        bench.submit(number, steps=1)
        bench.turn()
    assert bench.health == []
    bench.submit(9, steps=1)
    bench.turn(2)
    assert bench.health == [Health("tiny", False)]
    bench.now_s += PROBE_EVERY_S
    bench.turn()
    assert bench.models["tiny"].table.free == 4, "a probe that fails holds no slot"
    assert bench.loop._patience_s() is not None, "a failing model is tried without a request, too"
    bench.faults.clear()
    bench.now_s += PROBE_EVERY_S
    bench.turn()
    assert bench.health == [Health("tiny", False), Health("tiny", True)]
    assert len(bench.results) == FAILING_AFTER, "a probe is no request"


@pytest.mark.parametrize("fault", [explode, poison_all])
def test_requests_that_wait_for_a_failing_model_are_given_back_untried_and_later_ones_too(bench: Bench, fault):
    bench.faults["tiny"] = fault
    for number in range(40):
        bench.submit(number, steps=2)
    bench.turn(FAILING_AFTER)
    assert bench.batches() == [4, 1, 1], "after the first call that fails only probes are made"
    bench.submit(40, steps=2)
    bench.turn()
    codes = bench.failed()
    assert {codes.pop(number) for number in range(4)} <= {"network_error", "network_not_finite"}
    assert codes == dict.fromkeys(range(4, 41), "model_failing")
    assert (bench.loop.flights, bench.models["tiny"].waiting) == ({}, {})


def test_a_network_that_fails_for_batches_and_not_for_a_probe_is_failing_too(bench: Bench):
    def out_of_memory(x: np.ndarray) -> None:
        if len(x) > 1:
            explode(x)

    bench.faults["tiny"] = out_of_memory
    for number in range(40):
        bench.submit(number, steps=1)
    bench.turn(2 * FAILING_AFTER - 1)
    assert bench.batches() == [4, 1] * (FAILING_AFTER - 1) + [4]
    assert list(bench.failed().values()).count("network_error") == 4 * FAILING_AFTER
    assert bench.health == [Health("tiny", False)] and bench.loop.flights == {}


def test_a_failing_model_is_tried_once_a_second_while_another_is_busy():
    bench = Bench({"a": 1, "b": 1}, call_s={"a": 0.25, "b": 0.25})
    bench.faults["a"] = explode
    for number in range(FAILING_AFTER):
        bench.submit(number, steps=1, model="a")
    for number in range(10, 60):
        bench.submit(number, steps=1, model="b")
    bench.turn(2 * FAILING_AFTER)
    bench.calls.clear()
    before_s = bench.now_s
    bench.turn(16)
    assert bench.now_s == before_s + 4
    assert 3 <= [model for model, _ in bench.calls].count("a") <= 5
    bench.faults.clear()
    bench.turn(5)
    assert bench.health == [Health("a", False), Health("a", True)]
