"""An engine loop with fake networks and a fake clock that moves only while a network call runs."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from server.scheduler.events import Failed, Finished, Health, Progress
from server.scheduler.loop import Delivery, EngineLoop, QueueInbox
from server.scheduler.model import Model
from server.scheduler.policy import Policy, fifo
from server.scheduler.request import Cancel, Edit, ImageRequest, Previews, Submit
from server.scheduler.slots import SlotTable, buckets_for
from server.scheduler.stats import Stats
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, GaussianNetwork, fake_model

Fault = Callable[[np.ndarray], None]  # gets the network's input; may raise or spoil it


class Bench:
    """capacities: slots by model. call_s: seconds of a network call by model, 1 unless said."""

    def __init__(
        self,
        capacities: Mapping[str, int] | int = 4,
        policy: Policy = fifo,
        call_s: Mapping[str, float] | None = None,
    ) -> None:
        if isinstance(capacities, int):
            capacities = {"tiny": capacities}
        self.now_s = 0.0
        self.results: list[Finished | Failed] = []
        self.progress: list[Progress] = []
        self.events: dict[int, list[Progress | Finished | Failed]] = {}  # by request, in order
        self.ended_s: dict[int, float] = {}
        self.health: list[Health] = []
        self.stats: list[Stats] = []
        self.calls: list[tuple[str, int]] = []  # model and batch of every network call
        self.faults: dict[str, Fault] = {}
        self.call_s = dict(call_s or {})
        self.tables: dict[str, SlotTable] = {}
        self.models = {name: self._model(name, slots) for name, slots in capacities.items()}
        self.inbox = QueueInbox()
        self.loop = EngineLoop(self.models, self.inbox, self._deliver, policy, clock=lambda: self.now_s)

    def submit(
        self, number: int, steps: int, images: int = 1, seed: int = 0, model: str = "tiny", timeout_s: float = math.inf,
        edit: Edit | None = None, previews: Previews = "none", preview_count: int | None = None,
        every_call: bool = False, log_weight: bool = False,
    ) -> None:  # fmt: skip
        labels = tuple(i % CLASSES for i in range(images))
        seeds = tuple(range(seed, seed + images))
        request = ImageRequest(
            model, steps, seeds, labels, LEVELS[steps], edit=edit, previews=previews, preview_count=preview_count,
            every_call=every_call, log_weight=log_weight,
        )  # fmt: skip
        self.inbox.put(Submit(number, request, self.now_s, self.now_s + timeout_s))

    def cancel(self, number: int) -> None:
        self.inbox.put(Cancel(number))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.loop.receive(0)
            self.loop.turn()

    def finished(self) -> list[int]:
        """Delivered, or to be delivered when the next network call begins."""
        return [result.id for result in (*self.results, *self.loop.finished) if isinstance(result, Finished)]

    def failed(self) -> dict[int, str]:
        return {result.id: result.code for result in self.results if isinstance(result, Failed)}

    def batches(self) -> list[int]:
        return [batch for _, batch in self.calls]

    def _model(self, name: str, slots: int) -> Model:
        network = GaussianNetwork()

        def before(x: np.ndarray, c_noise: np.ndarray) -> None:
            self.now_s += self.call_s.get(name, 1.0)
            self.calls.append((name, len(x)))
            if fault := self.faults.get(name):
                fault(x)

        network.before = before
        self.tables[name] = SlotTable(network, SHAPE, CLASSES, SIGMA_DATA, buckets_for(slots, exact=False))
        return fake_model(self.tables[name])

    def _deliver(self, delivery: Delivery) -> None:
        if isinstance(delivery, Health):
            self.health.append(delivery)
        elif isinstance(delivery, Stats):
            self.stats.append(delivery)
        else:
            assert delivery.id not in self.ended_s, "an event after the last one"
            self.events.setdefault(delivery.id, []).append(delivery)
            if isinstance(delivery, Progress):
                self.progress.append(delivery)
            else:
                self.ended_s[delivery.id] = self.now_s
                self.results.append(delivery)


def explode(x: np.ndarray) -> None:
    raise RuntimeError("out of memory")


def poison_all(x: np.ndarray) -> None:
    x[:] = np.nan


def poison_first(x: np.ndarray) -> None:
    x[0] = np.nan
