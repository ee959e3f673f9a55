"""How near the server comes to its network, and how far ahead of batching whole requests it is.

    python benchmarks/load/capacity.py            # about seventeen minutes
    python benchmarks/load/capacity.py --smoke    # about a minute; proves that it runs
    python benchmarks/load/capacity.py --brief    # saturated and at load 0.8 only, beside shrinking batches
    python benchmarks/load/capacity.py --beside ../old-checkout     # an older server's figures beside ours

R* is the back-to-back limit: images per second of the step mix were the network called with full batches and nothing
else done. Ours and the baselines take turns at each load, on fresh servers and on one schedule; R* is measured again
before every turn, because machines drift. Everything runs twice: on the real network, and on one of fixed cost.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from tqdm import tqdm

from benchmarks.harness import ROOT, result_file, table, write_result
from benchmarks.load.arrivals import STEP_MIX, mean_steps, poisson
from benchmarks.load.closed_loop import saturate
from benchmarks.load.cores import Layout, available, pin
from benchmarks.load.fixed_cost import Cost
from benchmarks.load.load_plot import draw_capacity
from benchmarks.load.open_loop import play, write_log
from benchmarks.load.run_summary import summarise
from benchmarks.load.servers import Running, ours, peer
from benchmarks.load.targets import BASELINE, OURS, check_targets, latency_limit_s
from benchmarks.load.trajectories import BATCH_TIMEOUT_S
from export.manifest import read_manifest
from fewstep.ranges import POSITIVE, number, whole
from server.scheduler.calibration import MIN_SLOTS

LOADS = (0.3, 0.4, 0.6, 0.8, 0.9, 0.95)
FIRM = 0.8  # from this load on something is promised, and it gets LONG times the time
DRAWS = 3  # of the arrivals at FIRM: one draw's 99th percentile is off by a tenth even from an ideal server
HOPELESS = 0.5  # beyond this load the padded baseline only piles requests up; half the time shows that
LONG = 3.0
OVERLOAD = 5.0
BESIDE = "beside"  # the server of another checkout
STOCK = ROOT / "benchmarks/load/stock_server.py"
SERVERS = (OURS, BASELINE, "stock shrinking", "stock equal")
MANY = 8  # images per request where there are several
MAX_QUEUE = 256  # the server's default, written out because the overload's limit follows from it
COLUMNS = {
    "network": "network", "server": "server", "kind": "loop", "load": "load", "draw": "draw", "images": "n",
    "requests": "requests",
    "limit_per_s": "R*", "images_per_s": "images/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms",
    "latency_limit_ms": "limit ms", "rejects": "429", "reject_p99_ms": "429 p99", "errors": "errors",
    "lag_p99_ms": "lag p99", "sustained": "sustained",
}  # fmt: skip
VERDICTS = {key: key for key in ("network", "target", "bound", "measured", "verdict", "note")}


@dataclass(frozen=True)
class Point:
    """One turn of one server."""

    server: str
    kind: Literal["open", "closed", "overload"]
    load: float | None = None  # offered images per second over R*; a closed loop offers what it gets
    images: int = 1
    draw: int = 0  # of the arrivals, the same for all servers; a closed loop has none and is only run again

    @property
    def share(self) -> float:
        """Of the seconds of a turn: more where something is promised or compared."""
        if self.kind == "closed":
            return 2 / 3
        if self.load is None or self.kind == "overload" or self.images > 1:
            return 1.0
        if self.load < HOPELESS:
            return LONG if self.server in (OURS, BASELINE) else 1.0
        if self.server in (OURS, BESIDE):
            return LONG if self.load >= FIRM else 1.0
        return 0.5


@dataclass
class Campaign:
    """Everything that is measured on one network."""

    args: argparse.Namespace
    network: str
    cores: Layout
    ready_s: list[float] = field(default_factory=list)

    @property
    def cost(self) -> Cost | None:
        return self.args.cost if self.network == "fixed" else None

    def backend(self) -> list[str]:
        return ["--backend", self.args.backend] if self.args.backend and self.network == "real" else []

    def alone(self, rounds: int, round_s: float) -> dict[str, Any]:
        """engine_alone.py on the engine's cores, while nothing else runs."""
        flags = ["--engine", self.args.engine, "--capacity", self.args.capacity, "--threads", len(self.cores.engine)]
        flags += ["--rounds", rounds, "--round-s", round_s, *self.backend()]
        flags += ["--cost", self.cost] if self.cost else []
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks/load/engine_alone.py"), *map(str, flags)],
            cwd=ROOT,
            preexec_fn=lambda: os.sched_setaffinity(0, self.cores.engine),
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout)

    def turn(self, point: Point) -> dict[str, Any]:
        """R* now, a fresh server, one run."""
        limit = self.alone(rounds=2, round_s=self.args.limit_s)
        common = ["--engine", str(self.args.engine), "--capacity", str(self.args.capacity)]
        common += ["--threads", str(len(self.cores.engine)), *self.backend()]
        log = self.args.logs / f"{self.network}-server.log"
        if point.server in (OURS, BESIDE):
            flags = [*common, "--max-queue", str(MAX_QUEUE), *self.args.server]
            tree = ROOT if point.server == OURS else self.args.beside.resolve()
            started = ours(flags, self.cores, cost=self.cost, log=log, tree=tree)
        else:
            flags = [
                *common,
                "--batching",
                point.server.split()[1],
                "--batch-timeout-s",
                str(self.args.batch_timeout_s),
            ]
            started = peer(STOCK, flags, self.cores, cost=self.cost, log=log)
        with started as server:
            if point.server == OURS:
                self.ready_s.append(server.ready_s)
            measured = self._saturate(server, point) if point.kind == "closed" else self._open(server, point, limit)
        return {
            "network": self.network,
            **asdict(point),
            "limit_per_s": limit["limit_per_s"],
            "call_ms": limit["call_ms"],
            "latency_limit_ms": 1000 * latency_limit_s(max(STEP_MIX), limit["call_ms"] / 1000),
            **measured,
        }

    def _saturate(self, server: Running, point: Point) -> dict[str, Any]:
        outstanding = max(4 * self.args.capacity // point.images, 4)
        end_s = self.args.warmup_s + self.args.seconds * point.share
        rate = asyncio.run(saturate(server.url, outstanding, self.args.warmup_s, end_s, images=point.images))
        return {"outstanding": outstanding, "images_per_s": rate}

    def _open(self, server: Running, point: Point, limit: dict[str, Any]) -> dict[str, Any]:
        assert point.load is not None
        call_s, warmup_s = limit["call_ms"] / 1000, self.args.warmup_s
        allowed_s = latency_limit_s(max(STEP_MIX), call_s)
        if point.kind == "overload":
            # Twice the time that a full house stands for; and the house must be full before the counting starts.
            allowed_s = 2 * (MAX_QUEUE + self.args.capacity) / self.args.capacity * mean_steps() * call_s
            warmup_s += allowed_s / 2
        end_s = warmup_s + self.args.seconds * point.share
        rate = point.load * limit["limit_per_s"] / point.images
        schedule = poisson(rate, end_s, images=point.images, seed=self.args.seed + point.draw)
        records = asyncio.run(play(server.url, schedule))
        name = f"{self.network}-{point.server}-{point.kind}-{point.load:g}-{point.images}-{point.draw}".replace(
            " ", "-"
        )
        write_log(records, self.args.logs / f"{name}.csv")
        summary = asdict(summarise(records, warmup_s, end_s, allowed_s))
        return {**summary, "rate": rate, "goodput_limit_ms": 1000 * allowed_s}


def points(smoke: bool, beside: bool, brief: bool = False) -> list[Point]:
    """Turns in order; whatever is compared stands side by side. beside: an older server instead of the baselines."""
    if brief:
        pair = (OURS, SERVERS[2])
        return [*(Point(server, "closed") for server in pair), *(Point(server, "open", FIRM) for server in pair)]
    if beside:
        pair = (OURS, BESIDE)
        loads = LOADS[:1] if smoke else LOADS
        return [
            *(Point(server, "open", load) for load, server in itertools.product(loads, pair)),
            *(Point(server, "closed", draw=draw) for draw, server in itertools.product(range(DRAWS), pair)),
            *(Point(server, "overload", OVERLOAD) for server in pair),
            *(Point(server, "open", FIRM, MANY) for server in pair),
            *(Point(server, "closed", None, MANY) for server in pair),
        ]
    if smoke:
        return [
            *(Point(server, "open", 0.3) for server in SERVERS[:2]),
            *(Point(server, "closed") for server in SERVERS[:2]),
            Point(OURS, "overload", OVERLOAD),
        ]
    return [
        *(Point(server, "open", load) for load, server in itertools.product(LOADS, (OURS, BASELINE))),
        *(Point(OURS, "open", FIRM, draw=draw) for draw in range(1, DRAWS)),
        *(Point(server, "open", LOADS[1]) for server in SERVERS[2:]),
        *(Point(server, "closed") for server in reversed(SERVERS)),
        Point(OURS, "overload", OVERLOAD),
        Point(OURS, "closed", draw=1),
        Point(OURS, "open", FIRM, MANY),
        Point(OURS, "closed", None, MANY),
    ]


def run(args: argparse.Namespace, cores: Layout) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Rows, verdicts, and the engine alone, of each network asked for."""
    rows: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    alone: dict[str, Any] = {}
    for network in args.networks:
        campaign = Campaign(args, network, cores)
        alone[network] = campaign.alone(rounds=4 if args.smoke or args.brief else 12, round_s=args.limit_s)
        turns = points(args.smoke, args.beside is not None, args.brief)
        rows += [campaign.turn(point) for point in tqdm(turns, desc=network, unit="turn")]
        if args.beside is None:
            targets = check_targets(network, rows, alone[network]["efficiency"], campaign.ready_s)
            verdicts += [target.row() for target in targets]
        alone[network]["ready_s"] = campaign.ready_s
    return rows, verdicts, alone


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine",
        type=Path,
        default=ROOT / "models/fashion/engine",
        metavar="DIR",
        help="engine of the student (default %(default)s)",
    )
    parser.add_argument("--backend", help="what runs the real network (default: what the engine names)")
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=("real", "fixed"),
        default=["real", "fixed"],
        help="the engine's own network, one of a fixed cost (--cost), or both (default both)",
    )
    parser.add_argument("--cost", type=Cost.parse, default=Cost(20, 1.25), metavar="A,B[,FLOOR]",
                        help="the fixed-cost network: ms of max(floor, a + b B) (default 20,1.25)")  # fmt: skip
    parser.add_argument("--capacity", type=whole(1), default=MIN_SLOTS, help="slots, and the baseline's batch (default "
                        "%(default)s, as the server has on a CPU)")  # fmt: skip
    parser.add_argument("--seconds", type=number(POSITIVE), default=9, help="measured per turn (default 9)")
    parser.add_argument("--warmup-s", type=number(POSITIVE), default=1.5, help="sent but not counted (default 1.5)")
    parser.add_argument(
        "--limit-s", type=number(POSITIVE), default=0.4, help="length of one measurement of R* (default 0.4)"
    )
    parser.add_argument(
        "--batch-timeout-s", type=number(POSITIVE), default=BATCH_TIMEOUT_S, help="the baseline's window"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of the arrivals")
    parser.add_argument(
        "--out", type=result_file, default=ROOT / "build" / "load.json", help="JSON; the PNG lies beside it"
    )
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout, instead of the baselines")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "load", metavar="DIR", help="a CSV per run")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--smoke", action="store_true", help="two loads, short turns")
    how.add_argument("--brief", action="store_true", help="saturated and at load 0.8, beside shrinking batches")
    parser.add_argument("server", nargs="*", help="after --: further flags of python -m server")
    args = parser.parse_args(arguments)
    if args.brief and args.beside:
        parser.error("--brief has the shrinking baseline; --beside would have another checkout in its place")
    if args.smoke:
        args.seconds, args.warmup_s, args.limit_s = 3, 1, 0.2
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    args.logs.mkdir(parents=True, exist_ok=True)
    cores = available()
    if cores.shared:
        print("one core for server and generator alike: read the ratios, not the distance to R*", file=sys.stderr)
    pin(psutil.Process(), cores.rest)
    rows, verdicts, alone = run(args, cores)
    print(table(rows, COLUMNS), table(verdicts, VERDICTS), sep="\n\n")
    model = read_manifest(args.engine)
    settings = {
        key: getattr(args, key)
        for key in (
            "backend",
            "capacity",
            "seconds",
            "warmup_s",
            "limit_s",
            "batch_timeout_s",
            "seed",
            "networks",
            "server",
        )
    }
    settings |= {
        "model": model.name,
        "checkpoint": model.checkpoint,
        "cost_ms": asdict(args.cost),
        "steps": STEP_MIX,
        "max_queue": MAX_QUEUE,
    }
    if args.beside:
        head = ["git", "rev-parse", "HEAD"]
        settings["beside"] = subprocess.run(head, cwd=args.beside, capture_output=True, text=True).stdout.strip()
    settings |= {"cores": {"engine": cores.engine, "rest": cores.rest}, "layout_shared": cores.shared}
    write_result(args.out, "load", settings, rows, targets=verdicts, engine_alone=alone)
    draw_capacity(rows, args.out.with_suffix(".png"))
    print(f"\nwrote {args.out} and {args.out.with_suffix('.png')}; a CSV of every run is in {args.logs}")


if __name__ == "__main__":
    main()
