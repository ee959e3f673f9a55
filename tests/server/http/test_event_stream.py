"""Streams of events by a clock that jumps: the comment that keeps a connection, and what remains after an answer."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from starlette.requests import Request

from server.http.departure import DEPARTURE, Departure
from server.http.event_stream import KEEPALIVE, KEEPALIVE_S, message, streamed
from server.http.service import Order
from server.processes.stream import PoolStream
from server.scheduler.events import Event, Finished, Progress
from server.scheduler.request import ImageRequest
from tests.server.stage import FakeClockLoop

ORDER = Order(ImageRequest("tiny", 1, (0,), (0,), (80.0,)), timeout_s=60.0)


class Service:
    """Answers with events at given times, in seconds. held: requests that are admitted and not released."""

    def __init__(self, loop: FakeClockLoop, times: list[tuple[float, Event]]) -> None:
        self.loop, self.times = loop, times
        self.models: Any = {}
        self.held = 0
        self.cancelled = False

    def check_ready(self, model: str | None = None) -> None: ...

    def admit(self, model: str, images: int, calls: int) -> None:
        self.held += 1

    def release(self, ticket: Any) -> None:
        self.held -= 1

    def submit(self, request: ImageRequest, timeout_s: float) -> PoolStream:
        stream = PoolStream(lambda: setattr(self, "cancelled", True))
        for at_s, event in self.times:
            self.loop.call_later(at_s, stream.put, event)
        return stream


async def _stays() -> Any:
    """A client that does not leave."""
    return await asyncio.Event().wait()


def sent(
    times: list[tuple[float, Event]], scope: Mapping[str, Any] = {}, begin: Callable[[FakeClockLoop], object] = id
) -> tuple[list[tuple[float, bytes]], Service]:
    """When which part of an answer was sent, in seconds from its start.

    scope: more of the request's. begin: called first.
    """
    parts: list[tuple[float, bytes]] = []
    with closing(FakeClockLoop()) as loop:
        service = Service(loop, times)
        begin(loop)

        async def send(part: Any) -> None:
            if part.get("body"):
                parts.append((loop.time(), part["body"]))

        async def scene() -> None:
            http = Request({"type": "http", "headers": [], **scope}, _stays)
            write = lambda event: [type(event).__name__.encode()]  # noqa: E731
            answer = await streamed(service, ORDER, http, write, {}, KEEPALIVE_S)
            assert service.held == 1
            await answer({"type": "http"}, _stays, send)

        loop.run_until_complete(scene())
    return parts, service


def test_a_comment_is_sent_every_15_seconds_in_which_nothing_else_is():
    done = Finished(0, "png", (b"x",), 0.0, 0.0)
    parts, service = sent([(20.0, Progress(0, 0, 1, 2, "png", b"x")), (51.0, done)])
    assert parts == [(15.0, KEEPALIVE), (20.0, b"Progress"), (35.0, KEEPALIVE), (50.0, KEEPALIVE), (51.0, b"Finished")]
    assert KEEPALIVE.startswith(b":") and KEEPALIVE.endswith(b"\n\n") and service.held == 0


def test_events_that_come_together_are_sent_together():
    images = [Progress(0, image, 1, 2, "png", b"x") for image in (0, 1)]
    parts, _ = sent(
        [(3.0, images[0]), (3.0, images[1]), (5.0, images[0]), (5.0, Finished(0, "png", (b"x",), 0.0, 0.0))]
    )
    assert parts == [(3.0, b"ProgressProgress"), (5.0, b"ProgressFinished")]


def test_a_comment_is_sent_at_once_when_the_client_may_have_left():
    """Twice between two events. A doubt after the last event has no effect."""
    watched: list[Departure] = []

    class Listening(Departure):
        def watch(self, on_leave, on_doubt=None):
            super().watch(on_leave, on_doubt)
            watched.append(self)

    def doubt(loop: FakeClockLoop) -> None:
        for at_s in (4.0, 6.0):
            loop.call_later(at_s, lambda: watched[0].doubted())

    done = Finished(0, "png", (b"x",), 0.0, 0.0)
    parts, _ = sent([(20.0, done)], {DEPARTURE: Listening(lambda: None)}, doubt)
    assert parts == [(4.0, KEEPALIVE), (6.0, KEEPALIVE), (20.0, b"Finished")]
    watched[0].doubted()  # after the last event


def test_a_stream_without_an_end_ends_at_its_deadline_in_an_error():
    parts, service = sent([])
    assert [at_s for at_s, part in parts if part != KEEPALIVE] == [60.0]
    assert b"event: error" in parts[-1][1] and b'"code":"timeout"' in parts[-1][1]
    assert service.held == 0 and service.cancelled


def test_an_event_is_a_name_and_one_line_of_json_whatever_it_holds():
    assert (
        message("a.b", {"text": "x\ny", "bytes": b"\xff"}) == b'event: a.b\ndata: {"text":"x\\ny","bytes":"/w=="}\n\n'
    )
