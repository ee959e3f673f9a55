"""The step scheduler in this process: no HTTP, no worker processes. Submit requests, iterate over their events.

with LocalService.open({"fashion": Path("models/fashion/engine")}) as service:
    finished = service.submit(image_request(service.manifests["fashion"], steps=4, seed=7)).result()
"""

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol, Self, TypeGuard

from export.manifest import Manifest, all_served, read_student
from server.scheduler.calibration import SharedTimes
from server.scheduler.encoding import Encoders
from server.scheduler.events import Accepted, Event, Failed, Finished, Health, is_last
from server.scheduler.loading import LoadOptions, load_model
from server.scheduler.loop import Delivery, EngineLoop, QueueInbox
from server.scheduler.model import Model
from server.scheduler.policy import Policy, policy_of
from server.scheduler.refusal import unavailable
from server.scheduler.request import Cancel, ImageRequest, Submit
from server.scheduler.stats import Stats
from server.scheduler.validate import check_request

logger = logging.getLogger(__name__)

DAY_S = 86_400.0
FIFO = policy_of("fifo", ageing=15.0, batch_delay_s=10.0)  # as a server's with the default settings
CLOSED = "the service is closed"


class EventStream:
    """The events of one request, for one consumer: `for event in stream`, `async for`, or `result()`.

    Iteration ends after Finished or Failed, and at once after `cancel`. To stop iterating does not cancel the request.
    """

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._wake: Callable[[], object] | None = None  # set while an event loop waits
        self._arrived = asyncio.Event()  # of that event loop
        self._ended = False  # there is nothing more to iterate over
        self._last: Event | None = None  # Finished or Failed, once it has been taken

    def put(self, event: Event | None) -> None:
        """From any thread. None only wakes a consumer."""
        self._events.put(event)
        if wake := self._wake:
            wake()

    def cancel(self) -> None:
        """Give up, from any thread: the request's slots become free before the next network call."""
        self._ended = True
        self._cancel()
        self.put(None)

    @property
    def pending(self) -> bool:
        """Whether the next event has come already."""
        return not (self._ended or self._events.empty())

    def result(self) -> Finished:
        """Wait for the images. Raises Refusal."""
        for _ in self:
            pass
        return self._result()

    async def aresult(self) -> Finished:
        """Wait for the images on an event loop. Raises Refusal."""
        async for _ in self:
            pass
        return self._result()

    def __iter__(self) -> Iterator[Event]:
        while not self._ended:
            event = self._events.get()
            if self._take(event):
                yield event

    def __aiter__(self) -> AsyncIterator[Event]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the event loop has ended, and the consumer with it
                loop.call_soon_threadsafe(arrived.set)

        self._wake, self._arrived = wake, arrived
        return self

    async def __anext__(self) -> Event:
        while not self._ended:
            self._arrived.clear()
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                await self._arrived.wait()
                continue
            if self._take(event):
                return event
        raise StopAsyncIteration

    def _take(self, event: Event | None) -> TypeGuard[Event]:
        """Whether the consumer gets it: after `cancel`, none."""
        if event is None or self._ended:
            return False
        if is_last(event):
            self._last, self._ended = event, True
        return True

    def _result(self) -> Finished:
        if isinstance(self._last, Failed):
            raise self._last.refusal()
        if not isinstance(self._last, Finished):
            raise unavailable("the request was cancelled", code="cancelled")
        return self._last


class _Receiver(Protocol):
    """Where the events of a request go."""

    def put(self, event: Event, /) -> None: ...


