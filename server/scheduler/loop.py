"""The engine thread: takes messages, admits images, ticks the slot tables, hands results on. No HTTP."""

import heapq
import logging
import math
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fewstep.pixels import Pixels
from server.http.dialects.native import GenerateRequest
from server.processes.messages import MODEL_FAILING, Failed, Health, Message, Stats, Submit
from server.scheduler.counters import resident_bytes
from server.scheduler.model import PROBE, Served
from server.scheduler.policy import Policy, fifo, least_served
from server.scheduler.slots import Image, ImageKey

logger = logging.getLogger(__name__)

STATS_EVERY_S = 0.25  # collecting them takes a quarter of a millisecond of the engine thread
PROBE_EVERY_S = 1.0  # how often a failing model is tried when nobody asks for it


@dataclass(frozen=True)
class Finished:
    """A request whose images are all there, not yet encoded."""

    id: int
    request: GenerateRequest
    pixels: tuple[Pixels, ...]  # uint8 [H, W, C] each, in the order of the seeds
    queue_s: float
    engine_s: float


Delivery = Finished | Failed | Health | Stats


@dataclass
class _Flight:
    """A request between its arrival and its end."""

    request: GenerateRequest
    accepted_s: float
    deadline_s: float
    admitted: int = 0  # images that have or had a slot
    started_s: float = 0.0  # when the first of them got it
    pixels: dict[int, Pixels] = field(default_factory=dict)  # image index -> finished pixels


