"""The engine loop: takes messages, gives images slots, makes one network call a turn, hands events on."""

import heapq
import logging
import math
import queue
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct, field

from export.manifest import BACKBONE, BETWEEN, AdapterNumbers
from fewstep.pixels import Pixels
from server.scheduler.events import Failed, Finished, Health, Progress
from server.scheduler.model import PROBE, Model
from server.scheduler.policy import Policy, fifo, least_served
from server.scheduler.refusal import Kind
from server.scheduler.request import ImageRequest, Message, Submit
from server.scheduler.slots import Image, ImageKey, Tick, nothing
from server.scheduler.stats import Stats, resident_bytes

logger = logging.getLogger(__name__)

STATS_EVERY_S = 0.25  # collecting them takes a quarter of a millisecond of the engine thread
PROBE_EVERY_S = 1.0  # how often a failing model is tried
FEW_SLOTS = "a log weight takes two slots, and {} has one; start the server with --capacity 2 or more"
MODEL_FAILING = "the network of {} has failed several times in a row; it is tried again every second"

Delivery = Progress | Finished | Failed | Health | Stats  # Progress and Finished hold arrays, not encoded images


class Inbox(Protocol):
    """Where the loop's messages come from."""

    def take(self, patience_s: float | None) -> list[Message] | None:
        """Every message there is; waits up to patience_s for the first (None: without limit). None: the loop ends."""
        ...


