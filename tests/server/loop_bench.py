"""An engine loop with fake networks and a fake clock that moves only while a network call runs."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from server.http.dialects.edits import Edit
from server.http.dialects.native import GenerateRequest
from server.processes.messages import Cancel, Failed, Health, Stats, Submit
from server.scheduler.loop import Delivery, EngineLoop, Finished
from server.scheduler.model import Served
from server.scheduler.policy import Policy, fifo
from server.scheduler.slots import SlotTable, buckets_for
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, GaussianNetwork

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
        self.ended_s: dict[int, float] = {}
        self.health: list[Health] = []
        self.stats: list[Stats] = []
        self.calls: list[tuple[str, int]] = []  # model and batch of every network call
        self.faults: dict[str, Fault] = {}
        self.call_s = dict(call_s or {})
        self.tables: dict[str, SlotTable] = {}
        self.models = {name: self._served(name, slots) for name, slots in capacities.items()}
        self.loop = EngineLoop(self.models, self._deliver, policy, clock=lambda: self.now_s)

    def submit(
        self, number: int, steps: int, images: int = 1, seed: int = 0, model: str = "tiny", timeout_s: float = math.inf,
        edit: Edit | None = None,
    ) -> None:  # fmt: skip
        labels = tuple(i % CLASSES for i in range(images))
        request = GenerateRequest(steps, images, seed, labels, "png", model, timeout_s, edit)
        self.loop.inbox.put(Submit(number, request, self.now_s, self.now_s + timeout_s))

    def cancel(self, number: int) -> None:
        self.loop.inbox.put(Cancel(number))

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

    def _served(self, name: str, slots: int) -> Served:
        network = GaussianNetwork()

        def before(x: np.ndarray, c_noise: np.ndarray) -> None:
            self.now_s += self.call_s.get(name, 1.0)
            self.calls.append((name, len(x)))
            if fault := self.faults.get(name):
                fault(x)

        network.before = before
        table = SlotTable(network, SHAPE, CLASSES, SIGMA_DATA, buckets_for(slots, exact=False))
        self.tables[name] = table
        return Served(table, LEVELS)

    def _deliver(self, delivery: Delivery) -> None:
        if isinstance(delivery, Health):
            self.health.append(delivery)
        elif isinstance(delivery, Stats):
            self.stats.append(delivery)
        else:
            assert delivery.id not in self.ended_s, "a request ended twice"
            self.ended_s[delivery.id] = self.now_s
            self.results.append(delivery)


def explode(x: np.ndarray) -> None:
    raise RuntimeError("out of memory")


def poison_all(x: np.ndarray) -> None:
    x[:] = np.nan


def poison_first(x: np.ndarray) -> None:
    x[0] = np.nan
