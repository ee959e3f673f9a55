"""The server on a network as fast as a GPU's: latency, requests/s, CPU per request, beside an older checkout.

    python benchmarks/load/hot_path.py --beside ../old-checkout      # eight minutes; needs wrk
    python benchmarks/load/hot_path.py --smoke                       # half a minute; proves that it runs

Servers run on the fixed-cost network of an H200's shape, 1 ms + 5 us a row, with 128 slots (fixed_cost.py); the client
is wrk, requests have four steps. The trees take turns, one server at a time, so that the machine's drift is the same
for both: read the figures as ratios. Each tree runs its own fixed_cost.py; in trees without `sleep_precisely` a network
call takes up to 50 us longer than it says. The limit is what back-to-back network calls over full batches would give.
"""

from fewstep import extras

extras.name_missing()

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.harness import ROOT, table, write_result
from benchmarks.load.fixed_cost import Cost
from fewstep.ranges import POSITIVE, number, whole

COST, CAPACITY, STEPS = Cost(1.0, 0.005), 128, 4
CASES = ((1, 1), (16, 1), (64, 1), (128, 1), (16, 8))  # clients, images per request
COLUMNS = {
    "tree": "tree", "api_processes": "HTTP processes", "clients": "clients", "images": "images a request",
    "p50_ms": "p50 ms", "requests_per_s": "requests/s", "limit_share": "share of limit",
    "http_us": "HTTP CPU us/request", "worker_us": "worker CPU us/row and step",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One server under one load."""

    tree: str  # "this" or "beside"
    api_processes: int
    clients: int
    images: int
    p50_ms: float
    requests_per_s: float
    limit_share: float  # images/s over those of back-to-back calls
    http_us: float  # CPU of the HTTP processes per request
    worker_us: float  # CPU of the worker per row and network call
    errors: int


@contextmanager
def serving(tree: Path, api_processes: int) -> Iterator[tuple[str, psutil.Process]]:
    """The URL and the parent of a server of this tree."""
    flags = ["--capacity", str(CAPACITY), "--port", "0", "--engine", str(tree / "models/fashion/engine")]
    flags += ["--max-queue", "4096"] + (["--api-processes", str(api_processes)] if api_processes > 1 else [])
    command = [sys.executable, "benchmarks/load/fixed_cost.py", "--cost", str(COST), "--", *flags]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    with subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[-1], psutil.Process(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)


def measure(tree: str, folder: Path, api_processes: int, seconds: float, cases: Sequence[tuple[int, int]]) -> list[Run]:
    """One server, each case after a second of warm-up."""
    runs = []
    with serving(folder, api_processes) as (url, parent):
        children = parent.children()
        http, workers = children[:api_processes], children[api_processes:]
        for clients, images in cases:
            wrk(url, clients, images, 1.0)
            before = cpu_s(http), cpu_s(workers)
            requests, per_s, p50_ms, errors = wrk(url, clients, images, seconds)
            spent = cpu_s(http) - before[0], cpu_s(workers) - before[1]
            limit = CAPACITY / COST.seconds(CAPACITY) / STEPS
            runs.append(
                Run(
                    tree, api_processes, clients, images, p50_ms, per_s, per_s * images / limit,
                    1e6 * spent[0] / requests, 1e6 * spent[1] / (requests * images * STEPS), errors,
                )
            )  # fmt: skip
    return runs


def wrk(url: str, clients: int, images: int, seconds: float) -> tuple[int, float, float, int]:
    """Requests, requests/s, median latency in ms, answers other than 2xx."""
    body = f'{{"steps":{STEPS},"seed":7,"n":{images}}}'
    script = f"wrk.method='POST' wrk.headers['Content-Type']='application/json' wrk.body='{body}'"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        duration = f"{max(1, round(seconds))}s"
        command = ["wrk", "-t1", f"-c{clients}", f"-d{duration}", "--latency", "-s", file.name, f"{url}/v1/generate"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count = int(_found(r"(\d+) requests in", text))
    per_s = float(_found(r"Requests/sec:\s+([\d.]+)", text))
    value, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)\b", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    p50_ms = float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return count, per_s, p50_ms, int(errors[1]) if errors else 0


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"wrk said something else than expected:\n{text}")
    return match[1]


def medians(runs: Sequence[Run]) -> list[dict[str, object]]:
    """One row per tree, process count and case: the median over the rounds."""
    keys = sorted({(run.api_processes, run.clients, run.images, run.tree) for run in runs})
    rows = []
    for api_processes, clients, images, tree in keys:
        same = [
            asdict(run) for run in runs
            if (run.api_processes, run.clients, run.images, run.tree) == (api_processes, clients, images, tree)
        ]  # fmt: skip
        numbers = {name: median(run[name] for run in same) for name, value in same[0].items() if name != "tree"}
        rows.append({"tree": tree, **numbers, "rounds": len(same)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout, measured in turns with this one")
    parser.add_argument("--api-processes", type=whole(1), nargs="*", default=[1, 2], help="of this tree (1 and 2)")
    parser.add_argument("--rounds", type=whole(1), default=3, help="turns of each case (default %(default)s)")
    parser.add_argument("--seconds", type=number(POSITIVE), default=5.0, help="of each case in each round")
    parser.add_argument("--smoke", action="store_true", help="one short round")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "build" / "hot_path.json",
        metavar="FILE",
        help="the JSON with the result (default %(default)s)",
    )
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("this benchmark needs wrk: apt-get install wrk")
    rounds, seconds = (1, 1.0) if args.smoke else (args.rounds, args.seconds)
    cases = CASES[:2] if args.smoke else CASES
    turns = [("this", ROOT, count) for count in args.api_processes]
    turns += [("beside", args.beside.resolve(), 1)] if args.beside else []
    runs: list[Run] = []
    for turn in range(rounds):
        for tree, folder, api_processes in turns:
            print(f"round {turn + 1} of {rounds}: {tree}, {api_processes} HTTP processes", flush=True)
            runs += measure(tree, folder, api_processes, seconds, cases)
    rows = medians(runs)
    print(table(rows, COLUMNS))
    settings = {"cost_ms": str(COST), "capacity": CAPACITY, "steps": STEPS, "rounds": rounds, "seconds": seconds}
    if args.beside:
        head = ["git", "rev-parse", "HEAD"]
        settings["beside"] = subprocess.run(head, cwd=args.beside, capture_output=True, text=True).stdout.strip()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_result(args.out, "hot_path", settings, rows, runs=[asdict(run) for run in runs])


if __name__ == "__main__":
    main()
