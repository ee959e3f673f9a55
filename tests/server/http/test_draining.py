"""What the HTTP process does after a stop signal: without the process, with a clock of its own, and once for real."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn

from server.http import draining
from server.http.draining import DrainingServer
from server.processes.admission import Admission
from server.processes.control import GaveUp
from server.processes.pool import WorkerPool
from tests.server.conftest import DEADLINE_S, serving
from tests.server.stage import Stage, play

Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the server reads, to be changed by the test."""
    seconds = [100.0]
    monkeypatch.setattr(draining, "monotonic", lambda: seconds[0])
    return seconds


def draining_server(pool: WorkerPool, drain_s: float = 0, grace_s: float = 30) -> DrainingServer:
    async def app(scope, receive, send) -> None: ...

    return DrainingServer(uvicorn.Config(app), pool, drain_s, grace_s)


def idle_pool(started: bool = True) -> WorkerPool:
    pool = WorkerPool(["tiny"], 1, Admission(4, ["tiny"]), lambda: None)
    pool.started = started
    return pool


def over(server: DrainingServer) -> bool:
    """Whether the port is closed now."""
    return asyncio.run(server.on_tick(1))


def test_the_port_stays_open_for_drain_s_although_no_request_is_pending(now: list[float]):
    server = draining_server(idle_pool(), drain_s=5)
    assert not over(server)
    server.handle_exit(signal.SIGTERM, None)
    for now[0], closed in ((100.0, False), (104.9, False), (105.0, True)):
        assert over(server) == closed
    assert server.pool.draining


def test_neither_a_second_sigterm_nor_a_short_grace_period_shortens_the_drain(now: list[float]):
    server = draining_server(idle_pool(), drain_s=5, grace_s=0)
    server.handle_exit(signal.SIGTERM, None)
    now[0] = 104.0
    server.handle_exit(signal.SIGTERM, None)
    assert not over(server)
    now[0] = 105.0
    assert over(server)


@pytest.mark.parametrize("drain_s", [0, 5, 60])
def test_only_a_second_interrupt_ends_drain_and_grace_period(now: list[float], drain_s: float):
    server = draining_server(idle_pool(), drain_s)
    server.handle_exit(signal.SIGINT, None)
    assert over(server) == (drain_s == 0)
    server.handle_exit(signal.SIGINT, None)
    assert over(server)


def test_a_server_that_was_never_ready_or_has_no_workers_left_does_not_drain(now: list[float]):
    server = draining_server(idle_pool(started=False), drain_s=5)
    server.handle_exit(signal.SIGTERM, None)
    assert over(server)
    server = draining_server(idle_pool(), drain_s=5)
    server.handle_exit(signal.SIGTERM, None)
    asyncio.run(server.pool.control(GaveUp()))
    assert over(server)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_only_a_second_interrupt_ends_the_wait_for_accepted_requests(second: signal.Signals):
    async def scenario(stage: Stage) -> None:
        await stage.ready()
        task = stage.post()
        await stage.taken()
        server = draining_server(stage.pool)
        server.handle_exit(signal.SIGINT, None)
        assert await server.on_tick(1) is False
        server.handle_exit(second, None)
        assert await server.on_tick(2) is (second == signal.SIGINT)
        assert len(stage.pool.pending) == (0 if second == signal.SIGINT else 1)
        stage.left.set()
        await asyncio.wait([task])
        task.exception()
        assert await server.on_tick(3) is True

    play(scenario)


def test_after_the_signal_an_idle_server_answers_503_until_a_second_interrupt_to_the_parent(
    engine_dir: Path, until: Until
):
    with serving(engine_dir, "--drain-s", "3600") as server, server.client() as client:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503)
        for _ in range(20):
            answers = [
                httpx.get(f"{server.url}/readyz", timeout=DEADLINE_S),
                httpx.post(f"{server.url}/v1/generate", json={}, timeout=DEADLINE_S),
            ]
            assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(503, "draining")] * 2
        assert client.get("/livez").status_code == 200
        family: list[psutil.Process] = server.children()
        assert server.stop(signal.SIGINT) == 0
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family)
