"""LitServe as the host: our hooks for its LitAPI, LitSpec and LitLoop.

    LitSpec   one HTTP dialect: its routes
    LitAPI    setup loads the engines, authorize checks the API key, health says whether a request would be served
    LitLoop   the step scheduler: images come and go at every network call, not at every request

LitServe 0.2.19's own LitServer runs them (server/hosts/litserve_stock.py). `python -m server` runs the same dialects
and the same loop without it, because LitServer spawns workers (which import everything again, LitServe's 0.3 s among
it), passes every message through a manager process twice, does not cancel the work of clients that leave, and loses
accepted requests when a worker dies.
"""

import asyncio
import itertools
import queue
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from litserve import LitAPI
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, LoopResponseType, ResponseBufferItem
from starlette.requests import Request
from starlette.responses import Response

from server.http.errors import error_response
from server.http.gate import KeyRing
from server.http.routes import Route
from server.http.service import is_ready
from server.processes import worker
from server.processes.messages import Answer
from server.scheduler.events import Failed, Finished, Progress, is_last
from server.scheduler.local import EventStream
from server.scheduler.model import Model, ModelInfo
from server.scheduler.policy import Policy
from server.scheduler.refusal import Refusal
from server.scheduler.request import ImageRequest, Submit

LITSERVE_SENTINEL = (None, None, None, None)  # what LitServe's queue holds when the server ends


class DialectSpec(LitSpec):
    """The routes of a dialect as LitServe's endpoints."""

    def __init__(self, routes: Sequence[Route]) -> None:
        super().__init__()
        self.api_path = routes[0].path
        self.routes = routes

    @property
    def stream(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """True keeps LitServe's gzip away: PNG does not shrink, and gzip would stall the event loop."""
        return True

    def pre_setup(self, lit_api: LitAPI) -> None:
        for route in self.routes:
            self.add_endpoint(route.path, route.answer, [*route.methods])


class StepAPI(LitAPI):
    """Requests never pass through LitAPI's predict: StepLoop takes them."""

    models: Mapping[str, Model]  # in a worker, after setup
    warm_up_s = 0.0

    def __init__(
        self,
        load: Callable[[], Mapping[str, Model]],
        policy: Policy,
        keys: KeyRing,
        check_ready: Callable[[], None],
        spec: DialectSpec,
    ) -> None:
        super().__init__(loop=StepLoop(), spec=spec, api_path=spec.api_path)
        self.load = load
        self.policy = policy
        self.keys = keys
        self.check_ready = check_ready

    def setup(self, device: str) -> None:
        """In a worker: load and warm up every model."""
        started_s = time.monotonic()
        self.models = self.load()
        self.warm_up_s = time.monotonic() - started_s

    async def authorize(self, request: Request) -> None:  # a coroutine: LitServe runs plain functions in a thread
        """Raises Refusal unless the request carries a key of this server, or none is needed."""
        self.keys.check(request.headers)

    def health(self) -> bool:
        """Whether a request would be served."""
        return is_ready(self.check_ready)


class StepLoop(LitLoop):
    """Runs the engine loop between a queue of requests and a transport of answers."""

    def pre_setup(self, lit_api: LitAPI, spec: LitSpec | None = None) -> None:
        """Nothing: LitServe checks here that predict is a generator, and this loop does not call predict."""

    def __call__(
        self,
        lit_api: LitAPI,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """Until the queue ends."""
        assert isinstance(lit_api, StepAPI)
        worker.serve(QueueLinks(request_queue, transport), lit_api.models, lit_api.policy, lit_api.warm_up_s)


class QueueLinks:
    """LitServe's own request queue and transport, with the methods of server.processes.pipes.HttpLinks."""

    def __init__(self, requests: Any, transport: Any) -> None:
        self.requests = requests
        self.transport = transport
        self.ids = itertools.count()
        self.senders: dict[int, tuple[int, str]] = {}  # id -> LitServe's response queue and uid

    def take(self, patience_s: float | None) -> list[Any] | None:
        """See server.scheduler.loop.Inbox."""
        messages: list[Any] = []
        try:
            while (item := self.requests.get(patience_s != 0, patience_s)) != LITSERVE_SENTINEL:
                response_queue, uid, accepted_s, (request, timeout_s) = item
                number = next(self.ids)
                self.senders[number] = (response_queue, uid)
                messages.append(Submit(number, request, accepted_s, accepted_s + timeout_s))
                patience_s = 0
        except queue.Empty:
            return messages
        return None

    def send(self, answers: Sequence[Answer]) -> None:
        """The events of requests; LitServe has no place for health and statistics."""
        for answer in answers:
            if isinstance(answer, Progress | Finished | Failed):
                response_queue, uid = self.senders[answer.id]
                if is_last(answer):
                    del self.senders[answer.id]
                message = (answer, LitAPIStatus.OK, LoopResponseType.STREAMING, 0)
                self.transport.send((uid, message), consumer_id=response_queue)


class StockService:
    """server.http.service.ImageService on LitServe's own queue and buffer, inside LitServe's API server process."""

    models: Mapping[str, ModelInfo] = {}
    spec: LitSpec

    def check_ready(self, model: str | None = None) -> None:
        """LitServe's /health knows whether its workers are ready."""

    def admit(self, model: str, images: int, calls: int) -> None:
        """Every request: LitServe has no bound."""

    def release(self, ticket: None) -> None: ...

    def submit(self, request: ImageRequest, timeout_s: float) -> EventStream:
        """Cancelling the stream ends the wait; LitServe's worker finishes the images all the same."""
        uid, item = str(uuid.uuid4()), ResponseBufferItem(asyncio.Event(), deque())
        spec = self.spec
        assert spec.response_buffer is not None and spec.request_queue is not None
        buffer = spec.response_buffer
        buffer[uid] = item
        spec.request_queue.put((spec.response_queue_id, uid, time.monotonic(), (request, timeout_s)))
        stream = EventStream(lambda: passing.cancel())
        passing = asyncio.ensure_future(_pass_on(item, stream))
        passing.add_done_callback(lambda _: buffer.pop(uid, None))
        return stream


async def _pass_on(item: ResponseBufferItem, stream: EventStream) -> None:
    """From LitServe's buffer to the stream, up to the last event."""
    events = item.response_queue
    assert events is not None
    while True:
        await item.event.wait()
        item.event.clear()
        while events:
            event, _ = events.popleft()
            stream.put(event)
            if is_last(event):
                return


async def refused(request: Request, error: Exception) -> Response:
    """FastAPI's handler for Refusal."""
    assert isinstance(error, Refusal)
    return error_response(error)
