import math

import numpy as np
import pytest

from server.scheduler.events import Failed, Finished, Progress
from server.scheduler.policy import earliest_deadline, fifo
from server.scheduler.request import ImageRequest, Submit
from tests.server.fakes import CLASSES, expected_pixels, pixels_of
from tests.server.loop_bench import Bench, explode


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
    """Not while the engine thread prepares that call: encoding takes time."""
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


def test_what_is_finished_is_delivered_though_no_image_is_admitted():
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
    for i, pixels in enumerate(result.images):
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


def test_a_cancelled_request_gets_none_of_the_events_that_were_about_to_be_delivered(bench: Bench):
    bench.submit(0, steps=2, previews="images")
    bench.submit(1, steps=1)
    bench.submit(2, steps=3)
    bench.turn(1)
    assert [event.id for event in bench.loop.finished] == [0, 1]
    bench.cancel(0)
    bench.cancel(1)
    bench.turn(2)
    assert list(bench.events) == [2]


def test_what_a_request_has_made_is_delivered_before_its_time_is_up(bench: Bench):
    bench.submit(0, steps=8, timeout_s=1, previews="steps")
    bench.turn(2)
    assert [type(event) for event in bench.events[0]] == [Progress, Failed]


def test_a_request_carries_its_levels_and_so_runs_whatever_step_counts_its_model_announces(bench: Bench):
    sigmas = (70.0, 3.0, 0.4)  # of no step count
    request = ImageRequest("tiny", 3, seeds=(11,), labels=(2,), sigmas=sigmas, format="pixels")
    bench.inbox.put(Submit(0, request, 0.0, math.inf))
    bench.turn(3)
    (result,) = bench.results
    assert isinstance(result, Finished)
    np.testing.assert_array_equal(result.images[0], pixels_of(11, 2, sigmas))


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
    assert bench.models["tiny"].stats.evicted == {"running": 3 + 4, "waiting": 1}
    assert bench.batches() == [4, 4, 4, 4, 4, 4]


def test_the_earliest_deadline_goes_first_when_asked_to():
    bench = Bench(capacities=1, policy=earliest_deadline)
    bench.submit(0, steps=2, timeout_s=60)
    bench.submit(1, steps=1, timeout_s=50)
    bench.submit(2, steps=1, timeout_s=9)
    bench.turn(4)
    assert bench.finished() == [2, 1, 0]


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
    assert (stats.rows, stats.padded_rows, stats.evicted) == (25, 1, {"running": 9})
    assert sum(stats.call_s_by_bucket.values()) == 2.0
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
    bench.inbox.put(None)
    assert bench.loop.receive(None) is False


def test_what_is_finished_is_delivered_though_the_loop_is_told_to_stop(bench: Bench):
    for number in range(2):
        bench.submit(number, steps=1 + number)
    bench.turn(1)
    assert (bench.results, bench.finished()) == ([], [0])
    bench.inbox.put(None)
    bench.loop.run()
    assert [result.id for result in bench.results] == [0] and list(bench.loop.flights) == [1]
