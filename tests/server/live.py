"""A server that a test asks over HTTP while it controls its network: `Live`."""

import base64
import itertools
import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from server.scheduler.refusal import escaped
from tests.server.conftest import DEADLINE_S, ROOT, Server, serving, started, wait_until
from tests.server.controlled_server import CALLS, PLAN, Plan

PROGRAM = "tests.server.controlled_server"
ENGINE = ROOT / "models/fashion/engine"
Body = Mapping[str, Any]


@dataclass
class Live:
    """A running server and the folder of its plan. Bodies are those of POST /v1/generate."""

    server: Server
    folder: Path
    # A kept connection that the server is about to close is not used again.
    client: httpx.Client = field(
        default_factory=lambda: httpx.Client(timeout=DEADLINE_S, limits=httpx.Limits(keepalive_expiry=1))
    )
    serials: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def plan(self, **fields: Any) -> None:
        """What the stages do from now on; without fields: what they always do."""
        text = json.dumps(asdict(Plan(serial=next(self.serials), **fields)))
        fresh = self.folder / "fresh.json"
        fresh.write_text(text, "utf-8")
        fresh.replace(self.folder / PLAN)

    def calls(self) -> list[int]:
        """The process id of the worker behind each network call that has begun, warm-up included."""
        path = self.folder / CALLS
        return [int(line) for line in path.read_text("utf-8").split()] if path.exists() else []

    def get(self, path: str) -> httpx.Response:
        return self.client.get(self.server.url + path)

    def post(self, body: Body, **headers: str) -> httpx.Response:
        return self.client.post(f"{self.server.url}/v1/generate", json=body, headers=headers)

    def image(self, body: Body) -> bytes:
        """The image of a request that succeeds."""
        answer = self.post(body)
        assert answer.status_code == 200, answer.text
        return answer.content

    def post_text(self, body: str) -> httpx.Response:
        return self.client.post(f"{self.server.url}/v1/generate", content=body.encode())

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        page = self.get("/metrics").text
        return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, flags=re.MULTILINE)))

    def ready(self) -> bool:
        return self.get("/readyz").status_code == 200

    def admitted(self, images: int) -> None:
        """Wait until exactly so many images are accepted and not yet answered."""
        wait_until(lambda: self.metric("fewstep_admitted_images") == images)

    def idle(self) -> None:
        """Wait until nothing is held."""
        gauges = ("fewstep_admitted_images", "fewstep_active_slots", "fewstep_waiting_images")
        wait_until(lambda: not any(self.metric(gauge) for gauge in gauges))

    def at_once(
        self, bodies: Sequence[Body], headers: Mapping[str, str] | None = None, then: Mapping[str, Any] | None = None
    ) -> list[httpx.Response]:
        """Answers to requests of which none was answered before all were accepted.

        headers: of each of them. then: the plan that ends their waiting.
        """
        self.plan(calls=0)
        with ThreadPoolExecutor(len(bodies)) as pool:
            answers = [pool.submit(self.post, body, **(headers or {})) for body in bodies]
            try:
                self.admitted(sum(body.get("n", 1) for body in bodies))
            finally:
                self.plan(**(then or {}))
            return [answer.result(DEADLINE_S) for answer in answers]

    def send(self, body: Body, padding: int = 0) -> socket.socket:
        """See `Server.send`."""
        return self.server.send(body, padding)

    def processes(self) -> list[psutil.Process]:
        """The parent and all that it has started, those that have ended and were not waited for included."""
        return [psutil.Process(self.server.process.pid), *self.server.children()]

    def resident_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self.processes())

    def peak_bytes(self) -> int:
        """The most that each process ever held, together."""
        status = [Path(f"/proc/{process.pid}/status").read_text("ascii") for process in self.processes()]
        return 1024 * sum(int(kib) for text in status for kib in re.findall(r"VmHWM:\s+(\d+) kB", text))


def of(seed: int, steps: int = 2, **fields: Any) -> dict[str, Any]:
    """A body, with few network calls unless the test is about them."""
    return {"seed": seed, "steps": steps, **fields}


def refused(answer: httpx.Response, param: str | None) -> bool:
    """Whether the answer blames the client, and that field."""
    return 400 <= answer.status_code < 500 and answer.json()["error"]["param"] == (param and escaped(param))


def failed(answer: httpx.Response) -> bool:
    """Whether the answer is an error of the server, in words."""
    return answer.status_code in (500, 503) and bool(answer.json()["error"]["message"])


def decoded(answer: httpx.Response) -> list[bytes]:
    """The images of a JSON answer."""
    return [base64.b64decode(entry["b64_json"]) for entry in answer.json()["data"]]


@contextmanager
def live(folder: Path, *flags: str) -> Iterator[Live]:
    """The shipped model in exact mode, warm; the folder is empty. A network may be held for as long as a test likes."""
    (folder / PLAN).write_text(json.dumps(asdict(Plan())), "utf-8")
    with serving(ENGINE, "--mode", "exact", "--stall-s", "0", *flags, program=(PROGRAM, str(folder))) as server:
        running = Live(server, folder)
        with running.client:
            yield running


@contextmanager
def loading(folder: Path, *flags: str) -> Iterator[Live]:
    """The same, held at the first network call of its warm-up; its port is open."""
    (folder / PLAN).write_text(json.dumps(asdict(Plan(calls=0))), "utf-8")
    arguments = [str(folder), "--engine", str(ENGINE), "--port", "0", "--threads", "1", *flags]
    with started(arguments, PROGRAM) as server:
        held = Live(server, folder)
        wait_until(lambda: bool(held.calls()))
        wait_until(lambda: bool(_listening(held.processes())))
        server.family = server.children()
        server.url = _listening(held.processes())[0]
        with held.client:
            yield held


def _listening(processes: Sequence[psutil.Process]) -> list[str]:
    """The URLs on which these processes listen."""
    sockets = [each for process in processes for each in process.net_connections("tcp")]
    return [f"http://127.0.0.1:{each.laddr.port}" for each in sockets if each.status == psutil.CONN_LISTEN]
