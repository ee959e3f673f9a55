"""Our server beside what a user would choose instead: the same engine, the same arrivals, in turns.

    python benchmarks/load/peers.py                   # 70 minutes; --rounds and --seconds make it shorter
    python benchmarks/load/peers.py --smoke           # a few minutes; proves that every peer runs and makes our images
    python benchmarks/load/peers.py --peer-python build/peers/bin/python     # where BentoML, Ray and Triton are

Peers: FastAPI with a lock; LitServe's own batching in three ways; BentoML's adaptive batching; Ray Serve's
@serve.batch; Triton's iterative sequences (their files are stock_server.py and peer_servers/). BentoML and Ray run the
most careful way of batching whole requests, "shrinking"; Triton batches call by call, as ours does. In every round each
server has a turn at three loads: saturated; 0.4 and 0.8 of what ours gave when saturated in the same round. Read the
ratios: ours over the peer's of the same round, median and range. R* is the back-to-back limit of the network, measured
before each round.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import base64
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from benchmarks.harness import ROOT, result_file, table, write_result
from benchmarks.load.arrivals import STEP_MIX, Arrival, poisson
from benchmarks.load.capacity import Campaign
from benchmarks.load.closed_loop import saturate
from benchmarks.load.cores import Layout, available, pin
from benchmarks.load.fixed_cost import Cost
from benchmarks.load.http_client import Answer, Pool, generate, request
from benchmarks.load.open_loop import Asking, play
from benchmarks.load.run_summary import summarise
from benchmarks.load.servers import Running, ours, peer
from benchmarks.load.trajectories import BATCH_TIMEOUT_S
from export.manifest import read_manifest
from fewstep.ranges import POSITIVE, number, whole

TRITON = "pytriton"
LOADS = (0.4, 0.8)  # of what ours gives when saturated
SEEDS = range(4)  # of the images that are compared
MAX_QUEUE = 100_000  # of ours: no peer refuses a request
GIVE_UP_S = 10.0  # an answer that is later counts as none, or an overloaded peer would be waited for for minutes
COLUMNS = {
    "network": "network", "server": "server", "load": "load", "images_per_s": "images/s", "share": "of R*",
    "p50_ms": "p50 ms", "p99_ms": "p99 ms", "cpu_ms": "CPU ms/image", "sustained": "sustained", "gap": "gap",
}  # fmt: skip
RATIOS = {
    "network": "network", "server": "peer", "load": "load", "throughput": "images/s, ours/peer",
    "p50": "p50, ours/peer", "p99": "p99, ours/peer", "cpu": "CPU, ours/peer",
}  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A server that is compared."""

    name: str
    script: str = ""  # below benchmarks/load; empty: ours
    batching: str = "padded"
    probe: str = "/health"
    needs: str = ""  # the package that it stands for

    def body(self, fields: Mapping[str, Any]) -> bytes:
        """A request for one image."""
        if self.needs == TRITON:
            tensors = (("SEED", "INT64", fields["seed"]), ("STEPS", "INT32", fields["steps"]))
            inputs = [{"name": name, "shape": [1, 1], "datatype": kind, "data": [n]} for name, kind, n in tensors]
            asked = {"inputs": inputs, "outputs": [{"name": "PNG", "parameters": {"binary_data": True}}]}
            return request("POST", "/v2/models/denoise/infer", json.dumps(asked).encode())
        if self.needs != "bentoml":
            return generate(fields)
        content = json.dumps({"requests": [fields]}).encode()
        return request("POST", "/v1/generate", content, {"Content-Type": "application/json"})

    def pixels(self, answer: Answer) -> np.ndarray:
        """uint8 [H, W] or [H, W, C]. Raises RuntimeError for an answer without an image."""
        if answer.status != 200:
            raise RuntimeError(f"{self.name} answered {answer.status}: {answer.body[:200]!r}")
        png = base64.b64decode(json.loads(answer.body)[0]) if self.needs == "bentoml" else answer.body
        if self.needs == TRITON:  # the Open Inference Protocol's binary form: JSON, then the tensors
            png = png[int(answer.headers["inference-header-content-length"]) :]
        with Image.open(io.BytesIO(png)) as image:
            return np.asarray(image)


