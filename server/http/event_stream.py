"""Server-sent events (WHATWG HTML, section 9.2): an answer whose parts go out while the images are made."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.http.access import Record, record_of
from server.http.answers import INLINE_BYTES, made_of
from server.http.errors import CLIENT_GONE, STATUS, error_body
from server.http.service import ImageService, Order, Watch, with_pictures
from server.scheduler.events import Event, Failed, Finished, Progress
from server.scheduler.refusal import Refusal

MEDIA_TYPE = "text/event-stream"
KEEPALIVE_S = 15.0  # proxies close connections on which nothing comes, most of them after 30 to 60 s
KEEPALIVE = b": keepalive\n\n"
# nginx would otherwise collect the events and hand them on together.
HEADERS: Mapping[str, str] = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Write = Callable[[Event], Iterable[bytes]]  # what a dialect sends for an event


def message(name: str, data: Mapping[str, Any]) -> bytes:
    """One event; bytes in its data become base64."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


class EventStream(StreamingResponse):
    """close: called once, however the answer ends."""

    def __init__(self, parts: AsyncIterator[bytes], close: Callable[[], None], headers: Mapping[str, str]) -> None:
        super().__init__(parts, headers={**HEADERS, **headers}, media_type=MEDIA_TYPE)
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Who watches for the client's departure is server.http.service.Watch, not this class."""
        try:
            await self.stream_response(send)
        finally:
            self.close()


async def streamed(
    service: ImageService, order: Order, http: Request, write: Write, headers: Mapping[str, str], keepalive_s: float
) -> Response:
    """Begin a request and answer with its events. What is wrong by now is raised as Refusal; later, an error event."""
    record = record_of(http.scope)
    record.request = order.request
    ticket = service.admit(order.request.model, order.request.images, order.request.rows)
    try:
        record.request = request = await with_pictures(order)
        record.stage = "images"
        watch = Watch(service.submit(request, order.timeout_s), order.timeout_s, http)
    except BaseException:
        service.release(ticket)
        raise

    def close() -> None:
        watch.close()
        service.release(ticket)

    return EventStream(_parts(watch, record, write, keepalive_s), close, headers)


async def _parts(watch: Watch, record: Record, write: Write, keepalive_s: float) -> AsyncIterator[bytes]:
    """What is sent, up to the end of the request or the client's departure. Events that are there together go together,
    as those of several images do after a network call."""
    last: Event | None = None
    events, together = aiter(watch.stream), bytearray()
    while True:
        try:
            event = await _next(events, watch, keepalive_s)
        except StopAsyncIteration:
            break
        if event is None:
            together += KEEPALIVE
        else:
            last = event
            if isinstance(event, Finished):
                record.finished = event
            failed = isinstance(event, Failed)
            together += b"".join([_failed(event.refusal(), record)] if failed else await _written(write, event))
        if together and (len(together) > INLINE_BYTES or not watch.stream.pending):
            yield bytes(together)
            together.clear()
    if not isinstance(last, Finished | Failed):
        record.status = CLIENT_GONE


async def _next(events: AsyncIterator[Event], watch: Watch, keepalive_s: float) -> Event | None:
    """The next event; None when none comes for so long, or when it is in doubt whether the client is there.

    Raises StopAsyncIteration behind the last one.
    """
    try:
        async with asyncio.timeout(keepalive_s) as wait:
            watch.doubt = lambda: wait.reschedule(asyncio.get_running_loop().time())
            return await anext(events)
    except TimeoutError:
        return None
    finally:
        watch.doubt = None


async def _written(write: Write, event: Event) -> Iterable[bytes]:
    """What is sent for an event; large images become text off the event loop."""
    images = [event.preview] if isinstance(event, Progress) else event.images if isinstance(event, Finished) else []
    return await made_of(images, lambda: [*write(event)])


def _failed(error: Refusal, record: Record) -> bytes:
    """The last event of a request that fails once its answer has begun; log and metrics have the status of it."""
    record.status, record.code = STATUS[error.kind], error.code
    return message("error", error_body(error))
