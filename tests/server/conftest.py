"""A tiny engine directory (a real ONNX network, no torch), and servers on it."""

import hashlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.manifest import BACKEND_ORT_CPU, NETWORK_FILE, Manifest, write_manifest
from fewstep.conditions import Conditions
from tests.server.fakes import LEVELS, manifest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0  # for things that take a second; a test that waits this long has failed


def tiny_network(shape: tuple[int, int, int], classes: int, extra: int = 0, conditions: Conditions = ()) -> bytes:
    """An ONNX file with the contract of F: tanh(conv3x3(x) + onehot @ table + c_noise). extra: channels behind x's.
    conditions: numbers and maps, a tenth of the former and the latter enlarged being added."""
    channels, _, _ = shape
    rng = np.random.default_rng(7)
    kernel = rng.normal(size=(channels, channels + extra, 3, 3), scale=0.3).astype(np.float32)
    table = rng.normal(size=(classes, channels), scale=0.5).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["onehot", "table"], ["shift"]),
        helper.make_node("Unsqueeze", ["c_noise", "one"], ["noise_column"]),
        helper.make_node("Add", ["shift", "noise_column"], ["shift_noise"]),
        helper.make_node("Unsqueeze", ["shift_noise", "two_three"], ["plane"]),
        helper.make_node("Add", ["conv", "plane"], ["sum"]),
    ]
    last = "sum"
    for each in conditions:
        name, scale = each.name, f"{each.name}.scale"
        if each.is_map:
            nodes.append(helper.make_node("Resize", [name, "", scale], [f"{name}.plane"], mode="nearest"))
        else:
            nodes.append(helper.make_node("Mul", [name, scale], [f"{name}.scaled"]))
            nodes.append(helper.make_node("Unsqueeze", [f"{name}.scaled", f"{name}.axes"], [f"{name}.plane"]))
        nodes.append(helper.make_node("Add", [last, f"{name}.plane"], [f"{name}.sum"]))
        last = f"{name}.sum"
    nodes.append(helper.make_node("Tanh", [last], ["F"]))
    constants = {
        "kernel": kernel,
        "table": table,
        "one": np.array([1]),
        "two_three": np.array([2, 3]),
    }
    for each in conditions:
        if each.is_map:
            scales = np.array([1, 1, *np.divide(shape[1:], each.shape[1:])], np.float32)
            constants[f"{each.name}.scale"] = scales
        else:
            constants |= {f"{each.name}.scale": np.array(0.1, np.float32), f"{each.name}.axes": np.array([1, 2, 3])}
    inputs = {"x": ["B", channels + extra, *shape[1:]], "c_noise": ["B"], "onehot": ["B", classes]}
    inputs |= {each.name: ["B", *each.shape] for each in conditions}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info("F", TensorProto.FLOAT, ["B", *shape])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def write_engine(
    folder: Path, name: str = "tiny", extra: int = 0, channels: int = 1, resolution: int = 8,
    conditions: Conditions = (),
) -> Manifest:  # fmt: skip
    levels = {k: v for k, v in LEVELS.items() if k != 7}
    shape = {"channels": channels, "resolution": resolution}
    described = replace(manifest(name), levels=levels, extra=extra, conditions=conditions, **shape)
    content = tiny_network(described.image_shape, described.classes, extra, conditions)
    folder.mkdir(parents=True)
    (folder / NETWORK_FILE).write_bytes(content)
    described = replace(described, network_sha256=hashlib.sha256(content).hexdigest(), backend=BACKEND_ORT_CPU)
    write_manifest(folder, described)
    return described


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny" / "engine"
    write_engine(folder)
    return folder


@dataclass
class Server:
    """A running `python -m server`."""

    process: subprocess.Popen[str]
    url: str
    lines: "queue.SimpleQueue[str]"
    family: list[psutil.Process] = field(default_factory=list)  # children seen so far

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_S)

    def send(self, body: Mapping[str, Any], padding: int = 0) -> socket.socket:
        """A POST /v1/generate whose client reads no answer; closing the socket is leaving. padding: bytes of blanks."""
        content = json.dumps(body).encode() + b" " * padding
        url = urlsplit(self.url)
        head = f"POST /v1/generate HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
        connection = socket.create_connection((url.hostname, url.port), DEADLINE_S)
        connection.sendall(head.encode() + content)
        return connection

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(DEADLINE_S)


def launch(arguments: Sequence[str], program: str = "server") -> subprocess.Popen[str]:
    """program: the module that runs as the server. Left to itself, it would measure which backend is the fastest."""
    defaults = {"FEWSTEP_BACKEND": BACKEND_ORT_CPU, "XDG_CACHE_HOME": os.devnull}  # nothing can be kept below a file
    return subprocess.Popen(
        [sys.executable, "-m", program, *arguments],
        cwd=ROOT,
        env={**defaults, **os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def started(arguments: Sequence[str], program: str = "server") -> Iterator[Server]:
    """A server that has just been started, its URL not known; killed with all its children at the end if it runs."""
    process = launch(arguments, program)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    server = Server(process, "", lines)
    try:
        yield server
    finally:
        family = server.family
        if process.poll() is None:  # workers that replaced others are children of now, not of then
            family += server.children()
        process.kill()
        for child in family:
            if child.is_running():
                child.kill()
        process.communicate()  # last: it waits for every child that holds the pipe, a suspended one for ever


@contextmanager
def serving(engine: Path, *arguments: str, program: Sequence[str] = ("server",)) -> Iterator[Server]:
    """A server that has said that it serves. program: the module that runs as the server, and what it takes first."""
    module, *first = program
    flags = ["--engine", str(engine), "--port", "0", "--threads", "1", "--drain-s", "0", *arguments]
    with started([*first, *flags], module) as server:
        line = server.lines.get(timeout=DEADLINE_S)
        assert line.startswith("serving "), f"said {line!r}; {server.process.communicate()[1]}"
        server.url = line.split()[-1]
        server.family = server.children()
        yield server


@pytest.fixture(scope="module")
def server(engine_dir: Path) -> Iterator[Server]:
    """One exact-mode server for all tests of a module that leave it as they found it."""
    with serving(engine_dir, "--mode", "exact", "--capacity", "8") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll a condition without sleeping: wait on an event nobody sets, up to the deadline."""
    tick = threading.Event()
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError("the condition did not come true in time")


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    return wait_until
