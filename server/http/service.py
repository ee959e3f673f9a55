"""What the HTTP dialects need of the scheduler, and how they wait for images or the client's departure."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import ClientDisconnect, Request

from server.http import departure
from server.http.access import COMPLETE, record_of
from server.scheduler.events import Event, Failed, Finished
from server.scheduler.model import ModelInfo
from server.scheduler.refusal import Kind, Refusal, shown
from server.scheduler.request import Edit, Given, ImageRequest

# What a route that makes images raises, whatever its dialect.
IMAGE_REFUSALS: tuple[Kind, ...] = (
    "invalid", "slow", "too_large", "unsupported", "full", "failed", "unavailable", "timeout",
)  # fmt: skip
CODINGS = {b"content-encoding": "Content-Encoding", b"transfer-encoding": "Transfer-Encoding"}


class Stream(Protocol):
    """The events of one request: server.processes.stream.PoolStream or server.scheduler.local.EventStream."""

    def put(self, event: Any) -> None: ...

    def cancel(self) -> None: ...

    @property
    def pending(self) -> bool: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...


class ImageService(Protocol):
    """server.processes.pool.WorkerPool, or another with these methods."""

    @property
    def models(self) -> Mapping[str, ModelInfo]: ...

    def check_ready(self, model: str | None = None) -> None: ...

    def admit(self, model: str, images: int, calls: int) -> Any: ...

    def release(self, ticket: Any) -> None: ...

    def submit(self, request: ImageRequest, timeout_s: float) -> Stream: ...


def is_ready(check_ready: Callable[[], None]) -> bool:
    """What /readyz would say."""
    try:
        check_ready()
    except Refusal:
        return False
    return True


class Pictures(Struct, frozen=True):
    """What the decoded pictures of a request are."""

    edit: Edit | None = None  # what its images begin at
    conditions: tuple[Given, ...] = ()  # what the model is shown


class Order(Struct, frozen=True):
    """A request that a dialect has understood."""

    request: ImageRequest  # without its pictures
    timeout_s: float
    decode: Callable[[], Pictures] | None = None  # decodes its pictures, once it has been admitted; may raise Refusal


async def made(service: ImageService, order: Order, http: Request) -> Finished:
    """The images of a request whose body has been read. Raises Refusal, or ClientDisconnect when the client leaves."""
    record = record_of(http.scope)
    record.request = request = order.request
    ticket = service.admit(request.model, request.images, request.rows)
    try:
        record.request = request = await with_pictures(order)
        record.stage = "images"
        record.finished = done = await finished(service, request, order.timeout_s, http)
    finally:
        service.release(ticket)
    return done


async def with_pictures(order: Order) -> ImageRequest:
    """The request with its decoded pictures, if it has any; a small file may take a second. Raises Refusal."""
    if order.decode is None:
        return order.request
    pictures = await asyncio.to_thread(order.decode)
    request = order.request
    return replace(request, edit=pictures.edit, conditions=(*request.conditions, *pictures.conditions))


async def finished(service: ImageService, asked: ImageRequest, timeout_s: float, http: Request) -> Finished:
    """The images of a request whose body has been read. Raises Refusal, or ClientDisconnect when the client leaves."""
    watch = Watch(service.submit(asked, timeout_s), timeout_s, http)
    last: Event | None = None
    try:
        async for event in watch.stream:  # to its end: an iterator that is given up costs a task to close it
            last = event
    finally:
        watch.close()
    if isinstance(last, Failed):
        raise last.refusal()
    if isinstance(last, Finished):
        return last
    raise ClientDisconnect


class Watch:
    """Ends a request's stream at its deadline, with a Failed, and when its client leaves, without one."""

    def __init__(self, stream: Stream, timeout_s: float, http: Request) -> None:
        self.stream = stream
        self.timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, timeout_s)
        self.doubt: Callable[[], object] | None = None  # called when the client may have left; see departure.watch
        self.forget_client = departure.watch(http, stream.cancel, self._doubted)

    def _doubted(self) -> None:
        if self.doubt is not None:
            self.doubt()

    def _expire(self, timeout_s: float) -> None:
        message = f"the images were not ready after {timeout_s:g} s; ask for fewer or retry later"
        self.stream.put(Failed.of(-1, Refusal("timeout", "timeout", message)))

    def close(self) -> None:
        """Always call it: what still runs of the request is cancelled."""
        self.timer.cancel()
        self.forget_client()
        self.stream.cancel()


async def read_body(http: Request, limit: int, limit_s: float) -> bytes:
    """The whole body. Raises Refusal beyond `limit` bytes, whatever Content-Length says, and after limit_s seconds."""
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    for name, coding in http.headers.raw:
        if name in CODINGS and coding.strip().lower() not in (b"", b"identity", b"chunked"):
            header = f"{CODINGS[name]}: {shown(coding.decode('latin-1'))}"
            raise Refusal("unsupported", "unsupported_encoding", f"the body must be sent as it is, not with {header}")
    if COMPLETE in http.scope:  # nearly always; a timer takes as long as reading
        return await _received(http, limit)
    try:
        async with asyncio.timeout(limit_s):
            return await _received(http, limit)
    except TimeoutError as error:
        message = f"the body was not complete after {limit_s:g} s; send it in one piece"
        raise Refusal("slow", "body_timeout", message) from error


async def _received(http: Request, limit: int) -> bytes:
    """The whole body, however long it takes. Raises Refusal beyond `limit` bytes."""
    body, more = bytearray(), True
    while more:
        message = await http.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> Refusal:
    message = f"the body is larger than {limit} bytes; save pictures smaller, or raise the server's max_body_bytes"
    return Refusal("too_large", "body_too_large", message)
