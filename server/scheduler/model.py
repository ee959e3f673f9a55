"""One model of an engine loop: its slot table, the requests that wait for a slot, its counts, and whether it works."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from export.manifest import AdapterNumbers
from fewstep.schedule import SIGMA_MAX
from server.scheduler.policy import Grant, Waiting
from server.scheduler.slots import Image, ImageKey, Slots, nothing
from server.scheduler.stats import ModelStats

FAILING_AFTER = 3  # failed network calls in a row
PROBE = ImageKey(request=-1, image=0)  # an image that no request asks for; request ids count from 0


@dataclass(frozen=True)
class ModelInfo:
    """How a model runs: measured when it was loaded."""

    tick_s: float  # one network call over all slots, with the step around it
    capacity: int  # slots
    buckets: tuple[int, ...]  # batch sizes the network is called with, ascending, the last one being the capacity
    facts: Mapping[str, str]  # Engine.facts: backend, versions, device, precision, ...

    @property
    def row_s(self) -> float:
        """Device time of one row in a network call over all slots."""
        return self.tick_s / self.capacity


@dataclass
class Model:
    """Belongs to the engine thread."""

    table: Slots
    info: ModelInfo
    adapters: Mapping[str, AdapterNumbers] = field(default_factory=dict)  # by served model
    prepare: Callable[[], None] = nothing  # what makes it faster, called in a thread once the server is ready
    stats: ModelStats = field(default_factory=ModelStats)
    waiting: dict[int, Waiting] = field(default_factory=dict)  # in order of arrival; only those with images left
    failures: int = 0  # network calls in a row that failed, not counting probes that succeeded between them
    probe_next: bool = False  # the last call failed: the next one is made for no request

    @property
    def busy(self) -> bool:
        """Whether a tick would have something to do."""
        return bool(self.waiting) or self.table.free < self.table.capacity

    @property
    def failing(self) -> bool:
        """Whether the last FAILING_AFTER network calls have all failed."""
        return self.failures >= FAILING_AFTER

    def wait(
        self, request: int, images: int, arrived_s: float, deadline_s: float, calls: int, batch: bool = False,
        slots: int = 1,
    ) -> None:  # fmt: skip
        """A request joins the queue; each of its images takes so many calls and slots. batch: of that priority."""
        self.waiting[request] = Waiting(request, images, arrived_s, deadline_s, calls, batch, slots)

    def granted(self, grant: Grant) -> None:
        """Some or all images of a waiting request have got a slot."""
        entry = self.waiting[grant.request]
        if left := entry.images - grant.images:
            self.waiting[entry.request] = replace(entry, images=left)
        else:
            del self.waiting[entry.request]

    def evict(self, request: int) -> None:
        """A request has ended early: it waits no more, and its slots are free."""
        if entry := self.waiting.pop(request, None):
            self.stats.evict("waiting", entry.images)
        self.stats.evict("running", self.table.evict(request))

    def note_call(self, ok: bool) -> bool:
        """Count a network call as good or failed; True when `failing` has changed by it.

        A probe that succeeds ends `failing`, but fewer failures stay counted: a full batch may fail where it does not.
        """
        before, probe = self.failing, self.probe_next
        self.probe_next = not ok
        if not ok:
            self.failures += 1
        elif before or not probe:
            self.failures = 0
        self.stats.failed_calls += not ok
        return self.failing != before

    def probe(self) -> None:
        """Put an image into the empty table, to see whether the network works again."""
        self.table.admit([Image(PROBE, seed=0, label=-1, sigmas=(SIGMA_MAX,))])

    def snapshot(self) -> ModelStats:
        return self.stats.snapshot(
            active_slots=self.table.capacity - self.table.free,
            waiting_images=sum(entry.images for entry in self.waiting.values()),
            capacity=self.table.capacity,
        )
