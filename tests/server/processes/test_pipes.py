"""The request pipe: long messages never block the sender, and all arrive in order."""

from collections.abc import Callable

import pytest

from server.http.dialects.edits import Edit
from server.http.dialects.native import GenerateRequest
from server.processes import pipes as transport
from server.processes.messages import Cancel, Submit
from server.processes.pipes import Link, WorkerGoneError


def submit(number: int, image_bytes: int) -> Submit:
    edit = Edit((3, 1, image_bytes // 3), bytes(image_bytes), None, 0.5)
    request = GenerateRequest(4, 1, number, (0,), "png", "tiny", 60.0, edit)
    return Submit(number, request, 0.0, 60.0)


def test_messages_longer_than_the_pipe_arrive_in_order_with_those_that_come_meanwhile():
    link = Link.create()
    sent = [submit(0, 3_000_000), Cancel(0), submit(1, 30), Cancel(1), submit(2, 600_000)]
    for message in sent:  # nobody reads yet: the first alone is fifty times what the pipe takes
        link.requests.put(message)
    assert [link.requests.get() for _ in sent] == sent
    link.requests.put(Cancel(2))
    assert link.requests.get() == Cancel(2)
    link.close()


def test_a_pipe_that_has_caught_up_is_written_without_the_thread(until: Callable):
    link = Link.create()
    link.requests.put(submit(0, 300_000))
    assert isinstance(link.requests.get(), Submit)
    until(lambda: not link.requests.unsent_bytes)  # the thread has written it all, and is about to say so
    link.requests.unsent = None  # pyright: ignore[reportAttributeAccessIssue] - would raise in the thread's queue
    link.requests.put(Cancel(0))
    assert link.requests.get() == Cancel(0)


def test_a_worker_that_never_reads_is_refused_more_than_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transport, "MAX_UNSENT_BYTES", 3_000_000)
    link = Link.create()
    with pytest.raises(WorkerGoneError, match="stopped taking requests"):
        for number in range(10):
            link.requests.put(submit(number, 900_000))
    assert link.requests.unsent_bytes <= 3_000_000
    link.close()


def test_a_worker_that_dies_while_a_message_is_written_lets_the_thread_go_and_takes_no_more(until: Callable):
    link = Link.create()
    link.requests.put(submit(0, 3_000_000))
    assert link.requests.sender is not None and link.requests.reader is not None
    link.requests.reader.close()
    until(lambda: link.requests.broken and not link.requests.unsent_bytes)
    with pytest.raises(WorkerGoneError):
        link.requests.put(submit(1, 3_000_000))
    link.close()
    link.requests.sender.join(60)
    assert not link.requests.sender.is_alive() and link.requests.writer is not None and link.requests.writer.closed