OURS = Peer("step-level (ours)")
PEERS = (
    OURS,
    Peer("FastAPI + lock", "peer_servers/fastapi_lock.py", needs="fastapi"),
    Peer("LitServe padded", "stock_server.py", needs="litserve"),
    Peer("LitServe shrinking", "stock_server.py", "shrinking", needs="litserve"),
    Peer("LitServe equal", "stock_server.py", "equal", needs="litserve"),
    Peer("BentoML shrinking", "peer_servers/bentoml_adaptive.py", "shrinking", "/readyz", "bentoml"),
    Peer("Ray Serve shrinking", "peer_servers/ray_batch.py", "shrinking", needs="ray"),
    Peer("Triton iterative", "peer_servers/triton_iterative.py", probe="/v2/health/ready", needs=TRITON),
)
PACKAGES = {"ray": "'ray[serve]'", TRITON: "nvidia-pytriton"}  # that pip knows by another name


def installed(python: str, packages: Sequence[str]) -> set[str]:
    """Those of these packages that an interpreter finds. Raises OSError where there is no such interpreter."""
    code = "import sys; from importlib.util import find_spec; print(*(p for p in sys.argv[1:] if find_spec(p)))"
    done = subprocess.run([python, "-c", code, *packages], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def available_peers(python: str) -> tuple[list[Peer], list[str]]:
    """The peers that can run, and a sentence about each that cannot: what to install."""
    found = installed(python, sorted({each.needs for each in PEERS if each.needs}))
    absent = sorted({each.needs for each in PEERS if each.needs and each.needs not in found})
    packages = " ".join(PACKAGES.get(name, name) for name in absent)
    command = f"python3 -m venv build/peers && build/peers/bin/pip install -e . psutil {packages}"
    sentences = [
        f"{PACKAGES.get(name, name)} is not installed for {python}, so its rows are missing" for name in absent
    ]
    sentences += [f"in an environment of its own: {command}; then --peer-python build/peers/bin/python"] * bool(absent)
    return [each for each in PEERS if not each.needs or each.needs in found], sentences


@dataclass
class Contest:
    """All peers on one network. rows: one for each turn."""

    args: argparse.Namespace
    campaign: Campaign
    peers: Sequence[Peer]
    rows: list[dict[str, Any]]

    @property
    def cores(self) -> Layout:
        return self.campaign.cores

    @contextlib.contextmanager
    def running(self, each: Peer, own: Sequence[str] = ()) -> Iterator[Running]:
        """own: flags of our server alone."""
        args, campaign = self.args, self.campaign
        flags = ["--engine", str(args.engine), "--capacity", str(campaign.args.capacity)]
        flags += ["--threads", str(len(self.cores.engine)), *campaign.backend()]
        log = args.logs / f"{campaign.network}-{each.name.replace(' ', '-')}.log"
        if each is OURS:
            started = ours([*flags, *own, "--max-queue", str(MAX_QUEUE)], self.cores, cost=campaign.cost, log=log)
        else:
            flags += ["--batching", each.batching, "--batch-timeout-s", str(args.batch_timeout_s)]
            started = peer(
                ROOT / "benchmarks/load" / each.script, flags, self.cores, cost=campaign.cost, log=log,
                probe=each.probe, python=args.peer_python,
            )  # fmt: skip
        with started as server:
            yield server

    def round(self, number: int, progress: tqdm) -> None:
        """One turn of each server: saturated, then at the loads; ours first, because the loads are shares of it."""
        limit = self.campaign.alone(rounds=2, round_s=self.args.limit_s)["limit_per_s"]
        order = [OURS, *np.random.default_rng(number).permutation(np.array(self.peers[1:], dtype=object))]
        pictures: dict[int, np.ndarray] = {}
        full = 0.0
        for each in order:
            # A fresh server at each load: work that clients no longer wait for would be the next turn's.
            with self.running(each) as server:
                gap = asyncio.run(self.gap(each, server, pictures))
                rate, cpu_ms = self.saturated(each, server)
            full = full or rate
            self.note(number, each, "full", limit, images_per_s=rate, cpu_ms=cpu_ms, gap=gap)
            for load in self.args.loads:
                with self.running(each) as server:
                    self.note(number, each, load, limit, **self.at(each, server, load * full, number))
            progress.update()

    def note(self, round: int, each: Peer, load: float | str, limit: float, **figures: Any) -> None:
        row = {"network": self.campaign.network, "round": round, "server": each.name, "load": load}
        self.rows.append({**row, "limit_per_s": limit, "share": figures["images_per_s"] / limit, **figures})

    async def gap(self, each: Peer, server: Running, pictures: dict[int, np.ndarray]) -> int:
        """Largest difference from our pixels, in grey levels, of images made one at a time; ours come first."""
        pool, largest = Pool(server.url), 0
        try:
            for seed in SEEDS:
                answer = await pool.fetch(each.body({"steps": STEP_MIX[seed % len(STEP_MIX)], "seed": seed}))
                pixels = each.pixels(answer)
                ours = pictures.setdefault(seed, pixels)
                largest = max(largest, int(np.abs(pixels.astype(int) - ours).max()))
        finally:
            pool.close()
        return largest

    def saturated(self, each: Peer, server: Running) -> tuple[float, float]:
        """Images per second, and processor time of all its processes for an image, in ms."""
        args = self.args
        end_s, before_s = args.warmup_s + args.seconds, cpu_s(server)
        outstanding = 4 * self.campaign.args.capacity
        rate = asyncio.run(saturate(server.url, outstanding, args.warmup_s, end_s, body=each.body))
        return rate, 1e3 * (cpu_s(server) - before_s) / max(rate * end_s, 1)

    def at(self, each: Peer, server: Running, rate: float, draw: int) -> dict[str, Any]:
        args = self.args

        def payload(arrival: Arrival) -> bytes:
            return each.body({"steps": arrival.steps, "seed": arrival.seed})

        end_s, before_s = args.warmup_s + args.seconds, cpu_s(server)
        schedule = poisson(rate, end_s, seed=args.seed + draw)
        records = asyncio.run(play(server.url, schedule, Asking(payload, timeout_s=GIVE_UP_S)))
        made = sum(record.status == 200 for record in records)
        summary = asdict(summarise(records, args.warmup_s, end_s, GIVE_UP_S))
        return {**summary, "rate": rate, "cpu_ms": 1e3 * (cpu_s(server) - before_s) / max(made, 1)}


def cpu_s(server: Running) -> float:
    """Processor time of a server and everything it has started so far."""
    total = 0.0
    for process in server.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]" if values else "-"


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ours over each peer's, of the same round, load and network."""
    keyed = {(row["network"], row["server"], row["load"], row["round"]): row for row in rows}
    cases = dict.fromkeys((row["network"], row["server"], row["load"]) for row in rows if row["server"] != OURS.name)
    measures = {"throughput": "images_per_s", "p50": "p50_ms", "p99": "p99_ms", "cpu": "cpu_ms"}
    made = []
    for network, server, load in cases:
        rounds = sorted({key[3] for key in keyed if key[:3] == (network, server, load)})
        pairs = [(keyed[network, OURS.name, load, each], keyed[network, server, load, each]) for each in rounds]
        row = {"network": network, "server": server, "load": load}
        for name, key in measures.items():
            row[name] = spread([mine[key] / theirs[key] for mine, theirs in pairs if mine.get(key) and theirs.get(key)])
        made.append(row)
    return made


