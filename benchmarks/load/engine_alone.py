"""The engine without HTTP: images from a LocalService that always has work, against network calls back to back.

    python benchmarks/load/engine_alone.py --engine models/fashion/engine --capacity 8 --threads 1

Both run a full batch all the time. Their ratio is the share of the network's own speed that remains beside requests,
gathering, noise, stepping and bookkeeping; back to back is also the limit R* that a server is measured against.
"""

from fewstep import extras

extras.name_missing()

import argparse
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.load.arrivals import STEP_MIX, mean_steps
from benchmarks.load.fixed_cost import Cost, install
from benchmarks.loop_turns import back_to_back
from fewstep.ranges import POSITIVE, number, whole
from server.scheduler.loading import LoadOptions
from server.scheduler.local import LocalService
from server.scheduler.slots import buckets_for
from server.scheduler.validate import image_request


@dataclass(frozen=True)
class Alone:
    """Full batches of `capacity` rows, median over the rounds."""

    capacity: int
    call_ms: float  # t(capacity), back to back
    limit_per_s: float  # R*: images per second of the step mix, back to back
    service_per_s: float  # finished images per second of a LocalService
    efficiency: float  # median over the rounds of service / back to back, each pair measured side by side
    efficiencies: tuple[float, ...]


def measure(service: LocalService, call: Callable[[], object], capacity: int, round_s: float, rounds: int) -> Alone:
    """Alternates the two, `round_s` seconds each. call: of the service's network, over `capacity` rows."""
    (manifest,) = service.manifests.values()
    requests = [image_request(manifest, steps=steps, seed=steps, format="pixels") for steps in STEP_MIX]

    def calls() -> Iterator[object]:
        return (call() for _ in itertools.count())

    def images() -> Iterator[object]:
        return service.as_finished(itertools.cycle(requests), at_once=2 * capacity)

    rates = np.zeros((2, rounds))  # calls and images per second
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            rates[side, turn] = per_second(images() if side else calls(), 2 * capacity if side else 2, round_s)
    limits, served = rates[0] * capacity / mean_steps(), rates[1]
    return Alone(
        capacity=capacity,
        call_ms=float(1000 / np.median(rates[0])),
        limit_per_s=float(np.median(limits)),
        service_per_s=float(np.median(served)),
        efficiency=float(np.median(served / limits)),
        efficiencies=tuple(np.round(served / limits, 4).tolist()),
    )


def per_second(finished: Iterator[object], first: int, duration_s: float) -> float:
    """How many come per second, after the first ones: slots are being filled, or emptied of what was before."""
    deque(itertools.islice(finished, first), maxlen=0)
    began = time.perf_counter()
    for count, _ in enumerate(finished, 1):
        if (elapsed_s := time.perf_counter() - began) >= duration_s:
            return count / elapsed_s
    raise AssertionError("they do not end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, metavar="DIR", help="engine to load")
    parser.add_argument("--cost", type=Cost.parse, metavar="A,B[,FLOOR]", help="a fixed-cost network in milliseconds")
    parser.add_argument("--backend", help="what runs the network (default: what the engine names)")
    parser.add_argument("--capacity", type=whole(1), default=8, help="slots of the scheduler (default %(default)s)")
    parser.add_argument("--threads", type=whole(0), default=0, help="cores one network call may use; 0: all")
    parser.add_argument("--rounds", type=whole(1), default=10, help="timed turns of each case (default %(default)s)")
    parser.add_argument("--round-s", type=number(POSITIVE), default=2.0, help="seconds of a turn (default %(default)s)")
    args = parser.parse_args()
    if args.cost:
        install(args.cost)
    from export.engine import load_engine  # only now: the line above may have replaced it

    buckets = buckets_for(args.capacity, exact=False)
    call = back_to_back(
        load_engine(args.engine, backend=args.backend, threads=args.threads, buckets=buckets), args.capacity
    )
    options = LoadOptions(backend=args.backend, capacity=args.capacity, threads=args.threads)
    with LocalService.open({args.engine.resolve().name: args.engine}, options) as service:
        print(json.dumps(asdict(measure(service, call, args.capacity, args.round_s, args.rounds))))


if __name__ == "__main__":
    main()
