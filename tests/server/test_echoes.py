"""What a client sends comes back, and goes into logs and metrics, in printable ASCII of bounded length only."""

import asyncio
import json
import logging
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.hosts import http_process
from server.http.dialects.native_schema import GenerateBody
from server.http.limits import BoundedHttp
from server.logs import JsonLines, TextLines
from server.processes.control import Control
from server.scheduler import encoding
from server.scheduler.events import Failed, Finished
from server.scheduler.refusal import escaped, shown
from server.settings.settings import Settings, SettingsError
from tests.server.fakes import manifest
from tests.server.in_process import Site

NASTY = [
    "\ud800",
    "a\nfewstep GET 200",
    "\r\n",
    "\x1b[31mred",
    "\u202egnp",
    "\x00",
    "\x7f",
    "\x85",
    "\u2028",
    "é" * 9_000,
]
texts = st.sampled_from(NASTY) | st.text(st.characters(), max_size=80)
values = st.recursive(texts | st.none() | st.booleans() | st.integers() | st.floats(), lambda inner: st.lists(inner))
TEXT = TextLines("%(asctime)s %(levelname)s %(processName)s %(message)s")
LONGEST = 400  # of any sentence about a value, with everything that is ours


@given(values)
@example("x" * 10_000_000)
@example(10**4_000)
@example([[["\x7f"]]])
def test_a_value_is_shown_in_printable_ascii_of_at_most_60_characters(value: Any):
    text = shown(value)
    assert text.isascii() and text.isprintable() and 0 < len(text) <= 60


@given(texts, st.integers(4, 200))
def test_a_text_is_escaped_into_printable_ascii_within_its_limit(text: str, limit: int):
    safe = escaped(text, limit)
    assert safe.isascii() and (safe.isprintable() or not safe) and len(safe) <= limit


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Every log record as both formats write it."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.extend((TEXT.format(record), JsonLines().format(record)))

    handler, logger = Keep(), logging.getLogger("fewstep.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=texts,
    method=st.sampled_from(["GET", "POST", "PROPFIND"]),
    headers=st.dictionaries(
        st.sampled_from(["x-request-id", "traceparent", "x-api-key", "accept", "user-agent", "origin"]),
        st.binary(max_size=60).filter(lambda value: not set(value) & {*range(32), 127}),
        max_size=3,
    ),
    body=st.dictionaries(st.sampled_from([*GenerateBody.model_fields]) | texts, values, max_size=3),
)
@example(path="/v1/generate", method="POST", headers={}, body={"\ud800": 1})
@example(path="/v1/generate", method="POST", headers={}, body={"n" * 60_000: 1})
@example(path="/v1/generate", method="POST", headers={}, body={"model": "\ud800\x1b[31m"})
@example(path="/v1/generate", method="POST", headers={}, body={"label": "\u202e"})
@example(path="/v1/generate", method="POST", headers={}, body={"image": "data:image/png;base64,\ud800"})
@example(path="/v1/generate", method="POST", headers={}, body={"image": ["\x7f"], "mask": "\n"})
@example(path="/v1/generate", method="POST", headers={"origin": b"http://\xff"}, body={})
def test_no_answer_log_line_or_metric_holds_what_a_client_sent_unescaped(
    lines: list[str], path: str, method: str, headers: dict[str, bytes], body: dict[str, Any]
):
    lines.clear()
    site = Site()
    site.client = path
    answer = asyncio.run(site.ask(method, path, json.dumps(body).encode(), headers))
    assert 200 <= answer.status_code < 500 or answer.status_code == 503
    assert answer.content.isascii()
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert len(error["message"]) <= LONGEST and error["message"].isprintable()
        assert error["param"] is None or (len(error["param"]) <= 60 and error["param"].isprintable())
    assert all(re.fullmatch(rb"[ -~]*", value) for _, value in answer.headers.raw)
    assert all(line.isascii() and line.isprintable() and len(line) < 1_500 for line in lines) and lines
    assert " client=" not in lines[0] or re.search(r" client=\S+ duration_ms=| client=\S+ code=", lines[0])
    page = site.get("/metrics").text
    assert not {
        label for label in re.findall(r'(?:route|reason|model)="(.*?)"', page) if not re.fullmatch(r"[\w/.-]*", label)
    }