def medians(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each network, server and load: medians over the rounds; sustained, where it was in all of them."""
    grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["network"], row["load"], row["server"]), []).append(row)
    made = []
    for (network, load, server), group in grouped.items():
        found: dict[str, Any] = {"network": network, "server": server, "load": load}
        for key in ("images_per_s", "share", "p50_ms", "p99_ms", "cpu_ms", "gap"):
            values = [each[key] for each in group if each.get(key) is not None]
            found[key] = median(values) if values else None
        found["sustained"] = all(each["sustained"] for each in group) if load != "full" else None
        made.append(found)
    return sorted(made, key=lambda row: (row["network"], str(row["load"])))


def add_shared_options(parser: argparse.ArgumentParser, name: str, rounds: int, seconds: int) -> None:
    """Options of a comparison of servers, for this script and galleries.py. name: of its JSON and folder of logs."""
    parser.add_argument("--engine", type=Path, default=ROOT / "models/fashion/engine", metavar="DIR",
                        help="engine of the student (default: the shipped one)")  # fmt: skip
    parser.add_argument("--cost", type=Cost.parse, default=Cost(1, 0.005), metavar="A,B[,FLOOR]",
                        help="the fixed-cost network: ms of max(floor, a + b B) (default 1,0.005)")  # fmt: skip
    parser.add_argument("--rounds", type=whole(1), default=rounds, help="turns of each server (default %(default)s)")
    parser.add_argument("--seconds", type=number(POSITIVE), default=seconds,
                        help="measured at each load (default %(default)s)")  # fmt: skip
    parser.add_argument("--warmup-s", type=number(POSITIVE), default=2, help="sent but not counted (default 2)")
    parser.add_argument("--limit-s", type=number(POSITIVE), default=1, help="of a measurement of R* (default 1)")
    parser.add_argument("--batch-timeout-s", type=number(POSITIVE), default=BATCH_TIMEOUT_S,
                        help="how long LitServe's and Ray's batches wait for more (default %(default)s)")  # fmt: skip
    parser.add_argument("--peer-python", default=sys.executable, metavar="FILE",
                        help="interpreter of the peers (default: this one)")  # fmt: skip
    parser.add_argument("--out", type=result_file, default=ROOT / "build" / f"{name}.json", help="JSON to write")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / name, metavar="DIR", help="the servers' logs")
    parser.add_argument("--smoke", action="store_true", help="one round of short turns")


def circumstances(args: argparse.Namespace, cores: Layout, missing: Sequence[str]) -> dict[str, Any]:
    """What a JSON says of the machine and the work beside the options that a script lists itself."""
    return {
        "cost_ms": asdict(args.cost), "steps": STEP_MIX, "cores": {"engine": cores.engine, "rest": cores.rest},
        "layout_shared": cores.shared, "missing": missing, "load_average": psutil.getloadavg(),
    }  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, "peers", rounds=5, seconds=15)
    parser.add_argument("--backend", help="what runs the real network (default: what the engine names)")
    parser.add_argument("--networks", nargs="+", choices=("real", "fixed"), default=["real", "fixed"],
                        help="the engine's network, one of a fixed cost (--cost), or both (default)")  # fmt: skip
    parser.add_argument("--capacity", type=whole(1), default=24, help="rows of a call, real network (default 24)")
    parser.add_argument("--fixed-capacity", type=whole(2), default=128, help="likewise, fixed cost (default 128)")
    parser.add_argument("--loads", type=number(POSITIVE), nargs="*", default=list(LOADS), metavar="LOAD",
                        help="shares of what ours gives; none: saturated only (default 0.4 0.8)")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="PACKAGE", choices=sorted({each.needs for each in PEERS} - {""}),
                        help="the peers to compare, by package (default: all that are installed)")  # fmt: skip
    parser.add_argument("--seed", type=whole(0), default=0, help="of the arrivals (default 0)")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.rounds, args.seconds, args.warmup_s, args.limit_s = 1, 3, 1, 0.2
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    args.logs.mkdir(parents=True, exist_ok=True)
    cores = available()
    peers, missing = available_peers(args.peer_python)
    print(*missing, sep="\n", file=sys.stderr)
    peers = [each for each in peers if not each.needs or not args.only or each.needs in args.only]
    pin(psutil.Process(), cores.rest)
    rows: list[dict[str, Any]] = []
    contests = []
    for network in args.networks:
        capacity = args.capacity if network == "real" else args.fixed_capacity
        campaign = Campaign(argparse.Namespace(**{**vars(args), "capacity": capacity}), network, cores)
        contests.append(Contest(args, campaign, peers, rows))
    with tqdm(total=args.rounds * len(peers) * len(contests), unit="turn") as progress:
        for number in range(args.rounds):
            for contest in contests:
                contest.round(number, progress)
    print(table(medians(rows), COLUMNS), table(ratios(rows), RATIOS), sep="\n\n")
    model = read_manifest(args.engine)
    names = (
        "backend", "loads", "networks", "capacity", "fixed_capacity", "rounds", "seconds", "warmup_s",
        "batch_timeout_s", "seed",
    )  # fmt: skip
    settings = {name: getattr(args, name) for name in names}
    settings |= {
        "model": model.name, "checkpoint": model.checkpoint, "give_up_s": GIVE_UP_S,
        **circumstances(args, cores, missing),
    }  # fmt: skip
    write_result(args.out, "peers", settings, rows, medians=medians(rows), ratios=ratios(rows))
    print(f"\nwrote {args.out}; the servers' logs are in {args.logs}")


if __name__ == "__main__":
    main()
