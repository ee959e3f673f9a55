from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.policy import (
    Grant,
    Waiting,
    behind_interactive,
    earliest_deadline,
    fifo,
    least_served,
    shortest,
)


def test_fifo_serves_in_order_of_arrival_and_splits_the_request_that_does_not_fit():
    waiting = [Waiting(7, 2, 0.0), Waiting(3, 5, 1.0), Waiting(9, 1, 2.0)]
    assert fifo(waiting, free=4, now_s=3.0) == [Grant(7, 2), Grant(3, 2)]


def test_without_a_free_slot_or_a_waiting_request_there_are_no_grants():
    assert fifo([Waiting(0, 1, 0.0)], free=0, now_s=1.0) == []
    assert fifo([], free=8, now_s=1.0) == []


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(0, 20))
def test_fifo_fills_every_slot_it_can_and_lets_none_overtake(sizes: list[int], free: int):
    grants = fifo([Waiting(i, size, float(i)) for i, size in enumerate(sizes)], free, now_s=99.0)
    assert sum(g.images for g in grants) == min(free, sum(sizes))
    assert [g.request for g in grants] == list(range(len(grants)))
    assert all(g.images == sizes[g.request] for g in grants[:-1])


def test_the_earliest_deadline_is_served_first_equal_ones_in_order_of_arrival_and_late_ones_not_at_all():
    deadlines = {7: 30.0, 3: 9.0, 4: 30.0, 9: 20.0}
    waiting = [Waiting(request, 1, float(i), deadlines[request]) for i, request in enumerate(deadlines)]
    assert [g.request for g in earliest_deadline(waiting, free=9, now_s=10.0)] == [9, 7, 4]
    assert earliest_deadline(waiting, free=1, now_s=10.0) == [Grant(9, 1)]


def test_the_least_work_is_served_first_and_waiting_counts_as_work_done():
    gallery, single, one_step = Waiting(1, 8, 0.0, calls=4), Waiting(2, 1, 1.0, calls=4), Waiting(3, 1, 1.0, calls=1)
    waiting = [gallery, single, one_step]
    assert [g.request for g in shortest(waiting, 10, now_s=1.0, ageing=15.0)] == [3, 2, 1]
    assert [g.request for g in shortest(waiting, 10, now_s=1.0, ageing=29.0)] == [3, 1, 2]
    assert [g.request for g in shortest(waiting, 10, now_s=1.0, ageing=1000.0)] == [1, 3, 2]


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 8), st.floats(0, 100)), max_size=12), st.integers(0, 80),
    st.floats(0.1, 1000),
)  # fmt: skip
def test_the_shortest_first_fills_every_slot_and_lets_nobody_overtake_for_long(requests, free: int, ageing: float):
    waiting = [Waiting(i, images, arrived, calls=calls) for i, (images, calls, arrived) in enumerate(requests)]
    grants = shortest(waiting, free, now_s=100.0, ageing=ageing)
    assert sum(g.images for g in grants) == min(free, sum(images for images, _, _ in requests))
    place = {grant.request: at for at, grant in enumerate(grants)}
    for late in waiting:
        for early in waiting:
            behind = place.get(early.request, len(waiting)) > place.get(late.request, len(waiting))
            if behind and late.arrived_s > early.arrived_s:
                assert (late.arrived_s - early.arrived_s) * ageing <= early.work + 1e-6 * ageing


def test_a_batch_request_gets_its_slots_as_if_it_had_come_later():
    late, batch, soon = Waiting(1, 1, 9.5), Waiting(2, 1, 0.0, batch=True), Waiting(3, 1, 10.5)
    waiting = [batch, late, soon]
    for policy, delay_s, order in (
        (fifo, 10.0, [1, 2, 3]), (fifo, 0.0, [2, 1, 3]), (fifo, 11.0, [1, 3, 2]),
        (partial(shortest, ageing=1.0), 10.0, [1, 2, 3]),
    ):  # fmt: skip
        assert [g.request for g in behind_interactive(waiting, 9, 12.0, policy, delay_s)] == order
    due = [Waiting(1, 1, 0.0, 20.0, batch=True), Waiting(2, 1, 0.0, 25.0), Waiting(3, 1, 0.0, 5.0, batch=True)]
    assert behind_interactive(due, 9, 6.0, earliest_deadline, 10.0) == [Grant(2, 1), Grant(1, 1)]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0, 100), st.booleans()), max_size=12), st.integers(0, 40),
    st.floats(0, 50),
)  # fmt: skip
def test_a_batch_request_is_overtaken_for_so_long_and_no_longer(requests, free: int, delay_s: float):
    requests = sorted(requests, key=lambda each: each[1])
    waiting = [Waiting(i, images, at, batch=batch) for i, (images, at, batch) in enumerate(requests)]
    grants = behind_interactive(waiting, free, 100.0, fifo, delay_s)
    assert sum(g.images for g in grants) == min(free, sum(images for images, _, _ in requests))
    place = {grant.request: at for at, grant in enumerate(grants)}
    for early in waiting:
        for late in waiting[early.request + 1 :]:
            if place.get(early.request, len(waiting)) > place.get(late.request, len(waiting)):
                assert early.batch and not late.batch and late.arrived_s - early.arrived_s <= delay_s + 1e-9


def test_the_turn_goes_to_the_model_that_has_had_the_least():
    assert least_served({"a": 2.0, "b": 1.0, "c": 3.0}) == "b"
    assert least_served({"a": 1.0, "b": 1.0}) == "a"
