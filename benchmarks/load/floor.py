"""The least time of one image on a network as fast as a GPU's, for any server in Python.

    python benchmarks/load/floor.py            # half a minute

A client, an HTTP process and a worker as the server has them, joined by the same kinds of sockets, but nothing is
parsed, checked, scheduled or counted. Each row adds one part of the work of a request; compare the last with the p50 of
hot_path.py for one client. The parts run after a sleep of a millisecond, when other programs have used a
core's caches: noise or a PNG then takes two to four times as long as in a loop.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import uvloop

from benchmarks.harness import ROOT, percentile_ms, table, write_result
from benchmarks.load.fixed_cost import Cost, FixedCostEngine, sleep_precisely
from benchmarks.load.hot_path import COST, STEPS
from export.manifest import read_manifest
from fewstep.noise import normals
from fewstep.pixels import encode, to_pixels
from fewstep.ranges import whole
from fewstep.step import Levels, denoise, levels_of, renoise, write_network_input

PARTS = ("round trip", "network calls", "PNG", "noise", "arithmetic")
WARM_UP = 50
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: %d\r\n\r\n"


def answerer(parts: int, engine: FixedCostEngine) -> Callable[[], bytes]:
    """What makes one answer, with the first so many of PARTS."""
    manifest = engine.manifest
    shape, levels = manifest.image_shape, levels_of(tuple(manifest.levels[STEPS]), manifest.sigma_data)
    x, work = np.zeros((2, 1, *shape), np.float32)
    seeds, steps = np.full(STEPS, 7, np.uint64), np.arange(STEPS)
    stored = encode(to_pixels(x)[0], "png")
    no_label = np.zeros((1, manifest.classes), np.float32)

    def answer() -> bytes:
        noise = normals(seeds, steps, shape) if parts > 3 else np.zeros((STEPS, *shape), np.float32)
        x[:] = noise[:1]
        for step in range(STEPS if parts > 1 else 0):
            level = Levels(*levels[step : step + 1].T)
            if parts > 4:
                write_network_input(x, level.c_in, None, out=work)
            output = engine.network(work, level.c_noise, no_label)
            if parts > 4:
                denoise(x, output, level.c_skip, level.c_out, work)
                if step + 1 < STEPS:
                    renoise(x, noise[step + 1 : step + 2], level.sigma_next)
        return encode(to_pixels(x)[0], "png") if parts > 2 else stored

    return answer


def work(end: socket.socket, parts: int, folder: Path, cost: Cost) -> None:
    """The worker: an answer for whatever comes, until the other end closes."""
    sleep_precisely()
    answer = answerer(parts, FixedCostEngine(read_manifest(folder), cost))
    while end.recv(65_536):
        end.sendall(answer())


class Front(asyncio.Protocol):
    """A client's connection: passes what comes to the worker, and the worker's answers back."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.client = cast(asyncio.Transport, transport)
        asyncio.get_running_loop().add_reader(self.end, self.answered)

    def data_received(self, data: bytes) -> None:
        self.end.sendall(data)

    def answered(self) -> None:
        data = self.end.recv(65_536)
        self.client.write(HEAD % len(data) + data)


async def front(listener: socket.socket, end: socket.socket) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Front(end), sock=listener)
    await server.serve_forever()


def measure(parts: int, requests: int, folder: Path, cost: Cost) -> list[float]:
    """Seconds of each request, sent one after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    http_end, worker_end = socket.socketpair()
    children: list[int] = []
    for run in (lambda: work(worker_end, parts, folder, cost), lambda: uvloop.run(front(listener, http_end))):
        if not (child := os.fork()):
            run()
            os._exit(0)
        children.append(child)
    taken = []
    try:
        with socket.create_connection(listener.getsockname()) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(WARM_UP + requests):
                began = time.perf_counter()
                client.sendall(b"a request" * 16)
                assert client.recv(65_536).endswith(b"IEND\xaeB`\x82")
                taken.append(time.perf_counter() - began)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for end in (listener, http_end, worker_end):
            end.close()
    return taken[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine",
        type=Path,
        default=ROOT / "models/fashion/engine",
        metavar="DIR",
        help="engine of the student (default %(default)s)",
    )
    parser.add_argument("--cost", type=Cost.parse, default=COST, metavar="A,B[,FLOOR]", help="milliseconds")
    parser.add_argument("--requests", type=whole(1), default=1_000, help="of each row")
    parser.add_argument("--smoke", action="store_true", help="a few requests")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "build" / "floor.json",
        metavar="FILE",
        help="the JSON with the result (default %(default)s)",
    )
    args = parser.parse_args()
    requests = 20 if args.smoke else args.requests
    rows = []
    for parts, name in enumerate(PARTS, start=1):
        taken = measure(parts, requests, args.engine, args.cost)
        rows.append({"with": name, "p50_ms": percentile_ms(taken, 50), "p90_ms": percentile_ms(taken, 90)})
    print(table(rows, {"with": "with", "p50_ms": "p50 ms", "p90_ms": "p90 ms"}))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_result(args.out, "floor", {"cost_ms": str(args.cost), "steps": STEPS, "requests": requests}, rows)


if __name__ == "__main__":
    main()
