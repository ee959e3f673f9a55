"""Starts and ends the servers that are measured, each on its cores."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness import ROOT
from benchmarks.load.cores import Layout, pin
from export.manifest import read_manifest
from server.settings.sources import DEFAULT_MODELS, model_engine

START_S = 240.0  # Ray takes minutes on a busy machine
STOP_S = 40.0


@dataclass(frozen=True)
class Running:
    """A server that has said that it is ready."""

    url: str
    process: subprocess.Popen[bytes]
    ready_s: float  # from the start of the process to the first 200 of the readiness probe

    def family(self) -> list[psutil.Process]:
        """The parent first, then every descendant."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def roles(self) -> dict[str, list[psutil.Process]]:
        """`parent`, `http` (those that listen) and `worker` (all others)."""
        parent, *children = self.family()
        http = [child for child in children if _listens(child)]
        return {"parent": [parent], "http": http, "worker": [child for child in children if child not in http]}


@contextmanager
def ours(
    arguments: Sequence[str],
    cores: Layout,
    *,
    cost: object = None,
    log: Path | None = None,
    pinned: bool = True,
    tree: Path = ROOT,
) -> Iterator[Running]:
    """`python -m server` on a free port, its HTTP process apart from its engine; with a cost, on that fake network.

    tree: the checkout whose server runs.
    """
    port = _free_port()
    flags = ["--port", str(port), *arguments, *_one_model(arguments)]
    flags += ["--drain-s", "0"] if tree == ROOT else []  # older servers do not know it
    script = [str(tree / "benchmarks/load/fixed_cost.py"), "--cost", str(cost), "--", *flags]
    command = script if cost else ["-m", "server", *flags]
    with _launched(command, port, "/readyz", cores.engine if pinned else None, log, tree) as server:
        if pinned:
            for process in server.roles()["http"]:
                pin(process, cores.rest)
        yield server


@contextmanager
def peer(
    script: Path,
    arguments: Sequence[str],
    cores: Layout,
    *,
    cost: object = None,
    log: Path | None = None,
    probe: str = "/health",
    python: str = sys.executable,
) -> Iterator[Running]:
    """Another server on a free port, with the flags of trajectories.py; its network pins itself to the engine's cores.

    probe: what answers 200 once it is ready. python: of the environment that has what it needs.
    """
    port = _free_port()
    command = [str(script), "--port", str(port), *arguments]
    command += ["--engine-cores", ",".join(map(str, cores.engine)), *(["--cost", str(cost)] if cost else [])]
    with _launched(command, port, probe, cores.rest, log, python=python) as server:
        yield server


def _one_model(arguments: Sequence[str]) -> list[str]:
    """The first shipped model, unless an engine is given, and the engine's backend by name, unless one is given.

    Left to itself, a server takes another backend where that is faster, and would not be compared with what it is
    compared with.
    """
    given = dict(itertools.pairwise(arguments))
    model = [] if {"--engine", "--model"} & given.keys() else ["--model", DEFAULT_MODELS[0]]
    if any(argument.startswith("--backend") for argument in arguments):
        return model
    engine = Path(given["--engine"]) if "--engine" in given else model_engine(given.get("--model", DEFAULT_MODELS[0]))
    return [*model, "--backend", read_manifest(engine).backend]


def stop(server: Running) -> tuple[int | None, int]:
    """SIGTERM. Returns the exit code (None: it had to be killed) and how many of its children outlived it."""
    _, *children = server.family()
    server.process.send_signal(signal.SIGTERM)
    try:
        code = server.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        code = None
    _, left = psutil.wait_procs(children, timeout=1)
    return code, len(left)


@contextmanager
def _launched(
    command: Sequence[str],
    port: int,
    probe: str,
    cores: Sequence[int] | None,
    log: Path | None,
    tree: Path = ROOT,
    python: str = sys.executable,
) -> Iterator[Running]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(tree)}
    output = log.open("ab") if log else subprocess.DEVNULL
    started = time.monotonic()
    process = subprocess.Popen(
        [python, *command],
        cwd=tree,
        env=environment,
        stdout=output,
        stderr=output,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    family: list[psutil.Process] = []
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(process, url + probe, log)
        server = Running(url, process, time.monotonic() - started)
        family = server.family()
        yield server
    finally:
        _end(process, family)
        if not isinstance(output, int):
            output.close()


def _wait_ready(process: subprocess.Popen[bytes], probe: str, log: Path | None) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(
                f"the server ended with {process.returncode} before it was ready; see {log or 'its log'}"
            )
        try:
            with urllib.request.urlopen(probe, timeout=1):
                return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.02)
    raise RuntimeError(f"{probe} did not answer 200 within {START_S:g} s; see {log or 'its log'}")


def _end(process: subprocess.Popen[bytes], family: Sequence[psutil.Process]) -> None:
    """Whatever still runs is killed: a baseline in overload would work on for minutes, and LitServe leaves orphans."""
    children = {*family}
    if process.poll() is None:
        children |= set(psutil.Process(process.pid).children(recursive=True))
    process.kill()
    process.wait()
    for child in children:
        if child.pid != process.pid and child.is_running():
            child.kill()
    psutil.wait_procs([child for child in children if child.pid != process.pid], timeout=5)


def _listens(process: psutil.Process) -> bool:
    try:
        return any(c.status == psutil.CONN_LISTEN for c in process.net_connections(kind="tcp"))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
