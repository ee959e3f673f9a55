"""The server under each policy beside the simulation of `fewstep bench plan`, on the same arrivals.

    python benchmarks/load/beside_simulation.py                      # about twenty minutes
    python benchmarks/load/beside_simulation.py --network real       # the shipped network: measured figures alone
    python benchmarks/load/beside_simulation.py --smoke              # a minute; proves that it runs

Says whether the simulation's figures can be believed, and whether --policy shortest does on a server what it does
there. Steps 1, 2, 4 and 8 in equal shares, a tenth of the requests with eight images. The policies take turns on fresh
servers and get the same schedule; the simulation plays it, too, and adds what HTTP adds to a request alone.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, result_file, table, write_result
from benchmarks.load.arrivals import STEP_MIX, Arrival, mean_steps
from benchmarks.load.cores import Layout, available, pin
from benchmarks.load.fixed_cost import Cost
from benchmarks.load.open_loop import Record
from benchmarks.load.policies import CAPACITY, GALLERY, SHARE
from benchmarks.load.servers import ours
from benchmarks.serving.figures import good, own
from benchmarks.serving.mix import Kind, Mix
from benchmarks.serving.offering import Load, Watch, offer, schedule
from benchmarks.serving.reachable import check
from benchmarks.serving.simulate import Requests, Site, simulate
from benchmarks.serving.target import Target
from fewstep.ranges import POSITIVE, number, whole
from server.scheduler.policy import policy_of

AGEING, BATCH_DELAY_S, MAX_QUEUE = 15.0, 10.0, 4096  # the queue holds what a load below 1 makes wait
TIMEOUT_S = 60.0
GROUPS = ("all", "one step", "single", "eight")
COLUMNS = {
    "load": "load", "policy": "policy", "draw": "draw", "group": "requests of", "count": "requests",
    "p50_ms": "p50 ms", "simulated_p50_ms": "simulated", "p99_ms": "p99 ms", "simulated_p99_ms": "simulated",
    "failed": "failed", "lag_p99_ms": "lag p99",
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """What runs below the server."""

    engine: Path
    cost: Cost | None  # None: the engine's own network
    call_s: float  # of a full batch
    cores: Layout


def mix() -> Mix:
    """The requests of benchmarks/load/policies.py."""
    sizes = ((1, 1 - SHARE), (GALLERY, SHARE))
    return tuple(Kind(steps, images, share) for steps, (images, share) in itertools.product(STEP_MIX, sizes))


def rate_at(load: float, call_s: float) -> float:
    """Requests/s that offer so much of the images that full batches back to back would make."""
    return load * CAPACITY / call_s / mean_steps() / (1 + SHARE * (GALLERY - 1))


def turn(network: Network, policy: str, load: Load, log: Path) -> tuple[list[Record], float]:
    """What a fresh server makes of a schedule, and what HTTP adds to a request alone, in seconds."""
    cores = network.cores
    flags = ["--engine", str(network.engine), "--capacity", str(CAPACITY), "--max-queue", str(MAX_QUEUE)]
    flags += ["--policy", policy, "--ageing", str(AGEING), "--threads", str(len(cores.engine))]
    with ours(flags, cores, cost=network.cost, log=log) as server:
        for process in server.roles()["worker"]:
            pin(process, cores.engine)
        target, alone_s = asyncio.run(check(Target(server.url, "native", mix())))
        records = asyncio.run(offer(target, load, Watch(target), TIMEOUT_S))
    calls_s = 0.0
    if network.cost:
        calls_s = float(np.mean([kind.steps * network.cost.seconds(kind.images) for kind in mix() if kind.steps]))
    return records, max(alone_s - calls_s, 0.0)


def simulated_s(arrivals: Sequence[Arrival], cost: Cost, policy: str, overhead_s: float) -> np.ndarray:
    """Latencies of the arrivals that are due after the warm-up."""
    due, steps, images = (np.array([getattr(each, name) for each in arrivals]) for name in ("due_s", "steps", "images"))
    requests = Requests(due, steps, images, np.zeros(len(due), bool))
    call_s = [cost.seconds(count) for count in range(CAPACITY + 1)]
    site = Site(1, call_s, policy_of(policy, AGEING, BATCH_DELAY_S), MAX_QUEUE)
    return simulate(requests, site).latency_s[due >= 0] + overhead_s


def rows(records: Sequence[Record], simulated: np.ndarray | None, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of each group. simulated: of the same requests, in the same order."""
    made, kinds = [], mix()
    for group in GROUPS:
        chosen = [place for place, record in enumerate(records) if _belongs(kinds[record.kind], group)]
        answered = [records[place].latency_s for place in chosen if good(records[place])]
        row = {**head, "group": group, "count": len(chosen), "failed": len(chosen) - len(answered)}
        row |= _percentiles("", answered)
        row |= _percentiles("simulated_", [] if simulated is None else simulated[chosen])
        made.append(row | {"lag_p99_ms": own(records, kinds)["lag_p99_ms"]})
    return made


