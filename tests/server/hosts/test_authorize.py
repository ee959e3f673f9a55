"""Who may ask, by LitServe's hooks: keys are LitAPI.authorize under its server, and the gate's under ours."""

import asyncio
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from litserve import LitServer

from server.hosts.http_process import HttpProcess
from server.hosts.litserve import DialectSpec, StepAPI, StockService, refused
from server.http.app import App
from server.http.dialects.native import NativeDialect
from server.http.gate import KeyRing
from server.processes.admission import Admission
from server.processes.pool import WorkerPool
from server.scheduler.policy import fifo
from server.scheduler.refusal import Refusal
from server.settings.settings import Settings
from tests.server.fakes import manifest

KEY = "k" * 32


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """LitServe's own authorization is a plain function, for which FastAPI uses a thread per request."""

    def thread(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a request was given a thread")

    monkeypatch.setattr("anyio.to_thread.run_sync", thread)
    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", thread)
    monkeypatch.setenv("LIT_SERVER_API_KEY", "l" * 32)


def ask(app: Any, requests: Sequence[tuple[str, str, str]]) -> list[httpx.Response]:
    """Answers to (method, path, key; "" for none)."""

    async def scene() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return [
                await client.request(method, path, headers={"authorization": f"Bearer {key}"} if key else {})
                for method, path, key in requests
            ]

    return asyncio.run(scene())


def test_litserves_key_locks_nothing_of_ours():
    server = HttpProcess(Settings({"tiny": Path("/nowhere")}), {"tiny": manifest()}, 1)
    app = App(server.routes, server.settings, server.metrics, server.bodies)
    paths = ("/livez", "/readyz", "/v1/models", "/metrics")
    answers = ask(app, [*(("GET", path, "") for path in paths), ("POST", "/v1/generate", "")])
    assert [answer.status_code for answer in answers] == [200, 503, 200, 200, 503]


def stock_app(keys: KeyRing) -> Any:
    """What LitServe's own server answers with."""
    service = StockService()
    settings = Settings({"tiny": Path("/nowhere")})
    service.spec = spec = DialectSpec(NativeDialect({"tiny": manifest()}, settings, service).routes())
    server = LitServer(StepAPI(dict, fifo, keys, service.check_ready, spec), accelerator="cpu", timeout=False)
    server.app.add_exception_handler(Refusal, refused)
    return server.app


def test_under_litserve_each_route_asks_for_our_keys():
    app = stock_app(KeyRing((KEY,)))
    requests = [("GET", "/v1/models", key) for key in ("", "l" * 32, KEY)]
    refused, foreign, listed = ask(app, requests)
    assert [refused.json()["error"]["code"], foreign.json()["error"]["code"]] == ["missing_api_key", "invalid_api_key"]
    assert (refused.status_code, refused.headers["www-authenticate"], foreign.status_code) == (401, "Bearer", 401)
    assert [model["id"] for model in listed.json()["data"]] == ["tiny"]
    assert ask(stock_app(KeyRing(())), requests)[0].status_code == 200


def test_health_says_whether_a_request_would_be_served():
    pool = WorkerPool(("tiny",), 1, Admission(1, ("tiny",)), print)
    spec = DialectSpec(NativeDialect({"tiny": manifest()}, Settings({"tiny": Path("/nowhere")}), pool).routes())
    api = StepAPI(dict, fifo, KeyRing(()), pool.check_ready, spec)
    assert inspect.iscoroutinefunction(api.authorize) and not api.health()
    assert StepAPI(dict, fifo, KeyRing(()), StockService().check_ready, spec).health()
