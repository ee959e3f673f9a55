"""What of the settings reaches uvicorn and the connections."""

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from server.hosts import http_process
from server.hosts.forked import place
from server.hosts.http_process import HttpProcess
from server.http.limits import BoundedHttp
from server.http.routes import EXPOSED_HEADERS
from server.processes.control import Control
from server.settings.settings import Settings
from tests.server.conftest import DEADLINE_S, ROOT, serving
from tests.server.fakes import manifest

KEPT_S = 1.25


def test_a_fraction_of_a_second_of_keep_alive_reaches_every_connection(monkeypatch: pytest.MonkeyPatch):
    configs: list[uvicorn.Config] = []

    class Held(http_process.DrainingServer):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            configs.append(self.config)

    monkeypatch.setattr(http_process, "DrainingServer", Held)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    settings = Settings({"tiny": Path("/nowhere")}, keep_alive_s=KEPT_S)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        HttpProcess(settings, {"tiny": manifest()}, 1).run(0, Control(), listener)
    (config,) = configs
    config.load()
    state = ServerState()
    assert config.http_protocol_class is BoundedHttp
    loop = asyncio.new_event_loop()
    connection = BoundedHttp(config, state, {}, _loop=loop)
    loop.close()
    assert connection.timeout_keep_alive == KEPT_S


def test_no_process_of_the_server_loads_litserve():
    """Its import takes a third of a worker's start; the stock host alone needs it."""
    modules = "server.__main__, server.hosts.forked, server.hosts.http_process, server.processes.worker, export.engine"
    code = f"import sys, {modules}; sys.exit('litserve' in sys.modules or 'fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=DEADLINE_S).returncode == 0


def test_the_manual_has_every_route_and_header():
    settings = Settings({"tiny": Path("/nowhere")})
    routes = HttpProcess(settings, {"tiny": manifest()}, 1).routes
    manual = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table = manual.split("## Routes")[1].split("\n## ")[0]
    for route in routes:
        path = "/page/NAME" if route.path.startswith("/page/") else route.path.replace("tiny", "NAME")
        assert f"`{route.method} {path}`" in table, route.path
    for header in EXPOSED_HEADERS:
        assert f"`{header}`" in table, header


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:81"),
        ("::1", "http://[::1]:81"),
        ("0.0.0.0", "all addresses, here http://127.0.0.1:81"),
        ("::", "all addresses, here http://[::1]:81"),
    ],
)
def test_the_printed_url_can_be_opened(host: str, url: str):
    assert place(host, 81) == url


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_are_those_of_ipv4_too(engine_dir: Path):
    """An IPv4 client has its IPv4 address: in the log, and where proxies are trusted. An idle connection is closed."""
    arguments = ("--host", "::", "--trusted-proxies", "127.0.0.1", "--keep-alive-s", "1", "--log-format", "json")
    with serving(engine_dir, *arguments) as server:
        assert server.url.startswith("http://[::1]:")
        by_ipv4 = server.url.replace("[::1]", "127.0.0.1")
        for url, forwarded in ((server.url, "9.9.9.1"), (by_ipv4, "9.9.9.2"), (by_ipv4, "")):
            headers = {"x-forwarded-for": forwarded} if forwarded else {}
            assert httpx.get(f"{url}/v1/models", headers=headers, timeout=DEADLINE_S).status_code == 200
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0), timeout=DEADLINE_S) as idle:
            idle.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b"".join(iter(lambda: idle.recv(4_096), b""))
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" not in answer.lower()
        assert server.stop() == 0
        assert server.process.stderr is not None
        lines = [json.loads(line) for line in server.process.stderr]
    assert [line["client"] for line in lines if "client" in line] == ["::1", "9.9.9.2", "127.0.0.1"]
