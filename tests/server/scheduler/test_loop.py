import numpy as np
import pytest

from server.processes.messages import MODEL_FAILING, Failed, Health
from server.scheduler.loop import PROBE_EVERY_S, Finished
from server.scheduler.model import FAILING_AFTER
from server.scheduler.policy import earliest_deadline, fifo
from tests.server.fakes import CLASSES, expected_pixels
from tests.server.loop_bench import Bench, explode, poison_all


@pytest.fixture
def bench() -> Bench:
    return Bench(capacities=4)


def test_a_short_request_overtakes_a_long_one_that_is_already_running(bench: Bench):
    bench.submit(0, steps=8)
    bench.turn(2)
    bench.submit(1, steps=1)
    bench.turn(1)
    assert bench.finished() == [1]
    bench.turn(5)
    assert bench.finished() == [1, 0]


def test_what_is_finished_is_delivered_while_the_next_network_call_runs(bench: Bench):
    """Not while the engine thread prepares that call: whoever encodes would take the interpreter from it."""
    during_calls: list[list[int]] = []
    bench.faults["tiny"] = lambda x: during_calls.append([result.id for result in bench.results])
    for number, steps in enumerate((1, 2, 4)):
        bench.submit(number, steps)
    bench.turn(1)
    assert (bench.results, [result.id for result in bench.loop.finished]) == ([], [0])
    bench.turn(3)
    assert during_calls == [[], [0], [0, 1], [0, 1]]
    assert [result.id for result in bench.results] == [0, 1, 2], "after the last call there is nothing to wait for"
    assert bench.loop.finished == []


def test_what_is_finished_is_delivered_though_the_next_call_fails_before_the_network_is_busy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    for number in range(2):
        bench.submit(number, steps=1 + number)
    bench.turn(1)
    assert (bench.results, bench.finished()) == ([], [0])
    monkeypatch.setattr(bench.models["tiny"].table, "tick", explode)
    bench.turn(1)
    assert [type(result) for result in bench.results] == [Finished, Failed]


def test_what_is_finished_is_delivered_though_nobody_is_admitted():
    places = [1, 0]
    bench = Bench(capacities=1, policy=lambda waiting, free, now_s: fifo(waiting, places.pop(0), now_s))
    for number in range(2):
        bench.submit(number, steps=1)
    bench.turn(1)
    assert (bench.results, bench.finished()) == ([], [0])
    bench.turn(1)
    assert [result.id for result in bench.results] == [0] and list(bench.loop.flights) == [1]


def test_a_request_larger_than_the_table_is_made_image_by_image_in_the_order_of_its_seeds(bench: Bench):
    bench.submit(0, steps=2, images=10, seed=100)
    bench.turn(6)
    (result,) = bench.results
    assert isinstance(result, Finished)
    for i, pixels in enumerate(result.pixels):
        np.testing.assert_array_equal(pixels, expected_pixels(100 + i, i % CLASSES, 2))
    assert bench.batches() == [4, 4, 4, 4, 2, 2]


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
    bench.cancel(0)
    bench.submit(1, steps=1, images=4)
    bench.turn(1)
    assert bench.finished() == [1]
    assert (bench.models["tiny"].table.free, bench.loop.flights, bench.models["tiny"].waiting) == (4, {}, {})


def test_a_request_whose_time_is_up_fails_before_the_next_call_and_frees_its_slots(bench: Bench):
    bench.submit(0, steps=8, images=3, timeout_s=2)
    bench.submit(1, steps=8, images=5, timeout_s=5)
    bench.submit(2, steps=1, images=4)
    bench.turn(3)
    assert bench.failed() == {0: "timeout"}
    bench.turn(3)
    assert bench.failed() == {0: "timeout", 1: "timeout"}
    assert bench.finished() == [2]
    assert bench.models["tiny"].stats().evicted == {"running": 3 + 4, "waiting": 1}
    assert bench.batches() == [4, 4, 4, 4, 4, 4]


