import os
import resource
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.calibration import (
    BUDGET_S,
    MIN_SLOTS,
    REPEATS,
    SharedTimes,
    call_time,
    choose_buckets,
    doubling,
    knee,
    measure,
    slots,
)
from server.scheduler.slots import buckets_for


class FakeDevice:
    """Calls of known length on a clock of its own."""

    def __init__(self, seconds) -> None:
        self.seconds = seconds
        self.now_s = 0.0
        self.calls: list[int] = []

    def __call__(self, size: int) -> None:
        self.calls.append(size)
        self.now_s += self.seconds(size)

    def measured(self, sizes, **rest) -> dict[int, float]:
        return measure(self, sizes, clock=lambda: self.now_s, **rest)


def test_measuring_finds_the_time_of_each_size():
    device = FakeDevice(lambda size: 0.001 + 0.0005 * size)
    times = device.measured(doubling(12))
    assert times == pytest.approx({size: 0.001 + 0.0005 * size for size in (1, 2, 4, 8, 12)})
    assert len(device.calls) == 5 * 2  # a machine without noise is asked twice


def test_measuring_repeats_calls_that_disagree():
    """The first call of a size compiles for a second, and the next ones are noisy."""
    taken = iter((1.0, 0.008, 0.006, 0.004))
    device = FakeDevice(lambda size: next(taken))
    assert device.measured((1,)) == pytest.approx({1: 0.004})
    assert len(device.calls) == REPEATS
    late = iter((1.0, 0.004, 0.0041))
    assert FakeDevice(lambda size: next(late)).measured((1,)) == pytest.approx({1: 0.004})


def test_measuring_stops_when_its_time_is_up_but_never_before_the_first_size():
    device = FakeDevice(lambda size: 0.021 * size)
    device.measured(doubling(128))
    assert max(device.calls) == 8 and device.now_s < 2.5 * BUDGET_S  # the first call of a size is not counted
    assert list(FakeDevice(lambda size: 9.0).measured(doubling(128))) == [1]


def test_measuring_goes_on_beyond_what_is_enough_only_while_larger_batches_pay():
    in_proportion, of_a_gpu = FakeDevice(lambda size: 1e-5 * (1 + size)), FakeDevice(lambda size: 1e-4 + 5e-7 * size)
    assert max(in_proportion.measured(doubling(128), enough=16)) == 16
    assert max(of_a_gpu.measured(doubling(128), enough=16)) == 128
    steep_then_flat = FakeDevice(lambda size: 1e-5 * (size if size < 8 else 8))
    assert max(steep_then_flat.measured(doubling(128), enough=16)) == 128, "below what is enough nothing ends it"


def test_slots_are_as_many_as_pay_and_24_at_least_unless_a_call_takes_long():
    assert slots({1: 0.01, 2: 0.02, 4: 0.04}) == MIN_SLOTS == 24
    on_a_gpu = {size: 1e-3 * (1.0 + 0.005 * size) for size in doubling(128)}
    assert slots(on_a_gpu) == knee(on_a_gpu) > 64
    assert slots({1: 0.1, 2: 0.2, 4: 0.4}) == 10
    assert slots({1: 9.0}) == 1


def test_a_smaller_batch_never_counts_as_slower():
    times = FakeDevice({1: 3e-3, 2: 1e-3, 4: 4e-3}.__getitem__).measured((1, 2, 4))
    assert times == pytest.approx({1: 1e-3, 2: 1e-3, 4: 4e-3})


@given(st.floats(1e-4, 1.0), st.floats(1e-5, 1.0), st.integers(1, 300))
def test_times_between_and_beyond_measured_sizes_lie_on_the_line(start: float, slope: float, size: int):
    times = {measured: start + slope * measured for measured in (1, 2, 4, 8, 16)}
    assert call_time(times, size) == pytest.approx(start + slope * size)


