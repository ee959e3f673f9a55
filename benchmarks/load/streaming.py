"""What streaming and OpenAI's words cost: CPU time of the HTTP process and of the worker for each image.

    python benchmarks/load/streaming.py              # two minutes
    python benchmarks/load/streaming.py --smoke      # ten seconds; proves that it runs

The server runs on a network that takes no CPU time (fixed_cost.py, 12 ms a call); 24 clients ask for images of four
calls, the kinds of answers in turns. CPU time is the scheduler's own count of nanoseconds, which other
programs on the machine change less than time by the clock. The cost is a share of what an image takes in one piece with
the shipped network, whose CPU time in batches of as many rows is measured in the same run.
One client alone then asks for streams: how long after the request its first partial image is there, in network calls.
That is time by the clock, which other programs lengthen.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import json
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from benchmarks.harness import ROOT, result_file, table, write_result
from benchmarks.load.cores import available
from benchmarks.load.fixed_cost import Cost
from benchmarks.load.http_client import GENERATE, Pool, request
from benchmarks.load.servers import Running, ours
from export.engine import load_engine
from fewstep.ranges import whole

COST, CLIENTS, STEPS = Cost(12.0, 0.0), 24, 4
ENGINE = ROOT / "models/fashion/engine"
OPENAI = "/v1/images/generations"
NATIVE = "our own API, in one piece"
PLAIN = "OpenAI's API, in one piece"
KINDS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {},
    NATIVE: {},
    "a stream without partial images": {"stream": True},
    "a stream with 1": {"stream": True, "partial_images": 1},
    "a stream with 3": {"stream": True, "partial_images": 3},
}
FIRSTS = 40  # streams of the client that is alone
COLUMNS = {
    "kind": "answer", "http_ms": "HTTP process, ms", "worker_ms": "worker, ms", "share": "of an image with its network",
}  # fmt: skip


def payload(kind: str) -> bytes:
    """The bytes of a request."""
    if kind == NATIVE:
        body, accept = {"steps": STEPS, "seed": 7}, "application/json"
        return request("POST", GENERATE, json.dumps(body).encode(), {"Accept": accept})
    body = {"prompt": "", "num_inference_steps": STEPS, "seed": 7, **KINDS[kind]}
    return request("POST", OPENAI, json.dumps(body).encode(), {"Content-Type": "application/json"})


async def ask(server: Running, kind: str, images: int) -> None:
    """Get so many images, CLIENTS at a time. Raises RuntimeError for an answer that is none."""
    pool, left, sent = Pool(server.url), iter(range(images)), payload(kind)

    async def client() -> None:
        for _ in left:
            answer = await pool.fetch(sent)
            if answer.status != 200 or b"b64_json" not in answer.body:
                raise RuntimeError(f"the server answered {answer.status}: {answer.body[:200]!r}")

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    pool.close()


def first_partial_calls(server: Running) -> float:
    """Network calls' time from a request to its first partial image, the median of FIRSTS streams one by one."""
    address, sent, taken = urlsplit(server.url), payload("a stream with 1"), []
    with socket.create_connection((address.hostname, address.port), 60) as connection:
        for _ in range(FIRSTS):
            start, answer = time.perf_counter(), b""
            connection.sendall(sent)
            while b"partial_image" not in answer:
                answer += connection.recv(65536)
            taken.append(time.perf_counter() - start)
            while not answer.endswith(b"0\r\n\r\n"):
                answer += connection.recv(65536)
    return median(taken) / COST.seconds(1)


def cpu_ms(process: psutil.Process) -> float:
    """Of all threads of a process so far (proc_pid_schedstat(5))."""
    files = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e6


def measure(server: Running, kind: str, images: int) -> tuple[float, float]:
    """Milliseconds for each image, in the HTTP process and in the worker."""
    roles = server.roles()
    watched = roles["http"][0], roles["worker"][0]
    before = [cpu_ms(process) for process in watched]
    asyncio.run(ask(server, kind, images))
    http, worker = (cpu_ms(process) - at for process, at in zip(watched, before, strict=True))
    return http / images, worker / images


def network_ms(rounds: int) -> float:
    """CPU milliseconds of the shipped network for an image of STEPS calls, in batches of CLIENTS rows on one core."""
    engine = load_engine(ENGINE, threads=1, buckets=(CLIENTS,))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CLIENTS, *engine.manifest.image_shape)).astype(np.float32)
    onehot = np.eye(engine.manifest.classes, dtype=np.float32)[np.arange(CLIENTS) % engine.manifest.classes]
    c_noise = np.zeros(CLIENTS, np.float32)
    taken = []
    for _ in range(1 + rounds):
        start = time.process_time()
        engine.network(x, c_noise, onehot)
        taken.append(1e3 * (time.process_time() - start))
    return STEPS * median(taken[1:]) / CLIENTS


def summary(runs: Sequence[Mapping[str, Any]], network: float) -> list[dict[str, Any]]:
    """Medians by kind. share: what a kind takes beyond PLAIN, of that with its network."""
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        same = [run for run in runs if run["kind"] == kind]
        http, worker = (median(run[name] for run in same) for name in ("http_ms", "worker_ms"))
        plain = rows[0]["http_ms"] + rows[0]["worker_ms"] if rows else http + worker
        rows.append(
            {"kind": kind, "http_ms": http, "worker_ms": worker, "share": (http + worker - plain) / (plain + network)}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole(1), default=6, help="turns of each kind (default %(default)s)")
    parser.add_argument("--images", type=whole(1), default=480, help="of each turn (default %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="one short round")
    parser.add_argument(
        "--out", type=result_file, default=ROOT / "build" / "streaming.json", help="the JSON (default %(default)s)"
    )
    args = parser.parse_args()
    rounds, images = (1, 2 * CLIENTS) if args.smoke else (args.rounds, args.images)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    flags = ["--engine", str(ENGINE), "--threads", "1", "--capacity", str(CLIENTS)]
    runs: list[dict[str, Any]] = []
    with ours(flags, available(), cost=COST, pinned=False) as server:
        for kind in KINDS:
            measure(server, kind, CLIENTS)  # what is done once, such as reading a module
        for _ in range(rounds):
            for kind in KINDS:
                http, worker = measure(server, kind, images)
                runs.append({"kind": kind, "http_ms": http, "worker_ms": worker})
        calls = first_partial_calls(server)
    network = network_ms(2 if args.smoke else 8)
    rows = summary(runs, network)
    print(table(rows, COLUMNS))
    print(f"the network takes {network:.1f} ms of CPU for an image of {STEPS} calls")
    print(f"the first partial image is there {calls:.2f} network calls after the request")
    settings = {"cost_ms": str(COST), "clients": CLIENTS, "steps": STEPS, "rounds": rounds, "images": images}
    write_result(args.out, "streaming", settings, rows, network_ms=network, first_partial_calls=calls, runs=runs)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