class QueueInbox:
    """Messages from other threads of this process."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def put(self, message: Message | None) -> None:
        """None ends the loop."""
        self.queue.put(message)

    def take(self, patience_s: float | None) -> list[Message] | None:
        """See `Inbox.take`."""
        taken: list[Message] = []
        try:
            while (message := self.queue.get(patience_s != 0, patience_s)) is not None:
                taken.append(message)
                patience_s = 0
        except queue.Empty:
            return taken
        return None


class _Flight(Struct, eq=False):
    """A request between its arrival and its end."""

    request: ImageRequest
    accepted_s: float
    deadline_s: float
    granted: int = 0  # images that have or had a slot
    started_s: float = 0.0  # when the first of them got it
    pixels: dict[int, Pixels] = field(default_factory=dict)  # image index -> finished pixels
    log_weights: dict[int, float] = field(default_factory=dict)  # image index -> that of a finished image


class EngineLoop:
    """Owns the models' slot tables. Everything belongs to the thread that calls `run`.

    deliver: called with each event, change of health, and statistics; must neither block nor raise. Each submitted
    request ends in one Finished, one Failed, or its Cancel, and no event of it comes after that. flush: called after a
    series of deliveries, so that they can go together.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        inbox: Inbox,
        deliver: Callable[[Delivery], None],
        policy: Policy = fifo,
        clock: Callable[[], float] = time.monotonic,
        flush: Callable[[], None] = nothing,
    ) -> None:
        self.models = models
        self.inbox = inbox
        self.deliver = deliver
        self.policy = policy
        self.clock = clock
        self.flush = flush
        self.flights: dict[int, _Flight] = {}  # in order of arrival
        self.deadlines: list[tuple[float, int]] = []  # a heap; requests that have ended stay until their time
        self.used_s = dict.fromkeys(models, 0.0)  # device time, as `least_served` counts it
        self.virtual_s = 0.0  # where the models with work stand in that count
        self.finished: list[Finished | Progress] = []  # to be delivered while the next network call runs
        self.probe_s = -math.inf  # when a failing model may next be tried
        self.stats_sent_s = -math.inf
        self.stats_pending = False  # whether anything has changed since

    def run(self) -> None:
        """Until the inbox says stop. What is finished by then is still delivered."""
        while self.receive(self._patience_s()):
            self.turn()
        self._hand_over()

    def receive(self, patience_s: float | None) -> bool:
        """Take everything from the inbox; wait for something up to patience_s, None: without limit. False: stop."""
        messages = self.inbox.take(patience_s)
        if messages is None:
            return False
        for message in messages:
            if isinstance(message, Submit):
                self._submit(message)
            else:
                self._cancel(message.id)
        return True

    def turn(self) -> None:
        """Make one network call for the model whose turn it is, and deliver what is finished or has failed."""
        self._expire()
        self._probe()
        if busy := {name: self.used_s[name] for name, model in self.models.items() if model.busy}:
            name = least_served(busy)
            self.virtual_s = max(self.virtual_s, self.used_s[name])
            self._admit(self.models[name])
            self._tick(name)
        if not self.flights:
            self._hand_over()
        self.stats_pending = True
        self._send_stats()
        self.flush()

    def _patience_s(self) -> float | None:
        """How long the loop may sleep. An idle one sleeps until a message comes and uses no CPU."""
        if self.flights:
            return 0
        times = [self.stats_sent_s + STATS_EVERY_S] if self.stats_pending else []
        times += [self.probe_s] if any(model.failing for model in self.models.values()) else []
        return max(0.0, min(times) - self.clock()) if times else None

    def _submit(self, message: Submit) -> None:
        request = message.request
        model = self.models[name := request.engine]
        if not model.busy:  # device time that it did not ask for is not saved up
            self.used_s[name] = max(self.used_s[name], self.virtual_s)
        self.flights[message.id] = _Flight(request, message.accepted_s, message.deadline_s)
        batch = request.priority == "batch"
        model.wait(
            message.id, request.images, message.accepted_s, message.deadline_s, request.calls, batch, request.slots
        )
        if request.slots > model.table.capacity:
            self._fail(message.id, "invalid", "unsupported_log_weight", FEW_SLOTS.format(name), "log_weight")
            return
        if model.failing:
            self._release_waiting(name)
            return
        heapq.heappush(self.deadlines, (message.deadline_s, message.id))
        if len(self.deadlines) > 2 * len(self.flights) + 64:  # mostly of requests that have ended
            self.deadlines = [(flight.deadline_s, number) for number, flight in self.flights.items()]
            heapq.heapify(self.deadlines)

    def _end(self, number: int, flight: _Flight) -> None:
        """Forget a request; its slots are free."""
        del self.flights[number]
        self.models[flight.request.engine].evict(number)

    def _cancel(self, number: int) -> None:
        self.finished = [event for event in self.finished if event.id != number]
        if flight := self.flights.get(number):
            self._end(number, flight)

    def _fail(self, number: int, kind: Kind, code: str, message: str, param: str | None = None) -> None:
        if flight := self.flights.get(number):
            self._hand_over()  # its Progress comes before its end
            self._end(number, flight)
            self.deliver(Failed(number, kind, code, message, param))

    def _expire(self) -> None:
        now = self.clock()
        while self.deadlines and self.deadlines[0][0] <= now:
            _, number = heapq.heappop(self.deadlines)
            self._fail(number, "timeout", "timeout", "the images were not ready in time; ask for fewer or retry later")

    def _probe(self) -> None:
        """Try failing models now and then: only a call that succeeds ends the failing."""
        now = self.clock()
        if now < self.probe_s:
            return
        for model in self.models.values():
            if model.failing and not model.busy:
                model.probe()
                self.probe_s = now + PROBE_EVERY_S

    def _release_waiting(self, name: str) -> None:
        """Give up the requests that wait for a failing model, so that another worker can take them."""
        for number in list(self.models[name].waiting):
            self._fail(number, "unavailable", "model_failing", MODEL_FAILING.format(name))

    def _admit(self, model: Model) -> None:
        if model.probe_next:  # requests wait until an image that none of them asks for shows that the network works
            if model.table.free == model.table.capacity:
                model.probe()
            return
        if not model.waiting:
            return
        now = self.clock()
        images: list[Image] = []
        for grant in self.policy(model.waiting.values(), model.table.free, now):
            flight = self.flights[grant.request]
            if flight.granted == 0:
                flight.started_s = now
            name = flight.request.model
            images += _images(
                grant.request, flight, grant.images, model.adapters[name] if BETWEEN in name else BACKBONE
            )
            flight.granted += grant.images
            model.granted(grant)
        if images:
            model.table.admit(images)

    def _tick(self, name: str) -> None:
        model = self.models[name]
        before_s = self.clock()
        try:
            tick = model.table.tick(self._hand_over)
        except Exception:  # whatever a network raises concerns the requests in this call only
            self.used_s[name] += self.clock() - before_s
            self._call_failed(name)
            return
        elapsed_s = self.clock() - before_s
        self.used_s[name] += elapsed_s
        if tick.batch:
            model.stats.call(tick.active, tick.batch, elapsed_s)
            self._events(tick)
            self._note(name, ok=len(tick.broken) < tick.active)
        else:  # the policy admitted no image, so there was no call to wait for
            self._hand_over()

    def _call_failed(self, name: str) -> None:
        model = self.models[name]
        held = model.table.requests()
        logger.exception("a network call of %s failed; requests %s end with it", name, sorted(held))
        self._hand_over()
        for number in held:
            self._fail(number, "failed", "network_error", "the network call failed; the server's log says why")
        model.table.evict(PROBE.request)
        self._note(name, ok=False)

    def _events(self, tick: Tick) -> None:
        for number in {key.request for key in tick.broken}:
            message = "the network returned values that are not finite; try another seed"
            self._fail(number, "failed", "network_not_finite", message)
        for key, step, pixels in tick.previews:
            if flight := self.flights.get(key.request):
                self.finished.append(_progress(key, flight.request, step, pixels))
        for key, log_weight in tick.log_weights:
            if flight := self.flights.get(key.request):
                flight.log_weights[key.image] = log_weight
        for key, pixels in tick.finished:
            self._finish(key, pixels)

    def _note(self, name: str, ok: bool) -> None:
        if self.models[name].note_call(ok):
            self.deliver(Health(name, ok))
            if not ok:
                self._release_waiting(name)

    def _finish(self, key: ImageKey, pixels: Pixels) -> None:
        flight = self.flights.get(key.request)
        if flight is None:  # another image of the request has just failed, or it was a probe
            return
        flight.pixels[key.image] = pixels
        request = flight.request
        if len(flight.pixels) < request.images:
            if request.previews == "images":
                self.finished.append(_progress(key, request, len(request.levels(key.image)), pixels))
            return
        del self.flights[key.request]
        self.finished.append(
            Finished(
                id=key.request,
                format=request.format,
                images=tuple(flight.pixels[index] for index in range(request.images)),
                queue_s=flight.started_s - flight.accepted_s,
                engine_s=self.clock() - flight.started_s,
                quality=request.quality,
                log_weights=tuple(flight.log_weights[index] for index in range(len(flight.log_weights))),
            )
        )

    def _hand_over(self) -> None:
        """Deliver what is finished: while the network works, or when there is no work left. Encoding takes time."""
        for event in self.finished:
            self.deliver(event)
        self.finished.clear()
        self.flush()

    def _send_stats(self) -> None:
        now = self.clock()
        if now - self.stats_sent_s >= STATS_EVERY_S:
            self.stats_sent_s, self.stats_pending = now, False
            self.deliver(Stats({name: model.snapshot() for name, model in self.models.items()}, resident_bytes()))


def _progress(key: ImageKey, request: ImageRequest, step: int, preview: Pixels | None) -> Progress:
    calls = len(request.levels(key.image))
    return Progress(key.request, key.image, step, calls, request.format, preview, request.quality)


def _images(number: int, flight: _Flight, count: int, adapter: AdapterNumbers) -> list[Image]:
    """The next `count` images of a request, for the slot table."""
    request = flight.request
    start = request.edit.start() if request.edit else None
    blends = request.blends or (None,) * request.images
    return [
        Image(
            ImageKey(number, i),
            request.seeds[i],
            request.labels[i],
            request.levels(i),
            start,
            request.previewed(i),
            blends[i],
            adapter.first,
            request.given(i),
            request.reported(i),
            adapter.last,
            request.log_weight,
        )
        for i in range(flight.granted, flight.granted + count)
    ]
