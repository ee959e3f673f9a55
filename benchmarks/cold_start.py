"""From `python -m server` to the first image: seconds, memory over all processes, idle CPU, one client's latency.

    python benchmarks/cold_start.py --out build/cold_start.json
    python benchmarks/cold_start.py --backend openvino
    python benchmarks/cold_start.py --backend chosen         # by the server, as without flags, at a later start

Starts real servers one after the other, and stops each with SIGTERM: with the first shipped model alone and with all
of them, in both modes, in turn. The clients ask for images of the first model. Each case is measured as a first start
("anew"), which measures call times and has nothing compiled, and as a later one ("kept"), which an earlier start of
the same case has told them; that one keeps them on an idle machine only. With OpenVINO it is the first model in fast
mode. `chosen` names no backend, and has later starts only: where the server chooses OpenVINO, ONNX Runtime makes the
first image, and the columns after it are measured PREPARED_S later, with OpenVINO.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks.harness import ROOT, percentile_ms, result_file, table, write_result
from export.manifest import BACKEND_OPENVINO, BACKEND_OPENVINO_F32, BACKEND_ORT_CPU, BACKENDS, read_manifest
from fewstep import cores
from fewstep.client import Client, Wanted
from fewstep.ranges import whole
from server.machine.kept import BUSY
from server.settings.sources import DEFAULT_MODELS, model_engine

COLUMNS = {
    "models": "models", "mode": "mode", "backend": "backend", "start": "start",
    "ready_s": "ready s", "first_image_s": "first image s",
    "first_image_cpu_s": "CPU s", "pss_mb": "PSS MB",
    "rss_mb": "RSS MB", "idle_cpu": "idle CPU", "p50_ms": "p50 ms", "p95_ms": "p95 ms",
    "images_per_s": "images/s, n=64", "exit": "exit",
}  # fmt: skip
IDLE_S = 2.0
PREPARED_S = 10.0
OPENVINO = (BACKEND_OPENVINO, BACKEND_OPENVINO_F32)
CHOSEN = "chosen"
STARTS = ("anew", "kept")


class Case(NamedTuple):
    """What a server is started with."""

    models: tuple[str, ...]
    mode: str
    backend: str | None = None  # None: the first engine's; CHOSEN: none is named
    start: str = "kept"  # what an earlier start has measured and compiled; "anew": nothing


def cases(backend: str | None) -> list[Case]:
    if backend in OPENVINO:
        return [Case(DEFAULT_MODELS[:1], "fast", backend, start) for start in STARTS]
    some = (DEFAULT_MODELS[:1], DEFAULT_MODELS)
    if backend == CHOSEN:
        return [Case(models, "fast", CHOSEN) for models in some]
    starts = STARTS if backend in (None, BACKEND_ORT_CPU) else STARTS[:1]  # nothing is kept of other backends
    return [Case(models, mode, backend, start) for models in some for mode in ("fast", "exact") for start in starts]


def measure(case: Case, requests: int, cache: Path) -> dict[str, Any]:
    """One server's life. cache: where it keeps what it measures and compiles, unless that is to be anew."""
    models, mode, backend, start = case
    command = [sys.executable, "-m", "server", "--port", "0", "--drain-s", "0", "--mode", mode]
    command += [part for name in models for part in ("--model", name)]
    command += ["--backend", backend or read_manifest(model_engine(models[0])).backend] if backend != CHOSEN else []
    # Nothing can be kept below a file. Python keeps the bytecode of modules, as it does unless it is told not to.
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache) if start == "kept" else os.devnull}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            ready = time.monotonic() - started
            with Client(url) as client:
                _generate(client, steps=4, label="Ankle boot", seed=7)
                first = time.monotonic() - started
                first_cpu = _cpu_s(_family(server.pid))
                ran = _backend(url)
                if backend == CHOSEN:
                    time.sleep(PREPARED_S)
                alone = [_generate(client, steps=4, label=9, seed=seed) for seed in range(requests)]
                many = _generate(client, steps=4, n=64, seed=0)
            processes = _family(server.pid)
            memory = [process.memory_full_info() for process in processes]
            busy = _cpu_s(processes)
            time.sleep(IDLE_S)
            idle = (_cpu_s(processes) - busy) / IDLE_S
        finally:
            server.terminate()
            code = server.wait()
    return {
        "models": " ".join(models),
        "mode": mode,
        "backend": ran,
        "start": start,
        "ready_s": ready,
        "first_image_s": first,
        "first_image_cpu_s": first_cpu,  # of all processes, to which other work on the machine adds little
        "pss_mb": sum(m.pss for m in memory) / 2**20,  # shared pages counted once
        "rss_mb": sum(m.rss for m in memory) / 2**20,
        "processes": len(processes),
        "idle_cpu": idle,  # share of one core
        "p50_ms": percentile_ms(alone, 50),
        "p95_ms": percentile_ms(alone, 95),
        "images_per_s": 64 / many,
        "exit": code,
    }


def wait_until_idle() -> None:
    """A busy server keeps no times. The load average falls within a minute, unless other programs run."""
    while os.getloadavg()[0] > 0.8 * BUSY * cores.count():
        tqdm.write(f"load average {os.getloadavg()[0]:.1f}: waiting until the machine is idle")
        time.sleep(5)


def _generate(client: Client, **wanted: Unpack[Wanted]) -> float:
    """Seconds from the request to its images as arrays."""
    started = time.monotonic()
    client.generate(**wanted)
    return time.monotonic() - started


def _backend(url: str) -> str:
    """Of the first model."""
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        return json.load(answer)["data"][0]["backend"]


def _family(parent: int) -> list[psutil.Process]:
    return [psutil.Process(parent), *psutil.Process(parent).children(recursive=True)]


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=whole(1), default=5, help="servers started per mode (default 5)")
    parser.add_argument("--requests", type=whole(1), default=50, help="single images asked of each (default 50)")
    parser.add_argument("--backend", choices=(*BACKENDS, CHOSEN), help="what runs the networks (default: what the "
                        "engines name)")  # fmt: skip
    parser.add_argument(
        "--out",
        type=result_file,
        default=ROOT / "build" / "cold_start.json",
        help="the JSON with the result (default %(default)s)",
    )
    args = parser.parse_args()
    every = cases(args.backend)
    with tempfile.TemporaryDirectory() as folder:
        for case in every:
            if case.start == "kept":
                wait_until_idle()
                measure(case, 1, Path(folder))
        runs = [measure(case, args.requests, Path(folder)) for case in tqdm(every * args.repeats)]
    rows = [_median(runs[place :: len(every)]) for place in range(len(every))]
    print(table(rows, COLUMNS))
    settings = {"repeats": args.repeats, "requests": args.requests, "steps": 4, "backend": args.backend}
    write_result(args.out, "cold_start", settings, rows, runs=runs)
    print(f"\nwrote {args.out}")


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, str) else float(np.median([run[key] for run in runs]))
        for key, value in runs[0].items()
    }


if __name__ == "__main__":
    main()
