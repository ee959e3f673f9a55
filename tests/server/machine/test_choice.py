"""Which layout is chosen, by made-up times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.machine.choice import FASTER, PATIENCE, Layout, best_layout, choose, fit, layouts
from server.scheduler.calibration import MIN_SLOTS, doubling

SIZES = doubling(32)


def line(start_ms: float, row_ms: float) -> dict[int, float]:
    """Seconds of calls that cost so much, and so much for each row."""
    return {size: (start_ms + row_ms * size) / 1000 for size in SIZES}


def ort(workers: int, threads: int) -> Layout:
    return Layout("onnxruntime-cpu", workers, threads)


def test_the_layouts_of_a_machine():
    assert layouts(2, ["onnxruntime-cpu"], 0, 16) == [ort(2, 1), ort(1, 2)]
    assert layouts(6, ["onnxruntime-cpu"], 0, 16) == [ort(6, 1), ort(3, 2), ort(1, 4), ort(1, 6)]
    assert layouts(1, ["onnxruntime-cpu"], 0, 16) == [ort(1, 1)]
    assert layouts(64, ["onnxruntime-cpu"], 0, 16)[0] == ort(16, 4), "more than 16 are not measured"
    assert layouts(8, ["onnxruntime-cpu"], 3, 16) == [ort(2, 3)], "threads that are given stay"
    assert layouts(64, ["onnxruntime-cpu"], 1, 16) == [ort(16, 1)]
    assert [each.backend for each in layouts(1, ["a", "b"], 0, 16)] == ["a", "b"]


def test_workers_of_few_threads_where_threads_help_little():
    two = {ort(1, 2): line(0.7, 2.6), ort(2, 1): line(0.5, 4.0)}  # measured on two cores: 19 and 24 ms alone
    assert choose(two, "onnxruntime-cpu", 0).layout == ort(2, 1)


def test_all_threads_for_one_worker_where_a_lone_image_would_wait_too_long():
    sixteen = {ort(16, 1): line(1, 8.0), ort(4, 4): line(1, 2.5), ort(1, 16): line(1, 1.7)}
    chosen = choose(sixteen, "onnxruntime-cpu", 0)
    assert chosen.layout == ort(4, 4), "16 workers make the most images a second, a lone one in 3.3 times the time"


def test_nearly_as_many_images_a_second_are_as_good_and_the_lone_image_decides():
    flat = {ort(1, 2): line(0.1, 2.0), ort(2, 1): line(0.1, 4.0)}
    assert choose(flat, "onnxruntime-cpu", 8).layout == ort(1, 2)


@pytest.mark.parametrize(("alone", "full", "moves"), [(1.2, 1.2, True), (2.0, 1.05, False), (0.9, 2.0, False)])
def test_another_backend_must_be_faster_both_alone_and_full(alone: float, full: float, moves: bool):
    own, other = {1: 0.006, 16: 0.05}, {1: 0.006 / alone, 16: 0.05 / full}
    chosen = choose({ort(1, 2): own, Layout("openvino", 1, 2): other}, "onnxruntime-cpu", 16)
    assert (chosen.layout.backend == "openvino") is moves


def test_what_does_not_run_here_is_not_chosen_and_without_times_there_is_no_choice():
    assert choose({Layout("openvino", 1, 2): line(1, 1)}, "onnxruntime-cpu", 0).layout.backend == "openvino"
    with pytest.raises(ValueError, match="nothing was measured"):
        choose({}, "onnxruntime-cpu", 0)


def test_slots_follow_from_the_times_unless_they_are_given():
    assert fit(ort(1, 1), line(0.1, 5), 0).capacity == MIN_SLOTS
    assert fit(ort(1, 1), line(40, 0.5), 0).capacity > MIN_SLOTS
    assert fit(ort(1, 1), line(40, 0.5), 5).capacity == 5


TIMES = st.tuples(st.floats(0.01, 50), st.floats(0.01, 20)).map(lambda costs: line(*costs))


@given(st.dictionaries(st.sampled_from([ort(1, 4), ort(2, 2), ort(4, 1), Layout("openvino", 1, 4)]), TIMES, min_size=1))
def test_the_choice_keeps_its_promises(times: dict[Layout, dict[int, float]]):
    chosen = choose(times, "onnxruntime-cpu", 0)
    fits = [fit(layout, calls, 0) for layout, calls in times.items()]
    assert chosen in fits
    same = [each for each in fits if each.layout.backend == chosen.layout.backend]
    assert chosen == best_layout(same)
    assert chosen.alone_s <= PATIENCE * min(each.alone_s for each in same)
    own = [each for each in fits if each.layout.backend == "onnxruntime-cpu"]
    if own and chosen.layout.backend != "onnxruntime-cpu":
        assert chosen.images_per_s >= FASTER * best_layout(own).images_per_s
