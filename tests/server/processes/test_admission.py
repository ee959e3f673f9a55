import os
from copy import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.processes.admission import Admission, Room, Ticket
from server.scheduler.refusal import Refusal
from tests.server.processes.forks import forked


def admission(max_queue: int, **rooms: Room) -> Admission:
    counted = Admission(max_queue, tuple(rooms))
    counted.rooms = rooms
    return counted


def refusal(counted: Admission, model: str, images: int, steps: int) -> Refusal:
    with pytest.raises(Refusal) as caught:
        counted.enter(model, images, steps)
    return caught.value


def test_images_beyond_the_slots_wait_and_no_more_than_max_queue_of_them():
    counted = admission(2, tiny=Room(slots=4, workers=1, row_s=0.5))
    tickets = [counted.enter("tiny", 3, 1), counted.enter("tiny", 3, 1)]
    assert refusal(counted, "tiny", 1, 1).kind == "full"
    counted.leave(tickets[0])
    counted.enter("tiny", 3, 1)
    assert counted.images == 6


def test_retry_after_is_the_time_the_backlog_needs():
    counted = admission(56, tiny=Room(slots=8, workers=1, row_s=0.5 / 8))
    ticket = counted.enter("tiny", 64, 4)
    assert refusal(counted, "tiny", 64, 4).retry_after_s == 16  # 256 rows, 8 per half second
    assert refusal(counted, "tiny", 1, 4).retry_after_s == 1
    counted.leave(ticket)
    assert (counted.images, counted.work_s) == (0, 0.0)


def test_two_workers_need_half_the_time():
    counted = admission(48, tiny=Room(slots=16, workers=2, row_s=0.5 / 8))
    counted.enter("tiny", 64, 4)
    assert refusal(counted, "tiny", 64, 4).retry_after_s == 8


def test_models_share_the_queue_and_their_network_calls_take_the_time_they_take():
    rooms = {"slow": Room(slots=4, workers=1, row_s=1.0), "fast": Room(slots=4, workers=1, row_s=0.1)}
    counted = admission(6, **rooms)
    counted.enter("slow", 10, 1)
    counted.enter("fast", 4, 5)  # all of them have slots
    error = refusal(counted, "fast", 1, 1)
    assert (error.kind, error.retry_after_s) == ("full", 1)  # (10 + 2) s for 14 images
    assert refusal(counted, "fast", 9, 1).retry_after_s == 8


def test_free_slots_of_one_model_are_no_room_for_another():
    counted = admission(6, slow=Room(slots=4, workers=1, row_s=1.0), fast=Room(slots=4, workers=1, row_s=0.1))
    counted.enter("fast", 1, 1)
    counted.enter("slow", 10, 1)
    assert refusal(counted, "slow", 1, 1).kind == "full"
    counted.enter("fast", 3, 1)


def test_a_request_that_could_never_fit_is_not_told_to_come_back():
    error = refusal(admission(2, tiny=Room(4, 1, 0.1)), "tiny", 7, 1)
    assert (error.kind, error.param) == ("invalid", "n")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.integers(1, 8)), max_size=30), st.randoms())
def test_what_enters_and_leaves_in_any_order_leaves_nothing_behind(requests: list, random):
    counted = admission(20, a=Room(4, 1, 0.3), b=Room(2, 1, 0.7))
    tickets = []
    for request in requests:
        try:
            tickets.append(counted.enter(*request))
        except Refusal as error:
            assert error.retry_after_s is not None and 1 <= error.retry_after_s <= 200
        waiting = max(0, counted.held("a") - 4) + max(0, counted.held("b") - 2)
        assert waiting <= 20
        if tickets and random.random() < 0.4:
            counted.leave(tickets.pop(random.randrange(len(tickets))))
    for ticket in tickets:
        counted.leave(ticket)
    assert (counted.images, counted.work_s) == (0, 0.0)


def test_processes_have_one_bound_together_and_count_what_each_of_them_accepted():
    rooms = {"tiny": Room(slots=4, workers=1, row_s=0.5)}
    shared = Admission(2, ("tiny",), processes=2)
    first, second = copy(shared), copy(shared)
    for number, process in enumerate((first, second)):
        process.use_row(number)
        process.rooms = rooms
    ticket = first.enter("tiny", 3, 1)
    second.enter("tiny", 3, 1)
    assert refusal(first, "tiny", 1, 1).kind == refusal(second, "tiny", 1, 1).kind == "full"
    assert (first.images, first.work_s) == (second.images, second.work_s) == (6, 3.0)
    first.leave(ticket)
    assert (first.images, second.images) == (3, 3)
    second.enter("tiny", 3, 1)


PROCESSES, ROUNDS = 3, 3000


def test_processes_that_enter_at_once_never_hold_more_than_the_bound(monkeypatch: pytest.MonkeyPatch):
    waiting = Admission._waiting

    def slow(self: Admission, model: str, more: int) -> int:
        """Lets another process run between the look and the entry."""
        count = waiting(self, model, more)
        os.sched_yield()
        return count

    monkeypatch.setattr(Admission, "_waiting", slow)
    counted = Admission(20, ("tiny",), PROCESSES)
    counted.rooms = {"tiny": Room(slots=4, workers=1, row_s=0.5)}

    def enter(process: int) -> None:
        counted.use_row(process)
        held: list[Ticket] = []
        for turn in range(ROUNDS):
            try:
                held.append(counted.enter("tiny", 1 + turn % 3, 1))
            except Refusal:  # it is full: of this process's images, or of the others'
                for ticket in held[::2]:
                    counted.leave(ticket)
                held = held[1::2]
            assert counted.images <= 24
        for ticket in held:
            counted.leave(ticket)

    assert forked(enter, PROCESSES) == [0] * PROCESSES
    assert (counted.images, counted.work_s) == (0, 0.0)
