"""The engine thread: takes messages, admits images, ticks the slot table, hands results on. No HTTP."""

import logging
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fewstep.pixels import Pixels
from server.messages import Cancel, Failed, Message, Submit
from server.policy import Policy, Waiting, fifo
from server.requests import GenerateRequest
from server.slots import Image, ImageKey, SlotTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A request whose images are all there, not yet encoded."""

    id: int
    request: GenerateRequest
    pixels: tuple[Pixels, ...]  # uint8 [H, W, C] each, in the order of the seeds
    queue_s: float
    engine_s: float


@dataclass
class _Flight:
    """A request between its arrival and its end."""

    request: GenerateRequest
    accepted_s: float
    admitted: int = 0  # images that have or had a slot
    started_s: float = 0.0  # when the first of them got it
    pixels: dict[int, Pixels] = field(default_factory=dict)  # image index -> finished pixels


class EngineLoop:
    """Owns the slot table. Everything but `inbox` belongs to the thread that calls `run`.

    deliver: called with each Finished or Failed; must not block.
    inbox: Submit, Cancel, or None to stop. Each submitted request ends in one delivery or in its Cancel.
    """

    def __init__(
        self,
        table: SlotTable,
        levels: Mapping[int, tuple[float, ...]],
        deliver: Callable[[Finished | Failed], None],
        policy: Policy = fifo,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table = table
        self.levels = levels
        self.deliver = deliver
        self.policy = policy
        self.clock = clock
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.flights: dict[int, _Flight] = {}  # in order of arrival
        self.waiting: dict[int, Waiting] = {}  # in order of arrival; only requests with images left to admit

    def run(self) -> None:
        """Until the inbox says stop."""
        while self.receive(block=not self.flights):  # an idle loop waits and uses no CPU
            self.turn()

    def receive(self, block: bool) -> bool:
        """Take everything from the inbox; with `block`, wait for something. False: stop."""
        try:
            while (message := self.inbox.get(block=block)) is not None:
                block = False
                if isinstance(message, Submit):
                    self._submit(message)
                else:
                    self._cancel(message)
        except queue.Empty:
            return True
        return False

    def turn(self) -> None:
        """Admit what fits, make one network call, and deliver what is finished or has failed."""
        self._admit()
        held = self.table.requests()
        try:
            tick = self.table.tick()
        except Exception as error:  # whatever a network raises concerns the requests in this call only
            logger.exception("a network call failed; requests %s end with it", sorted(held))
            for request in held:
                self._fail(request, "network_error", f"the network call failed ({error}); try again")
            return
        for request in {key.request for key in tick.broken}:
            self._fail(
                request,
                "network_not_finite",
                "the network returned values that are not finite; try another seed",
            )
        for key, pixels in tick.finished:
            self._finish(key, pixels)

    def _submit(self, message: Submit) -> None:
        self.flights[message.id] = _Flight(message.request, message.accepted_s)
        self.waiting[message.id] = Waiting(message.id, message.request.images, message.accepted_s)

    def _cancel(self, message: Cancel) -> None:
        if self.flights.pop(message.id, None):
            self.waiting.pop(message.id, None)
            self.table.evict(message.id)

    def _admit(self) -> None:
        now = self.clock()
        images: list[Image] = []
        for admission in self.policy(self.waiting.values(), self.table.free, now):
            flight = self.flights[admission.request]
            request = flight.request
            if flight.admitted == 0:
                flight.started_s = now
            for index in range(flight.admitted, flight.admitted + admission.images):
                key = ImageKey(admission.request, index)
                images.append(Image(key, request.seed + index, request.labels[index], self.levels[request.steps]))
            flight.admitted += admission.images
            if left := request.images - flight.admitted:
                self.waiting[admission.request] = Waiting(admission.request, left, flight.accepted_s)
            else:
                del self.waiting[admission.request]
        if images:
            self.table.admit(images)

    def _finish(self, key: ImageKey, pixels: Pixels) -> None:
        flight = self.flights.get(key.request)
        if flight is None:  # another image of the request has just failed
            return
        flight.pixels[key.image] = pixels
        request = flight.request
        if len(flight.pixels) < request.images:
            return
        del self.flights[key.request]
        self.deliver(
            Finished(
                id=key.request,
                request=request,
                pixels=tuple(flight.pixels[index] for index in range(request.images)),
                queue_s=flight.started_s - flight.accepted_s,
                engine_s=self.clock() - flight.started_s,
            )
        )

    def _fail(self, request: int, code: str, message: str) -> None:
        del self.flights[request]
        self.waiting.pop(request, None)
        self.table.evict(request)
        self.deliver(Failed(request, code, message))
