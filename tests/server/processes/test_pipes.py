"""The socket between HTTP processes and a worker: long messages never block the sender, and all arrive in order."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from server.processes import pipes
from server.processes.messages import Answer, MessageReader, Ready, encode
from server.processes.pipes import HttpLinks, WorkerGoneError, WorkerLink
from server.scheduler.events import Failed, Health
from server.scheduler.request import Cancel, Edit, ImageRequest, Submit
from tests.server.processes.forks import exit_code, fork


def submit(number: int, image_bytes: int) -> Submit:
    edit = Edit((3, 1, image_bytes // 3), bytes(image_bytes), None)
    return Submit(number, ImageRequest("tiny", 4, (0,), (-1,), (80.0,), edit=edit), 0.0, 60.0)


def reset(end: socket.socket, other: socket.socket) -> None:
    """Close with what the other side has sent unread, which resets the connection."""
    other.sendall(b"unread")
    end.close()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Two HTTP processes' sockets to one worker: (HTTP end, worker's end) of each."""
    made = [socket.socketpair() for _ in range(2)]
    yield made
    for pair in made:
        for end in pair:
            end.close()


def with_link(scenario: Callable[[WorkerLink, list[Answer], asyncio.Event, HttpLinks], Awaitable[Any]]) -> None:
    """Run a scenario with the HTTP end, what it has received, whether its worker is gone, and the worker's end."""

    async def scene() -> None:
        http_end, worker_end = socket.socketpair()
        received, gone = [], asyncio.Event()
        link = WorkerLink(received.append, gone.set)
        with pytest.raises(WorkerGoneError):
            link.send(Cancel(0))  # not connected yet
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=http_end)
        try:
            await asyncio.wait_for(scenario(link, received, gone, HttpLinks([worker_end])), 60)
        finally:
            worker_end.close()
            link.close()

    asyncio.run(scene())


def take(links: HttpLinks, count: int) -> list[Any]:
    taken: list[Any] = []
    while len(taken) < count:
        more = links.take(60)
        assert more is not None
        taken += more
    return taken


def test_messages_longer_than_the_socket_takes_arrive_in_order_with_those_that_come_meanwhile():
    async def scenario(link: WorkerLink, received: list[Answer], gone: asyncio.Event, links: HttpLinks) -> None:
        sent = [submit(0, 3_000_000), Cancel(0), submit(1, 30), Cancel(1), submit(2, 600_000)]
        for message in sent:  # the worker does not read yet
            link.send(message)
        assert await asyncio.to_thread(take, links, len(sent)) == sent

    with_link(scenario)


def test_a_worker_that_never_reads_is_refused_more_than_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipes, "MAX_UNSENT_BYTES", 3_000_000)

    async def scenario(link: WorkerLink, received: list[Answer], gone: asyncio.Event, links: HttpLinks) -> None:
        with pytest.raises(WorkerGoneError, match="stopped taking requests"):
            for number in range(10):
                link.send(submit(number, 900_000))
        assert link.transport is not None and link.transport.get_write_buffer_size() < 4_000_000
        assert len(await asyncio.to_thread(take, links, 3)) >= 3, "those before it are whole"

    with_link(scenario)


def test_a_worker_that_dies_while_a_message_is_written_is_gone_and_takes_no_more():
    async def scenario(link: WorkerLink, received: list[Answer], gone: asyncio.Event, links: HttpLinks) -> None:
        link.send(submit(0, 3_000_000))
        links.sockets[0].close()
        await gone.wait()
        with pytest.raises(WorkerGoneError):
            link.send(Cancel(0))

    with_link(scenario)


def test_a_receiver_that_raises_gives_the_worker_up_too():
    async def scene() -> None:
        http_end, worker_end = socket.socketpair()
        gone = asyncio.Event()
        link = WorkerLink(lambda answer: [].remove(answer), gone.set)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=http_end)
        HttpLinks([worker_end]).send([Health("a", True)])
        await asyncio.wait_for(gone.wait(), 60)
        worker_end.close()

    asyncio.run(scene())