def _belongs(kind: Kind, group: str) -> bool:
    single = kind.images == 1
    return {"all": True, "one step": single and kind.steps == 1, "single": single, "eight": not single}[group]


def _percentiles(prefix: str, latencies_s: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    found = 1000 * np.percentile(latencies_s, (50, 99)) if len(latencies_s) else (None, None)
    return {
        f"{prefix}p{percent}_ms": None if ms is None else float(ms) for percent, ms in zip((50, 99), found, strict=True)
    }


def full_call_s(engine: Path, cost: Cost | None, cores: Sequence[int]) -> float:
    """Of a full batch, back to back, by engine_alone.py on the engine's cores."""
    if cost:
        return cost.seconds(CAPACITY)
    flags = ["--engine", engine, "--capacity", CAPACITY, "--threads", len(cores), "--rounds", 4]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/load/engine_alone.py"), *map(str, flags)], cwd=ROOT, check=True,
        stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    return json.loads(done.stdout)["call_ms"] / 1000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--network", choices=("fixed", "real"), default="fixed", help="of fixed cost, or the engine's (default: fixed)")
    add("--cost", type=Cost.parse, default=Cost(20, 1.25), metavar="A,B[,FLOOR]", help="ms of the fixed one")
    add("--engine", type=Path, default=ROOT / "models/fashion/engine", metavar="DIR", help="engine of the real network")
    add("--policies", nargs="+", choices=("fifo", "shortest"), default=["fifo", "shortest"], help="compared (both)")
    add("--loads", type=number(POSITIVE), nargs="+", default=[0.4, 0.8], metavar="LOAD", help="shares of the limit")
    add("--draws", type=whole(1), default=3, help="of the arrivals (default 3)")
    add("--seconds", type=number(POSITIVE), default=90.0, help="of a turn (default 90)")
    add("--smoke", action="store_true", help="one load, one draw, six seconds")
    add(
        "--out",
        type=result_file,
        default=ROOT / "build" / "beside-simulation.json",
        metavar="FILE",
        help="JSON to write",
    )
    args = parser.parse_args(arguments)
    if args.smoke:
        args.loads, args.draws, args.seconds = args.loads[:1], 1, 6.0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cost = args.cost if args.network == "fixed" else None
    cores = available()
    os.sched_setaffinity(0, cores.rest)  # this process generates the load
    network = Network(args.engine, cost, full_call_s(args.engine, cost, cores.engine), cores)
    made: list[dict[str, Any]] = []
    for rate, draw, policy in itertools.product(args.loads, range(args.draws), args.policies):
        load = Load(rate_at(rate, network.call_s), args.seconds, warmup_s=5.0, seed=draw)
        records, overhead_s = turn(network, policy, load, args.out.with_suffix(".log"))
        found = simulated_s(schedule(load, mix()), cost, policy, overhead_s) if cost else None
        made += rows(records, found, {"load": rate, "policy": policy, "draw": draw, "overhead_ms": 1000 * overhead_s})
    print(table(made, COLUMNS))
    settings = {
        "network": args.network, "cost_ms": str(cost) if cost else None, "call_ms": 1000 * network.call_s,
        "capacity": CAPACITY, "seconds": args.seconds, "draws": args.draws, "ageing": AGEING,
    }  # fmt: skip
    write_result(args.out, "beside_simulation", settings, made)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
