"""The hooks under LitServe's own, unpatched LitServer: one image, a refusal, and its end."""

import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.conftest import DEADLINE_S, Server, serving, started

Until = Callable[[Callable[[], bool]], None]


def free_port() -> int:
    """LitServe takes no 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def stock(engine_dir: Path) -> Iterator[Server]:
    port = free_port()
    with started(["--engine", str(engine_dir), "--port", str(port)], "server.hosts.litserve_stock") as server:
        server.url = f"http://127.0.0.1:{port}"
        yield server


def answers(server: Server) -> bool:
    assert server.process.poll() is None, server.process.communicate()[1]
    server.family = server.children()
    try:
        return httpx.get(f"{server.url}/health", timeout=DEADLINE_S).status_code == 200
    except httpx.TransportError:
        return False


def test_it_makes_the_images_of_our_own_server(stock: Server, engine_dir: Path, until: Until):
    until(lambda: answers(stock))
    bodies = [{"seed": 3}, {"seed": 4, "steps": 8, "label": 1, "n": 3}, {"seed": 5, "format": "webp"}]
    with serving(engine_dir) as ours:
        for body in bodies:
            theirs, same = [
                httpx.post(f"{server.url}/v1/generate", json=body, timeout=DEADLINE_S) for server in (stock, ours)
            ]
            assert theirs.status_code == same.status_code == 200, theirs.text
            if "n" in body:
                assert theirs.json()["data"] == same.json()["data"]
            else:
                assert theirs.content == same.content
            shown = ("content-type", "x-seed", "x-steps", "x-calls", "x-model", "x-label", "x-noise-version")
            assert [theirs.headers.get(name) for name in shown] == [same.headers.get(name) for name in shown]


@pytest.mark.parametrize(
    ("body", "param"), [({"steps": 9}, "steps"), ({"sead": 1}, "sead"), ({"n": 0}, "n"), ({"seed": "x"}, "seed")]
)
def test_a_wrong_field_is_refused_in_our_words(stock: Server, until: Until, body: dict, param: str):
    until(lambda: answers(stock))
    refused = httpx.post(f"{stock.url}/v1/generate", json=body, timeout=DEADLINE_S)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["type"], set(error)) == (
        param,
        "invalid_request_error",
        {"message", "type", "param", "code"},
    )
    assert param in error["message"]


def test_many_requests_at_once_share_its_network_calls_and_all_are_answered(stock: Server, until: Until):
    until(lambda: answers(stock))
    with httpx.Client(base_url=stock.url, timeout=DEADLINE_S) as client:
        one = client.post("/v1/generate", json={"seed": 9, "n": 1}, headers={"accept": "application/json"}).json()
        many = client.post("/v1/generate", json={"seed": 9, "n": 20}).json()
    assert many["data"][0] == one["data"][0] and len(many["data"]) == 20


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN, reason="SIGINT is ignored here, as in a shell's background jobs"
)
def test_an_interrupt_ends_all_its_processes(stock: Server, until: Until):
    until(lambda: answers(stock))
    family = stock.children()
    stock.process.send_signal(signal.SIGINT)
    stock.process.wait(DEADLINE_S)
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
    assert stock.process.stderr is not None
    assert not re.search(r"fewstep|/server/", stock.process.stderr.read()), "nothing of ours has raised"