def test_the_knee_is_where_nine_tenths_of_the_throughput_are_reached():
    # B / (a + b B) is 0.9 of the largest one measured, B = 128, at B = 0.9 a / (a / 128 + 0.1 b).
    for a, b in ((2.0, 0.05), (2.0, 0.25), (1.0, 1.0)):
        times = {size: a + b * size for size in doubling(128)}
        best = 128 / times[128]
        chosen = knee(times)
        assert chosen / (a + b * chosen) >= 0.9 * best > (chosen - 1) / (a + b * (chosen - 1))
    assert knee({1: 1.0, 2: 2.0, 4: 4.0}) == 1  # every row costs the same: batching buys nothing
    assert knee({1: 1.0, 2: 1.0, 4: 1.0}) == 4  # rows cost nothing: as many as were measured
    assert knee({1: 5.0}) == 1


def test_buckets_are_dense_where_rows_cost_and_sparse_where_they_do_not():
    candidates = buckets_for(16, exact=False)
    assert choose_buckets(candidates, {1: 1.0, 16: 16.0}) == candidates
    assert choose_buckets(candidates, {1: 1.0, 16: 1.0}) == (16,)
    launch_bound = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 2.0}
    assert choose_buckets(candidates, launch_bound) == (8, 10, 12, 14, 16)


@given(
    st.integers(1, 64),
    st.dictionaries(st.sampled_from(doubling(64)), st.floats(1e-3, 1.0), min_size=1),
)
def test_no_bucket_that_would_save_much_is_left_out(capacity: int, raw: dict[int, float]):
    times, slowest = {}, 0.0
    for size in sorted(raw):
        slowest = times[size] = max(slowest, raw[size])
    candidates = buckets_for(capacity, exact=False)
    chosen = choose_buckets(candidates, times)
    assert chosen[-1] == capacity and set(chosen) <= set(candidates) and list(chosen) == sorted(chosen)
    for size in candidates:
        padded = min(bucket for bucket in chosen if bucket >= size)
        assert call_time(times, padded) <= call_time(times, size) / 0.97 * (1 + 1e-9)


def test_the_first_worker_measures_for_all_and_the_others_wait():
    shared = SharedTimes()
    (asked, ask), (go_on, release) = os.pipe(), os.pipe()
    expected = {1: 0.25, 8: 1.5}

    def slowly() -> dict[int, float]:
        os.write(ask, b"!")
        os.read(go_on, 1)
        return expected

    if (pid := os.fork()) == 0:  # another worker of the same parent
        os._exit(0 if shared.get("a", slowly) == expected else 1)
    os.read(asked, 1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(shared.get, "a", dict)
        early = wait([answer], timeout=0.1).done
        os.write(release, b"!")
        assert not early and answer.result() == expected, "it may not measure while the other does"
    assert os.waitpid(pid, 0)[1] == 0
    assert shared.get("b", lambda: {4: 1.0}) == {4: 1.0}
    assert shared.get("a", dict) == expected


def test_a_worker_that_dies_while_it_measures_leaves_it_to_the_next():
    shared = SharedTimes()
    if (pid := os.fork()) == 0:
        shared.get("a", lambda: os._exit(9))
    os.waitpid(pid, 0)
    assert shared.get("a", lambda: {1: 0.5}) == {1: 0.5}


def test_times_that_are_known_are_not_measured_and_the_others_are_given_to_be_kept_once():
    given: list[tuple[str, Mapping[int, float]]] = []
    shared = SharedTimes({"a": {1: 0.25, 16: 1.5}}, lambda model, times: given.append((model, times)))
    assert shared.get("a", lambda: {1: 9.0}) == {1: 0.25, 16: 1.5}
    for _ in range(2):
        assert shared.get("b", lambda: {4: 1.0}) == {4: 1.0}
    assert given == [("b", {4: 1.0})]


def test_a_limit_on_the_size_of_files_is_none_on_times():
    shared = SharedTimes()
    if (pid := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        os._exit(0 if shared.get("a", lambda: {1: 0.5}) == {1: 0.5} else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert shared.get("a", dict) == {1: 0.5}
    shared.close()
