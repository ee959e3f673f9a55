"""One model inside an engine worker: its slot table, who waits for a slot, what was counted, and whether it works."""

from dataclasses import dataclass, field

from fewstep.card import Levels
from fewstep.schedule import SIGMA_MAX
from server.processes.messages import ModelStats
from server.scheduler.counters import Counters
from server.scheduler.policy import Admission, Waiting
from server.scheduler.slots import Image, ImageKey, Slots

FAILING_AFTER = 3  # failed network calls in a row
PROBE = ImageKey(request=-1, image=0)  # an image to try the network with; requests count from 0


@dataclass
class Served:
    """Belongs to the engine thread."""

    table: Slots
    levels: Levels
    counters: Counters = field(default_factory=Counters)
    waiting: dict[int, Waiting] = field(default_factory=dict)  # in order of arrival; only those with images left
    failures: int = 0  # network calls in a row that failed, probes that succeeded between them left out
    suspect: bool = False  # the last network call failed: the next one is a probe, so that nobody's request is lost

    @property
    def busy(self) -> bool:
        """Whether a tick would have something to do."""
        return bool(self.waiting) or self.table.free < self.table.capacity

    @property
    def failing(self) -> bool:
        """Whether the last FAILING_AFTER network calls have all failed."""
        return self.failures >= FAILING_AFTER

    def wait(self, request: int, images: int, arrived_s: float, deadline_s: float) -> None:
        """A request joins the queue."""
        self.waiting[request] = Waiting(request, images, arrived_s, deadline_s)

    def admitted(self, admission: Admission) -> None:
        """Some or all images of a waiting request have got a slot."""
        entry = self.waiting[admission.request]
        if left := entry.images - admission.images:
            self.waiting[entry.request] = Waiting(entry.request, left, entry.arrived_s, entry.deadline_s)
        else:
            del self.waiting[entry.request]

    def evict(self, request: int) -> None:
        """A request has ended early: it waits no more, and its slots are free."""
        if entry := self.waiting.pop(request, None):
            self.counters.evict("waiting", entry.images)
        self.counters.evict("running", self.table.evict(request))

    def note_call(self, ok: bool) -> bool:
        """Count a network call; True when `failing` has changed by it.

        A probe that succeeds ends `failing`, but fewer failures stay counted: a full batch may fail where it does not.
        """
        before, probe = self.failing, self.suspect
        self.suspect = not ok
        if not ok:
            self.failures += 1
        elif before or not probe:
            self.failures = 0
        self.counters.failed_calls += not ok
        return self.failing != before

    def probe(self) -> None:
        """Put an image into an idle table, to see whether the network works again."""
        self.table.admit([Image(PROBE, seed=0, label=-1, sigmas=(SIGMA_MAX,))])

    def stats(self) -> ModelStats:
        return self.counters.snapshot(
            active_slots=self.table.capacity - self.table.free,
            waiting_images=sum(entry.images for entry in self.waiting.values()),
            capacity=self.table.capacity,
        )
