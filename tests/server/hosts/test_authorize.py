"""LitServe's own lock stays open: keys are server.http.gate's."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.hosts.litserve import StudentServer
from server.settings.settings import Settings
from tests.server.fakes import manifest


def test_litserves_key_locks_nothing_and_no_request_costs_a_thread(monkeypatch: pytest.MonkeyPatch):
    def thread(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a request was given a thread")

    monkeypatch.setenv("LIT_SERVER_API_KEY", "k" * 32)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = StudentServer(Settings({"tiny": Path("/nowhere")}), {"tiny": manifest()}, listener)
    monkeypatch.setattr("anyio.to_thread.run_sync", thread)

    async def scene() -> list[int]:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answers = [await client.get(path) for path in ("/livez", "/readyz", "/v1/models", "/metrics")]
            return [answer.status_code for answer in [*answers, await client.post("/v1/generate")]]

    assert asyncio.run(scene()) == [200, 503, 200, 200, 503]