class LocalService:
    """An engine loop in a thread of its own, and the threads that encode its images."""

    def __init__(self, models: Mapping[str, Model], manifests: Mapping[str, Manifest], policy: Policy = FIFO) -> None:
        """models: loaded, by the name of the engine. manifests: of what they serve, by the name that requests choose.
        policy: by default first come, first served, requests of priority batch 10 s behind.

        The loop runs from here until `close`.
        """
        self.manifests = manifests
        self.stats: Stats | None = None
        self.failing: set[str] = set()  # models whose network calls keep failing
        self._inbox = QueueInbox()
        self._receivers: dict[int, _Receiver] = {}
        self._ids = itertools.count()
        self._closed = False
        self._lock = threading.Lock()  # of _closed and _receivers: none is added once all have been failed
        self._encoders = Encoders(self._emit, self._broken)
        self._loop = EngineLoop(models, self._inbox, self._encoders.deliver, policy, flush=self._encoders.flush)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._encoders.start()
        self._thread.start()

    @classmethod
    def open(cls, engines: Mapping[str, Path], options: LoadOptions | None = None) -> "LocalService":
        """Load engine directories by the names to serve them under. Raises CheckpointError in a sentence."""
        announced = {name: read_student(folder, name) for name, folder in engines.items()}
        with closing(SharedTimes()) as times:
            models = {
                name: load_model(name, folder, options or LoadOptions(), times, announced[name])
                for name, folder in engines.items()
            }
        return cls(models, all_served(announced.values()))

    @property
    def closed(self) -> bool:
        """Whether no request is taken any more: after `close`, and after the loop has failed."""
        return self._closed

    def submit(self, request: ImageRequest, timeout_s: float = DAY_S) -> EventStream:
        """Begin a request, from any thread; its events start with Accepted.

        Raises Refusal when no model of this service can make it, or when the service is closed.
        """
        number = next(self._ids)
        stream = EventStream(lambda: self._give_up(number))
        self._begin(number, request, timeout_s, stream)
        return stream

    def as_finished(
        self, requests: Iterable[ImageRequest], at_once: int, timeout_s: float = DAY_S
    ) -> Generator[tuple[int, Finished], None, None]:
        """Make requests, `at_once` of them together, and yield their images as soon as they are ready, each with the
        number of its request, from 0.

        With more images at once than slots, no slot waits for work. The next requests are taken when this is iterated
        over; closing the iterator cancels those that are not finished. Raises Refusal for the first one that fails.
        """
        if at_once < 1:
            raise ValueError(f"at_once must be at least 1, not {at_once}")
        begun: dict[int, int] = {}  # the number of a request here, by that of its events
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        numbered = enumerate(requests)
        try:
            while True:
                for place, request in itertools.islice(numbered, at_once - len(begun)):
                    begun[number := next(self._ids)] = place
                    self._begin(number, request, timeout_s, events)
                if not begun:
                    return
                event = events.get()
                if isinstance(event, Failed):
                    raise event.refusal()
                if isinstance(event, Finished):
                    yield begun.pop(event.id), event
        finally:
            for number in begun:
                self._give_up(number)

    def _begin(self, number: int, request: ImageRequest, timeout_s: float, events: "_Receiver") -> None:
        check_request(request, self.manifests)
        now = time.monotonic()
        events.put(Accepted(number))
        with self._lock:
            if self._closed:
                raise unavailable(CLOSED, code="closed")
            self._receivers[number] = events
        self._inbox.put(Submit(number, request, now, now + timeout_s))

    def close(self) -> None:
        """End the loop after its present call; requests that are not finished end in Failed."""
        self._stop()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_up(self, number: int) -> None:
        if self._receivers.pop(number, None):
            self._inbox.put(Cancel(number))

    def _run(self) -> None:
        try:
            self._loop.run()
        except BaseException:  # SystemExit too: no thread ends unnoticed
            logger.exception("the engine loop has failed; the service is closed")
        self._encoders.close()
        with self._lock:
            self._closed = True
            receivers, self._receivers = self._receivers, {}
        for number, events in receivers.items():
            events.put(Failed.of(number, unavailable(CLOSED, code="closed")))

    def _broken(self, error: BaseException) -> None:
        logger.error("events could not be handed on; the service is closed", exc_info=error)
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._closed = True
        self._inbox.put(None)

    def _emit(self, events: Sequence[Delivery]) -> None:
        for event in events:
            if isinstance(event, Stats):
                self.stats = event
            elif isinstance(event, Health):
                (self.failing.discard if event.ok else self.failing.add)(event.model)
            elif receiver := (self._receivers.pop if is_last(event) else self._receivers.get)(event.id, None):
                receiver.put(event)