def test_the_earliest_deadline_goes_first_when_asked_to():
    bench = Bench(capacities=1, policy=earliest_deadline)
    bench.submit(0, steps=2, timeout_s=60)
    bench.submit(1, steps=1, timeout_s=50)
    bench.submit(2, steps=1, timeout_s=9)
    bench.turn(4)
    assert bench.finished() == [2, 1, 0]


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
    assert bench.loop._patience_s() is not None, "a failing model is tried even when nobody asks"
    bench.faults.clear()
    bench.now_s += PROBE_EVERY_S
    bench.turn()
    assert bench.health == [Health("tiny", False), Health("tiny", True)]
    assert len(bench.results) == FAILING_AFTER, "a probe is nobody's request"


@pytest.mark.parametrize("fault", [explode, poison_all])
def test_whoever_waits_for_a_model_that_fails_is_given_back_untried_and_newcomers_too(bench: Bench, fault):
    bench.faults["tiny"] = fault
    for number in range(40):
        bench.submit(number, steps=2)
    bench.turn(FAILING_AFTER)
    assert bench.batches() == [4, 1, 1], "after the first call that fails only probes are made"
    bench.submit(40, steps=2)
    bench.turn()
    codes = bench.failed()
    assert {codes.pop(number) for number in range(4)} <= {"network_error", "network_not_finite"}
    assert codes == dict.fromkeys(range(4, 41), MODEL_FAILING)
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


def test_an_idle_loop_sleeps_until_a_message_comes(bench: Bench):
    assert bench.loop._patience_s() is None
    bench.submit(0, steps=1)
    bench.turn(1)
    assert bench.loop._patience_s() is None and len(bench.stats) == 1
    bench.now_s -= 0.95  # two requests in quick succession: statistics wait for their time, then sleep
    bench.submit(1, steps=1)
    bench.loop.receive(0)
    bench.call_s["tiny"] = 0.0
    bench.loop.turn()
    assert len(bench.stats) == 1
    patience_s = bench.loop._patience_s()
    assert patience_s is not None and patience_s > 0
    bench.now_s += patience_s
    bench.turn()
    assert len(bench.stats) == 2 and bench.loop._patience_s() is None


def test_statistics_count_calls_rows_and_padding():
    bench = Bench(capacities=16)
    bench.submit(0, steps=2, images=9)  # 9 images in batches of 10
    bench.turn(1)
    bench.cancel(0)
    bench.submit(1, steps=1, images=16)
    bench.submit(2, steps=1)
    bench.turn(1)
    stats = bench.stats[-1].models["tiny"]
    assert (stats.calls_by_bucket, stats.call_s_by_bucket) == ({10: 1, 16: 1}, {10: 1.0, 16: 1.0})
    assert (stats.rows, stats.padded_rows, stats.evicted, stats.call_s) == (25, 1, {"running": 9}, 2.0)
    assert (stats.active_slots, stats.waiting_images, stats.capacity) == (0, 1, 16)
    assert bench.stats[-1].rss_bytes > 1_000_000


def test_two_models_get_half_of_the_device_each_however_long_their_calls():
    bench = Bench({"slow": 2, "fast": 2}, call_s={"slow": 10, "fast": 1})
    for number in range(200):
        bench.submit(number, steps=8, model=("slow", "fast")[number % 2])
    bench.turn(110)
    names = [name for name, _ in bench.calls]
    assert (names.count("slow"), names.count("fast")) == (10, 100)


def test_a_model_that_was_idle_does_not_claim_the_time_it_did_not_ask_for():
    bench = Bench({"a": 1, "b": 1})
    bench.submit(0, steps=8, model="a")
    bench.turn(8)
    for number in range(1, 5):
        bench.submit(number, steps=8, model="ab"[number % 2])
    bench.turn(8)
    assert [name for name, _ in bench.calls[8:]].count("a") == 4


def test_the_loop_stops_when_told(bench: Bench):
    bench.submit(0, steps=2)
    bench.loop.inbox.put(None)
    assert bench.loop.receive(None) is False


def test_what_is_finished_is_delivered_though_the_loop_is_told_to_stop(bench: Bench):
    for number in range(2):
        bench.submit(number, steps=1 + number)
    bench.turn(1)
    assert (bench.results, bench.finished()) == ([], [0])
    bench.loop.inbox.put(None)
    bench.loop.run()
    assert [result.id for result in bench.results] == [0] and list(bench.loop.flights) == [1]