class EngineLoop:
    """Owns the models' slot tables. Everything but `inbox` belongs to the thread that calls `run`.

    deliver: called with each result, change of health, and statistics; must not block.
    inbox: Submit, Cancel, or None to stop. Each submitted request ends in one Finished, one Failed, or its Cancel.
    A request that waits for a failing model ends in a Failed of code MODEL_FAILING: another worker may make it.
    """

    def __init__(
        self,
        models: Mapping[str, Served],
        deliver: Callable[[Delivery], None],
        policy: Policy = fifo,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = models
        self.deliver = deliver
        self.policy = policy
        self.clock = clock
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.flights: dict[int, _Flight] = {}  # in order of arrival
        self.deadlines: list[tuple[float, int]] = []  # a heap; requests that have ended stay until their time
        self.used_s = dict.fromkeys(models, 0.0)  # device time, as `least_served` counts it
        self.virtual_s = 0.0  # where the models with work stand in that count
        self.finished: list[Finished] = []  # to be delivered when the engine thread has nothing else to do
        self.probe_s = -math.inf  # when a failing model may next be tried
        self.told_s = -math.inf  # when statistics were last delivered
        self.untold = False  # whether anything has changed since

    def run(self) -> None:
        """Until the inbox says stop. What is finished by then is still delivered."""
        while self.receive(self._patience_s()):
            self.turn()
        self._hand_over()

    def receive(self, patience_s: float | None) -> bool:
        """Take everything from the inbox; wait for something up to patience_s, None: for ever. False: stop."""
        try:
            while (message := self.inbox.get(patience_s != 0, patience_s)) is not None:
                patience_s = 0
                if isinstance(message, Submit):
                    self._submit(message)
                elif flight := self.flights.get(message.id):
                    self._end(message.id, flight)
        except queue.Empty:
            return True
        return False

    def turn(self) -> None:
        """Make one network call for the model whose turn it is, and deliver what is finished or has failed."""
        self._expire()
        self._probe()
        if busy := {name: self.used_s[name] for name, served in self.models.items() if served.busy}:
            name = least_served(busy)
            self.virtual_s = max(self.virtual_s, self.used_s[name])
            served = self.models[name]
            if not served.suspect:
                self._admit(served)
            elif served.table.free == served.table.capacity:  # nobody who waits should find out
                served.probe()
            self._tick(name)
        if not self.flights:
            self._hand_over()
        self.untold = True
        self._tell()

    def _patience_s(self) -> float | None:
        """How long the loop may sleep. An idle one sleeps until a message comes and uses no CPU."""
        if self.flights:
            return 0
        times = [self.told_s + STATS_EVERY_S] if self.untold else []
        times += [self.probe_s] if any(served.failing for served in self.models.values()) else []
        return max(0.0, min(times) - self.clock()) if times else None

    def _submit(self, message: Submit) -> None:
        name = message.request.model
        served = self.models[name]
        if served.failing:
            self._give_back(message.id, name)
            return
        if not served.busy:  # device time that it did not ask for is not saved up
            self.used_s[name] = max(self.used_s[name], self.virtual_s)
        self.flights[message.id] = _Flight(message.request, message.accepted_s, message.deadline_s)
        served.wait(message.id, message.request.images, message.accepted_s, message.deadline_s)
        heapq.heappush(self.deadlines, (message.deadline_s, message.id))
        if len(self.deadlines) > 2 * len(self.flights) + 64:  # mostly of requests that have ended
            self.deadlines = [(flight.deadline_s, number) for number, flight in self.flights.items()]
            heapq.heapify(self.deadlines)

    def _end(self, number: int, flight: _Flight) -> None:
        """Forget a request that nobody waits for; its slots are free."""
        del self.flights[number]
        self.models[flight.request.model].evict(number)

    def _fail(self, number: int, code: str, message: str) -> None:
        if flight := self.flights.get(number):
            self._end(number, flight)
            self.deliver(Failed(number, code, message))

    def _expire(self) -> None:
        now = self.clock()
        while self.deadlines and self.deadlines[0][0] <= now:
            _, number = heapq.heappop(self.deadlines)
            self._fail(number, "timeout", "the images were not ready in time; ask for fewer or retry later")

    def _probe(self) -> None:
        """Try failing models that nobody asks for, now and then: only a call that succeeds makes them well."""
        now = self.clock()
        if now < self.probe_s:
            return
        for served in self.models.values():
            if served.failing and not served.busy:
                served.probe()
                self.probe_s = now + PROBE_EVERY_S

    def _admit(self, served: Served) -> None:
        now = self.clock()
        images: list[Image] = []
        for admission in self.policy(served.waiting.values(), served.table.free, now):
            flight = self.flights[admission.request]
            request = flight.request
            if flight.admitted == 0:
                flight.started_s = now
            sigmas = served.levels[request.steps][-request.calls :]  # an edit makes the last calls only
            start = request.edit.start() if request.edit else None
            for index in range(flight.admitted, flight.admitted + admission.images):
                key = ImageKey(admission.request, index)
                images.append(Image(key, request.seed + index, request.labels[index], sigmas, start))
            flight.admitted += admission.images
            served.admitted(admission)
        if images:
            served.table.admit(images)

    def _tick(self, name: str) -> None:
        served = self.models[name]
        before_s = self.clock()
        try:
            tick = served.table.tick(self._hand_over)
        except Exception:  # whatever a network raises concerns the requests in this call only
            held = served.table.requests()
            logger.exception("a network call of %s failed; requests %s end with it", name, sorted(held))
            self._note(name, ok=False)
            self._hand_over()
            for number in held:
                self._fail(number, "network_error", "the network call failed; try again")
            served.table.evict(PROBE.request)
            self._give_up_waiting(name)
            return
        finally:
            elapsed_s = self.clock() - before_s
            self.used_s[name] += elapsed_s
        if tick.batch:
            served.counters.call(tick.active, tick.batch, elapsed_s)
            self._note(name, ok=len(tick.broken) < tick.active)
        else:  # the policy admitted nobody, so there was no call to wait for
            self._hand_over()
        for number in {key.request for key in tick.broken}:
            message = "the network returned values that are not finite; try another seed"
            self._fail(number, "network_not_finite", message)
        self._give_up_waiting(name)
        for key, pixels in tick.finished:
            self._finish(key, pixels)

    def _give_up_waiting(self, name: str) -> None:
        """While a model is failing nobody waits for it here; its network is tried with a probe."""
        served = self.models[name]
        if served.failing:
            for number in list(served.waiting):
                self._end(number, self.flights[number])
                self._give_back(number, name)

    def _give_back(self, number: int, name: str) -> None:
        self.deliver(Failed(number, MODEL_FAILING, f"the network of {name} has failed several times in a row"))

    def _note(self, name: str, ok: bool) -> None:
        if self.models[name].note_call(ok):
            self.deliver(Health(name, ok))

    def _finish(self, key: ImageKey, pixels: Pixels) -> None:
        flight = self.flights.get(key.request)
        if flight is None:  # another image of the request has just failed, or it was a probe
            return
        flight.pixels[key.image] = pixels
        request = flight.request
        if len(flight.pixels) < request.images:
            return
        del self.flights[key.request]
        self.finished.append(
            Finished(
                id=key.request,
                request=request,
                pixels=tuple(flight.pixels[index] for index in range(request.images)),
                queue_s=flight.started_s - flight.accepted_s,
                engine_s=self.clock() - flight.started_s,
            )
        )

    def _hand_over(self) -> None:
        """Deliver what is finished: while the network works, or when there is no work left.

        Whoever encodes images wants the interpreter, and would take it, half a millisecond at a time, from an engine
        thread that is preparing its next call.
        """
        for result in self.finished:
            self.deliver(result)
        self.finished.clear()

    def _tell(self) -> None:
        now = self.clock()
        if now - self.told_s >= STATS_EVERY_S:
            self.told_s, self.untold = now, False
            models = {name: served.stats() for name, served in self.models.items()}
            self.deliver(Stats(models, resident_bytes()))
