"""One network call over a full batch: bare, and as one turn of an engine loop. What is counted in single calls."""

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from benchmarks.load.arrivals import STEP_MIX
from fewstep.noise import random_labels
from server.scheduler.loading import slot_table
from server.scheduler.loop import EngineLoop, QueueInbox
from server.scheduler.model import Model, ModelInfo
from server.scheduler.request import Submit
from server.scheduler.slots import buckets_for
from server.scheduler.validate import image_request

if TYPE_CHECKING:
    from benchmarks.load.fixed_cost import FixedCostEngine
    from export.engine import Engine


def back_to_back(engine: "Engine | FixedCostEngine", batch: int) -> Callable[[], object]:
    """A network call of a batch size, with any input and without the step."""
    if engine.on_device and engine.device == "cuda":
        import torch

        on_device = engine.on_device

        def call() -> None:
            on_device.run(batch)
            torch.cuda.synchronize(on_device.device)

        return call
    manifest = engine.manifest
    x, c_noise = np.zeros((batch, *manifest.input_shape), np.float32), np.zeros(batch, np.float32)
    onehot = np.zeros((batch, manifest.classes), np.float32)
    return lambda: engine.network(x, c_noise, onehot)


def through_the_loop(engine: "Engine | FixedCostEngine", capacity: int) -> Callable[[], object]:
    """One turn of an engine loop that always has more images waiting than slots. Its turn is one network call."""
    manifest = engine.manifest
    table = slot_table(cast("Engine", engine), buckets_for(capacity, exact=False))
    info, inbox = ModelInfo(0.0, capacity, table.buckets, facts={}), QueueInbox()
    loop = EngineLoop({manifest.name: Model(table, info)}, inbox, deliver=lambda _: None)
    numbers, steps = itertools.count(), itertools.cycle(STEP_MIX)
    # An HTTP process draws a request's labels; here they are drawn before the clock starts.
    labels = itertools.cycle(random_labels(range(64), manifest.classes).tolist() if manifest.classes else [-1])

    def turn() -> None:
        while len(loop.flights) < 2 * capacity:
            request = image_request(manifest, steps=next(steps), seed=0, label=next(labels))
            inbox.put(Submit(next(numbers), request, accepted_s=0.0, deadline_s=math.inf))
            loop.receive(patience_s=0)
        loop.turn()

    return turn