def test_a_traceback_cannot_begin_a_line_of_its_own_or_move_the_cursor():
    try:
        raise ValueError("a\n2030-01-01 INFO http GET 200 \x1b[2J \ud800 \u202e\x85\r")
    except ValueError:
        record = logging.LogRecord("x", 40, "", 0, "met %s", ("a\nb",), sys.exc_info())
    first, *rest = TEXT.format(record).split("\n")
    assert first.endswith("met a") and all(line.startswith("    ") for line in rest)
    assert all(line.isprintable() for line in (first, *rest)) and "ValueError: a" in TEXT.format(record)


def test_what_an_encoder_raises_goes_to_the_log_and_not_to_the_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def encode(*arguments: Any) -> bytes:
        raise OSError("/opt/secret/libwebp.so")

    monkeypatch.setattr(encoding, "encode", encode)
    failed = encoding.encoded(Finished(7, "webp", (np.zeros((8, 8, 1), np.uint8),), 0.0, 0.0))
    assert isinstance(failed, Failed)
    assert (failed.code, failed.kind) == ("encode_error", "failed")
    assert failed.message == "the image could not be written as webp; the server's log says why"
    assert "secret" in caplog.text


def test_a_trailing_slash_is_no_redirect_to_whatever_host_is_named():
    site = Site(host="0.0.0.0")
    answer = site.get("/v1/models/", {"host": "evil.example"})
    assert (answer.status_code, answer.json()) == (200, site.get("/v1/models").json())


def configured(monkeypatch: pytest.MonkeyPatch, **chosen: Any) -> uvicorn.Config:
    """As the server configures uvicorn."""
    configs: list[uvicorn.Config] = []

    class Held(http_process.DrainingServer):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            configs.append(self.config)

    monkeypatch.setattr(http_process, "DrainingServer", Held)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = http_process.HttpProcess(Settings({"tiny": Path("/nowhere")}, **chosen), {"tiny": manifest()}, 1)
        server.run(0, Control(), listener)
    return configs[0]


@pytest.mark.parametrize(
    ("trusted", "client"), [((), "127.0.0.1"), (("127.0.0.1",), "9.9.9.9"), (("10.0.0.0/8",), "127.0.0.1")]
)
def test_proxy_headers_count_only_from_a_proxy_that_the_settings_name(
    monkeypatch: pytest.MonkeyPatch, trusted: tuple[str, ...], client: str
):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    config = configured(monkeypatch, trusted_proxies=trusted)
    found: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope["client"][0])

    config.app = app
    config.load()
    headers = [(b"x-forwarded-for", b"9.9.9.9"), (b"forwarded", b"for=8.8.8.8")]
    scope = {"type": "http", "client": ("127.0.0.1", 1), "headers": headers, "scheme": "http"}
    asyncio.run(config.loaded_app(scope, None, None))  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert found == [client]


def test_connections_are_kept_as_long_as_the_settings_say(monkeypatch: pytest.MonkeyPatch):
    config = configured(monkeypatch)
    assert (config.timeout_keep_alive, config.http) == (75, BoundedHttp)
    assert configured(monkeypatch, keep_alive_s=620).timeout_keep_alive == 620


@pytest.mark.parametrize("address", ["*", "example.org", "127.0.0.1:80", "", "10.0.0.1/8"])
def test_a_trusted_proxy_is_an_address(address: str):
    with pytest.raises(SettingsError, match="--trusted-proxies"):
        Settings({"tiny": Path("/nowhere")}, trusted_proxies=(address,))
