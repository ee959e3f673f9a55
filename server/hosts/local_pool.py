"""An engine loop in the process that also speaks HTTP: what the dialects and /metrics need, over a LocalService."""

import time
from collections.abc import Mapping

from export.manifest import Manifest, all_served, engine_of
from server.machine.start_times import shared_times
from server.processes.admission import Admission, Room, Ticket
from server.processes.worker import WorkerConfig
from server.scheduler.loading import load_model
from server.scheduler.local import CLOSED, EventStream, LocalService
from server.scheduler.loop import MODEL_FAILING
from server.scheduler.model import Model, ModelInfo
from server.scheduler.policy import Policy
from server.scheduler.refusal import unavailable
from server.scheduler.request import ImageRequest
from server.scheduler.stats import Stats
from server.settings.settings import Settings

WORKER = 0  # the number of the only worker, in /metrics


class LocalPool:
    """server.http.service.ImageService and server.http.metrics.Engines. Runs on one event loop."""

    restarts = 0  # of the engine loop: Ray replaces the process with it

    def __init__(
        self,
        models: Mapping[str, Model],
        manifests: Mapping[str, Manifest],
        policy: Policy,
        max_queue: int,
        warm_up_s: float = 0.0,
    ) -> None:
        """models: loaded, by the name of the engine. manifests: of what they serve, by the name that requests choose.

        The loop runs from here until `close`. max_queue: images that may wait for a slot.
        """
        self.models: dict[str, ModelInfo] = {name: model.info for name, model in models.items()}
        self.warm_up_s = {WORKER: warm_up_s}
        self.requests = 0  # admitted and not yet answered
        self.admission = Admission(max_queue, tuple(models))
        self.admission.rooms = {name: Room(info.capacity, 1, info.row_s) for name, info in self.models.items()}
        self.service = LocalService(models, manifests, policy)
        self._heard: Stats | None = None  # the last statistics that `check_alive` has seen
        self._heard_s = time.monotonic()  # and when, or when nothing was owed

    @classmethod
    def load(cls, settings: Settings, manifests: Mapping[str, Manifest]) -> "LocalPool":
        """Load and warm up every model. manifests: of the engines. Raises CheckpointError in a sentence."""
        started_s = time.monotonic()
        config = WorkerConfig.of(settings, manifests, shared_times(settings, manifests))
        models = {
            name: load_model(name, folder, config.options, config.times, manifests[name], config.adapters[name])
            for name, folder in config.engines.items()
        }
        served = all_served(manifests.values())
        return cls(models, served, config.policy, settings.max_queue, time.monotonic() - started_s)

    @property
    def stats(self) -> dict[int, Stats]:
        return {WORKER: self.service.stats} if self.service.stats else {}

    @property
    def slots(self) -> int:
        """Of all models together."""
        return sum(info.capacity for info in self.models.values())

    @property
    def working(self) -> list[str]:
        """The models that requests can choose, without those whose network calls keep failing."""
        return [name for name in self.service.manifests if engine_of(name) not in self.service.failing]

    def check_ready(self, model: str | None = None) -> None:
        """Raises Refusal "unavailable" unless a request for this model would be served; None: for some model."""
        if self.service.closed:
            raise unavailable(CLOSED, code="closed")
        names = list(self.service.manifests) if model is None else [model]
        if not set(names) & set(self.working):
            raise unavailable(MODEL_FAILING.format(" and ".join(names)), code="model_failing")

    def check_alive(self, stall_s: float) -> None:
        """Raises RuntimeError, in a sentence, where the loop has ended, or owes images and was silent for stall_s.

        Call it again and again: silence is counted from the call that saw the last sign of life. 0: no limit.
        """
        if self.service.closed:
            raise RuntimeError("the engine loop has ended")
        now_s, stats = time.monotonic(), self.service.stats
        if stats is not self._heard or not self.admission.images:
            self._heard, self._heard_s = stats, now_s
        elif stall_s and now_s - self._heard_s >= stall_s:
            raise RuntimeError(f"the engine loop owes images and has been silent for {now_s - self._heard_s:.0f} s")

    def admit(self, model: str, images: int, calls: int) -> Ticket:
        """Count a request in before any work is done for it; `release` must follow. Raises Refusal."""
        self.check_ready(model)
        ticket = self.admission.enter(engine_of(model), images, calls)
        self.requests += 1
        return ticket

    def release(self, ticket: Ticket) -> None:
        self.requests -= 1
        self.admission.leave(ticket)

    def submit(self, request: ImageRequest, timeout_s: float) -> EventStream:
        """Begin an admitted request. Raises Refusal."""
        return self.service.submit(request, timeout_s)

    def close(self) -> None:
        """End the loop after its present call; requests that are not finished are refused."""
        self.service.close()
