"""The engine without HTTP: network calls driven by the engine loop against the same calls back to back.

    python benchmarks/load/engine_alone.py --engine models/fashion/engine --capacity 8 --threads 1

Both run a full batch all the time. Their ratio is the share of the network's own speed that remains
beside gathering, noise, stepping and bookkeeping; back to back is also the limit R* that a server is measured against.
"""

from fewstep import extras

extras.name_missing()

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np

from benchmarks.load.arrivals import STEP_MIX, mean_steps
from benchmarks.load.fixed_cost import Cost, FixedCostEngine
from export.engine import Engine, load_engine
from export.manifest import read_manifest
from fewstep.noise import random_labels
from fewstep.ranges import POSITIVE, number, whole
from server.processes.worker import freeze_heap
from server.scheduler.loading import slot_table
from server.scheduler.loop import EngineLoop, QueueInbox
from server.scheduler.model import Model, ModelInfo
from server.scheduler.request import Submit
from server.scheduler.slots import buckets_for
from server.scheduler.validate import image_request

AnyEngine = Engine | FixedCostEngine  # a server asks no more of an Engine than the other one has


@dataclass(frozen=True)
class Alone:
    """Full batches of `capacity` rows, median over the rounds."""

    capacity: int
    call_ms: float  # t(capacity), back to back
    limit_per_s: float  # R*: images per second of the step mix, back to back
    loop_per_s: float  # the same through the engine loop
    efficiency: float  # median over the rounds of loop / back to back, each pair measured side by side
    efficiencies: tuple[float, ...]


def measure(engine: AnyEngine, capacity: int, round_s: float, rounds: int) -> Alone:
    """Alternates the two, `round_s` seconds each."""
    bare, looped = back_to_back(engine, capacity), through_the_loop(engine, capacity)
    for once in (bare, looped):
        calls_per_s(once, round_s / 4)
    pairs = []
    for index in range(rounds):
        order = (bare, looped) if index % 2 else (looped, bare)
        rates = {once: calls_per_s(once, round_s) for once in order}
        pairs.append((rates[bare], rates[looped]))
    direct, driven = np.array(pairs).T
    per_call = capacity / mean_steps()
    return Alone(
        capacity=capacity,
        call_ms=float(1000 / np.median(direct)),
        limit_per_s=float(np.median(direct)) * per_call,
        loop_per_s=float(np.median(driven)) * per_call,
        efficiency=float(np.median(driven / direct)),
        efficiencies=tuple(np.round(driven / direct, 4).tolist()),
    )


def back_to_back(engine: AnyEngine, capacity: int) -> Callable[[], object]:
    """One network call over a full batch, and nothing else."""
    return lambda: call_once(cast(Engine, engine), capacity)


def call_once(engine: Engine, batch: int) -> None:
    """A network call of a batch size, with any input and without the step: what a tick is measured against."""
    manifest = engine.manifest
    if engine.on_device and engine.device == "cuda":
        import torch

        engine.on_device.run(batch)
        torch.cuda.synchronize(engine.on_device.device)
        return
    x = np.zeros((batch, *manifest.input_shape), np.float32)
    engine.network(x, np.zeros(batch, np.float32), np.zeros((batch, manifest.classes), np.float32))


def through_the_loop(engine: AnyEngine, capacity: int) -> Callable[[], object]:
    """One turn of an engine loop that always has more images waiting than slots. Its turn is one network call."""
    manifest = engine.manifest
    table = slot_table(cast(Engine, engine), buckets_for(capacity, exact=False))
    info, inbox = ModelInfo(0.0, capacity, table.buckets, call_s={}, facts={}), QueueInbox()
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


def calls_per_s(call: Callable[[], object], duration_s: float) -> float:
    started = time.perf_counter()
    for count in itertools.count(1):
        call()
        if (elapsed := time.perf_counter() - started) >= duration_s:
            return count / elapsed
    raise AssertionError("the count does not end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, metavar="DIR", help="engine to load")
    parser.add_argument("--cost", type=Cost.parse, metavar="A,B[,FLOOR]", help="a fixed-cost network in milliseconds")
    parser.add_argument("--backend", help="what runs the network (default: what the engine names)")
    parser.add_argument("--capacity", type=whole(1), default=8, help="slots of the scheduler (default %(default)s)")
    parser.add_argument("--threads", type=whole(0), default=0, help="cores one network call may use; 0: all")
    parser.add_argument("--rounds", type=whole(1), default=10, help="timed turns of each case (default %(default)s)")
    parser.add_argument("--round-s", type=number(POSITIVE), default=0.5, help="seconds of a turn (default %(default)s)")
    args = parser.parse_args()
    if args.cost:
        engine: AnyEngine = FixedCostEngine(read_manifest(args.engine), args.cost)
    else:
        buckets = buckets_for(args.capacity, exact=False)
        engine = load_engine(args.engine, backend=args.backend, threads=args.threads, buckets=buckets)
    freeze_heap()  # as a worker does
    print(json.dumps(asdict(measure(engine, args.capacity, args.round_s, args.rounds))))


if __name__ == "__main__":
    main()
