"""In Ray Serve's proxies: a request whose replica dies is made again by another one, or answered 503.

Ray's proxy answers such a request with 500, or cuts its answer off. A request with a seed gives the same image again,
so as long as nothing has been sent to the client, it can be made again without the client noticing. The proxies load
this module where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names fewstep.commands.cluster.middlewares.
"""

import asyncio
import logging
import re
from collections.abc import Sequence

import msgspec
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.access import request_id
from server.http.errors import error_body, error_response
from server.http.event_stream import MEDIA_TYPE as EVENTS
from server.http.event_stream import message as event
from server.http.routes import error_texts
from server.processes.pool import DIED_TWICE, MAX_REPLAYS
from server.scheduler.refusal import Refusal, escaped, unavailable
from server.settings.settings import MODEL_NAME

logger = logging.getLogger(__name__)

PROBE = "/-/replays"  # answered here: whether the proxies have this module
OURS = b"traceparent"  # a header of each answer of ours, and of none of Ray's
MODEL_HEADER = b"serve_multiplexed_model_id"  # Ray's name for it; server.hosts.ray_routing reads it
REPLAYS = b"x-replays"  # how often the request was made again, on an answer that took more than one replica
REQUEST_ID = b"x-request-id"  # set by Ray, too
OPEN_INFERENCE = re.compile(r"/v2/models/([^/]+)/")
KEPT_BYTES = 8 * 2**20  # of a body; a longer one is not kept, and its request not made again
ALL_KEPT_BYTES = 128 * 2**20  # of all bodies of a proxy
READ_BYTES = 65_536  # a longer beginning of a body is not searched for the model's name
FIRST_S = 5.0  # how long the beginning of a body is waited for before a replica is chosen

DIED = unavailable(DIED_TWICE, code="worker_lost")
NO_REPLICA = unavailable(
    "no replica has answered; the cluster may be starting some; try again soon", code="worker_lost"
)
NOT_KEPT = unavailable("the replica died, and the body was too long to be kept; send it again", code="worker_lost")
CUT_OFF = unavailable("the replica died after the answer had begun; send the request again", code="worker_lost")


def middlewares() -> list[Middleware]:
    """What Ray calls at the start of a proxy."""
    return [Middleware(Replays)]


class _Named(msgspec.Struct):
    """The part of a JSON body that says which model it is for."""

    model: str | None = None


def model_of(path: str, body: bytes) -> str:
    """The model that a request names in its path or in its JSON, as far as that is here; "" where it names none."""
    if match := OPEN_INFERENCE.match(path):
        name = match[1]
    else:
        try:
            name = msgspec.json.decode(body, type=_Named).model or ""
        except msgspec.DecodeError:  # a form, the first part of a long body, or nothing that is read here
            return ""
    return name if MODEL_NAME.fullmatch(name) else ""


class Replays:
    """Around the ASGI application of Ray's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.kept_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray's own paths
            inner = PlainTextResponse("ok\n") if scope.get("path") == PROBE else self.app
            await inner(scope, receive, send)
            return
        request = Recording(self, receive)
        model = model_of(scope["path"], await request.beginning())
        replays = 0
        try:
            while True:
                answer = Answer(send, replays)
                await self.app(_copied(scope, model), request.again(), answer.send)
                if request.left or answer.complete:
                    return
                if answer.started:
                    await answer.cut_off()
                    return
                if answer.refused or not request.whole or replays == MAX_REPLAYS:
                    why = NO_REPLICA if answer.refused else DIED if request.whole else NOT_KEPT
                    await _refuse(scope, receive, send, why)
                    return
                replays += 1
                logger.warning("a replica died; its request to %s is made again", escaped(scope["path"]))
        finally:
            request.forget()


def _copied(scope: Scope, model: str) -> Scope:
    """The scope for one attempt: Ray writes into it."""
    named = [(MODEL_HEADER, model.encode())] if model else []
    return {**scope, "headers": [*(pair for pair in scope["headers"] if pair[0] != MODEL_HEADER), *named]}


async def _refuse(scope: Scope, receive: Receive, send: Send, why: Refusal) -> None:
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == REQUEST_ID), None)
    response = error_response(why, {"X-Request-Id": request_id(given)}, as_text=error_texts(scope["path"]))
    await response(scope, receive, send)


class Recording:
    """What a client sends: passed on as it comes, and kept, so that it can be passed on once more."""

    def __init__(self, proxy: Replays, receive: Receive) -> None:
        self.proxy = proxy
        self.receive = receive
        self.messages: list[Message] = []
        self.bytes = 0
        self.whole = True  # whether everything that came is kept
        self.left = False  # the client has

    async def beginning(self) -> bytes:
        """The first part of the body, if it comes soon, and is short and whole enough to be searched."""
        try:
            async with asyncio.timeout(FIRST_S):
                message = await self._next()
        except TimeoutError:
            return b""
        body = message.get("body", b"")
        return body if len(body) <= READ_BYTES else b""

    def again(self) -> Receive:
        """An ASGI receive that begins with what is kept."""
        kept = iter(list(self.messages))

        async def receive() -> Message:
            return next(kept, None) or await self._next()

        return receive

    async def _next(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            self.left = True
            return message
        size = len(message.get("body", b""))
        room = self.bytes + size <= KEPT_BYTES and self.proxy.kept_bytes + size <= ALL_KEPT_BYTES
        if self.whole and (room or not self.messages):  # the first one has been read before it is passed on
            self.bytes += size
            self.proxy.kept_bytes += size
            self.messages.append(message)
        self.whole = self.whole and room
        return message

    def forget(self) -> None:
        self.proxy.kept_bytes -= self.bytes


class Answer:
    """What a replica answers, held back until something of the body is there: until then it can be made again."""

    def __init__(self, send: Send, replays: int) -> None:
        """replays: how many replicas have died before this one."""
        self.client = send
        self.replays = replays
        self.head: Message | None = None  # not yet sent
        self.started = False
        self.complete = False
        self.refused = False  # by Ray itself
        self.events = False  # a stream of them

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Sequence[tuple[bytes, bytes]] = list(message.get("headers", ()))
            self.refused = OURS not in [name.lower() for name, _ in headers]
            self.events = any(name.lower() == b"content-type" and EVENTS.encode() in value for name, value in headers)
            counted = [(REPLAYS, b"%d" % self.replays)] if self.replays else []
            self.head = {**message, "headers": [*_one_request_id(headers), *counted]}
        elif not self.refused:
            if self.head is not None:
                await self.client(self.head)
                self.head, self.started = None, True
            await self.client(message)
            self.complete = not message.get("more_body", False)

    async def cut_off(self) -> None:
        """End an answer whose replica has died. Raises ConnectionError where its form has no place for an error."""
        if not self.events:
            raise ConnectionError(CUT_OFF.message)
        await self.client({"type": "http.response.body", "body": event("error", error_body(CUT_OFF))})


def _one_request_id(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Ray adds the same header behind ours."""
    first = next((pair for pair in headers if pair[0].lower() == REQUEST_ID), None)
    return [pair for pair in headers if pair[0].lower() != REQUEST_ID or pair is first]