def test_a_worker_takes_the_messages_of_all_and_waits_for_the_rest_of_half_a_message(pairs: list):
    (first, _), (second, _) = pairs
    links = HttpLinks([worker for _, worker in pairs])
    message = encode(submit(3, 300))
    first.sendall(message[:100])
    second.sendall(encode(Cancel(1)))
    assert take(links, 1) == [Cancel(1)]
    assert links.take(0) == []
    first.sendall(message[100:] + encode(Cancel(3))[:2])
    assert links.take(60) == [submit(3, 300)]
    first.close()  # in the middle of a message
    assert links.take(60) == [], "the other one is still there"
    second.sendall(encode(Cancel(5)))
    assert links.take(60) == [Cancel(5)]
    second.close()
    assert links.take(60) is None and links.take(0) is None


@pytest.mark.parametrize("both", [False, True])
def test_a_reset_is_the_end_of_one_http_process_and_the_loop_ends_with_the_last(pairs: list, both: bool):
    links = HttpLinks([worker for _, worker in pairs])
    for http, worker in pairs[: 1 + both]:
        reset(http, worker)
    taken = [message for _ in range(2) if (taken := links.take(0)) for message in taken]
    assert taken == [] and (links.take(0) is None) == both
    links.send([Health("tiny", True)])  # to the HTTP processes that are left


def test_bytes_that_are_no_message_are_an_error_of_the_worker(pairs: list):
    links = HttpLinks([worker for _, worker in pairs])
    pairs[0][0].sendall(struct.pack("!IB", 3, 99) + b"abc")
    with pytest.raises(ValueError, match="no message begins with"):
        links.take(60)


def test_an_answer_goes_to_the_http_process_that_asked_and_news_go_to_all(pairs: list):
    links = HttpLinks([worker for _, worker in pairs])
    failed = [Failed(number, "failed", "network_error", "it failed") for number in range(4)]
    answers = [failed[0], Health("tiny", False), *failed[1:], Ready({}, 1.0)]
    links.send(answers)
    for process, (http, _) in enumerate(pairs):
        expected = [each for each in answers if getattr(each, "id", process) % 2 == process]
        assert http.recv(65536) == b"".join(map(encode, expected))


def test_an_http_process_that_does_not_read_delays_nobody_and_misses_nothing(pairs: list):
    (slow, _), (quick, _) = pairs
    links = HttpLinks([worker for _, worker in pairs])
    sent = [Failed(number, "failed", "network_error", "x" * 300_000) for number in range(0, 40, 2)]
    for answer in sent:  # of which the socket takes none whole
        links.send([answer, Failed(1, "failed", "network_error", "")])
    expected = len(encode(Failed(1, "failed", "network_error", ""))) * len(sent)
    assert len(quick.recv(expected, socket.MSG_WAITALL)) == expected
    reader, received = MessageReader(), []
    while len(received) < len(sent):
        received += reader.feed(slow.recv(65536))
    assert received == sent


def test_what_an_http_process_has_not_taken_when_it_dies_is_dropped(pairs: list, until: Callable):
    (dead, _), (other, _) = pairs
    links = HttpLinks([worker for _, worker in pairs])
    links.send([Failed(0, "failed", "network_error", "x" * 3_000_000)])
    assert links.unsent[0]
    dead.close()
    until(lambda: not links.unsent[0])
    links.send([Health("tiny", True)])
    assert other.recv(4096) == encode(Health("tiny", True))


def test_a_worker_that_is_busy_ends_when_the_last_http_process_closes_and_not_before(pairs: list):
    ours, its = socket.socketpair()

    def busy() -> None:
        for http, _ in pairs:
            http.close()
        with HttpLinks([worker for _, worker in pairs]).exit_when_closed():
            while word := its.recv(1):
                its.sendall(word)

    pid = fork(busy)
    its.close()
    for _, worker in pairs:
        worker.close()
    pairs[0][0].close()
    for _ in range(1000):  # it notices a closed socket within a few of these
        ours.sendall(b"!")
        assert ours.recv(1) == b"!", "it has ended too early"
    pairs[1][0].close()
    assert exit_code(pid) == 0
    ours.close()
