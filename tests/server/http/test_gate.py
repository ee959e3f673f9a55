"""Keys, hosts, foreign pages, CORS, ids and traces, on a small app behind the real layers."""

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.datastructures import Headers

from server.http.auth import KeyRing
from server.http.errors import ApiError, install_error_handlers
from server.http.gate import middlewares
from server.http.metrics import Metrics
from server.http.origins import check_host, check_page
from server.http.tracing import continued
from server.logs import JsonLines
from server.settings.settings import Settings, SettingsError

KEY, OTHER = "k" * 32, "l" * 32
ENGINES = {"tiny": Path("/nowhere")}
ERROR_FIELDS = {"message", "type", "param", "code"}
HOST = {"host": "127.0.0.1"}


class App:
    """A few routes behind the layers of the server."""

    def __init__(self, **settings: Any) -> None:
        self.metrics = Metrics(["tiny"], ["/livez", "/metrics", "/", "/v1/models"])
        self.app = FastAPI(openapi_url=None)
        for path in ("/livez", "/readyz", "/metrics", "/", "/v1/models", "/v1/generate"):
            self.app.add_api_route(path, self.answer, methods=["GET", "POST"])
        self.app.add_api_route("/boom", self.boom)
        for layer in middlewares(Settings(ENGINES, **settings), self.metrics):
            assert isinstance(layer, tuple)
            self.app.add_middleware(layer[0], **layer[1])
        install_error_handlers(self.app)

    async def answer(self) -> str:
        return "ok"

    async def boom(self) -> None:
        raise RuntimeError("inner workings")

    def ask(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> httpx.Response:
        async def scene() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(scene())


def code_of(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == ERROR_FIELDS and error["message"]
    return error["code"]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "missing_api_key"),
        ({"authorization": f"Basic {KEY}"}, 401, "missing_api_key"),
        ({"authorization": "Bearer "}, 401, "missing_api_key"),
        ({"authorization": f"Bearer {KEY}x"}, 401, "invalid_api_key"),
        ({"authorization": f"Bearer {KEY[:-1]}"}, 401, "invalid_api_key"),
        ({"x-api-key": OTHER[1:]}, 401, "invalid_api_key"),
        ({"x-api-key": "ü" * 32}, 401, "invalid_api_key"),
        ({"authorization": f"Bearer {KEY}"}, 200, None),
        ({"authorization": f"bearer  {OTHER}"}, 200, None),
        ({"x-api-key": OTHER}, 200, None),
    ],
)
def test_a_route_needs_one_of_the_keys(headers: dict[str, str], status: int, code: str | None):
    response = App(api_keys=(KEY, OTHER)).ask("/v1/models", {k: v.encode() for k, v in headers.items()})  # pyright: ignore[reportArgumentType]
    assert response.status_code == status
    if code:
        assert (code_of(response), response.headers["www-authenticate"]) == (code, "Bearer")
        assert not any(key in response.text for key in (KEY, OTHER))


@pytest.mark.parametrize(("public", "status"), [(False, 401), (True, 200)])
def test_probes_and_page_need_no_key_and_metrics_only_if_not_public(public: bool, status: int):
    app = App(api_keys=(KEY,), metrics_public=public)
    assert [app.ask(path).status_code for path in ("/livez", "/readyz", "/")] == [200, 200, 200]
    assert app.ask("/metrics").status_code == status
    assert app.ask("/nowhere").status_code == 401, "what exists is not told without a key"


@given(st.lists(st.text(min_size=16), min_size=1, max_size=4), st.text())
def test_a_key_ring_holds_its_keys_and_no_other(keys: list[str], other: str):
    ring = KeyRing(keys)
    assert all(ring.holds(key) for key in keys)
    assert ring.holds(other) == (other in keys)


def test_every_key_is_compared_with_the_same_effort_whichever_is_right(monkeypatch: pytest.MonkeyPatch):
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("server.http.auth.hmac.compare_digest", compare)
    ring = KeyRing([KEY, OTHER])
    for key in (KEY, OTHER, "x"):
        compared.clear()
        ring.holds(key)
        assert [len(a) == len(b) == 32 for a, b in compared] == [True, True]


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({}, "127.0.0.1:8000", 200),
        ({}, "LocalHost", 200),
        ({}, "[::1]:8000", 200),
        ({}, "evil.example", 421),
        ({}, "127.0.0.1.evil.example", 421),
        ({}, "localhost@evil.example", 421),
        ({}, "localhost:80:80", 421),
        ({}, "", 421),
        ({"host": "127.0.0.2"}, "127.0.0.2", 200),
        ({"host": "0.0.0.0"}, "anything.example", 200),
        ({"host": "0.0.0.0", "allowed_hosts": ("a.org", "*.b.org")}, "a.org:80", 200),
        ({"host": "0.0.0.0", "allowed_hosts": ("a.org", "*.b.org")}, "x.b.org", 200),
        ({"host": "0.0.0.0", "allowed_hosts": ("a.org", "*.b.org")}, "b.org", 421),
        ({"host": "0.0.0.0", "allowed_hosts": ("a.org", "*.b.org")}, "127.0.0.1", 421),
        ({"allowed_hosts": ("[::1]",)}, "[::1]", 200),
    ],
)
def test_the_host_header_must_name_this_server(settings: dict[str, Any], host: str, status: int):
    app = App(**settings)
    response = app.ask("/v1/models", {"host": host})
    assert response.status_code == status
    if status != 200:
        assert code_of(response) == "host_not_allowed"
    assert app.ask("/livez", {"host": host}).status_code == 200, "probes ask by address"


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_no_other_text_passes_for_loopback(host: str):
    try:
        check_host(Headers({"host": host}), ("localhost", "127.0.0.1"))
    except ApiError as error:
        assert error.status == 421
    else:
        assert re.fullmatch(r"(localhost|127\.0\.0\.1|\[(localhost|127\.0\.0\.1)\])(:\d+)?", host, re.IGNORECASE)


PAGE = {"origin": "https://a.org", "sec-fetch-site": "cross-site", **HOST}


def test_without_cors_settings_no_foreign_page_may_post_or_read():
    app = App()
    response = app.ask("/v1/generate", PAGE, "POST")
    assert (response.status_code, code_of(response)) == (403, "origin_not_allowed")
    for own in ({"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}):
        assert app.ask("/v1/generate", {**HOST, **own}, "POST").status_code == 200
    read = app.ask("/v1/models", PAGE)
    assert not [name for name in read.headers if name.startswith("access-control")]
    preflight = app.ask("/v1/generate", {**PAGE, "access-control-request-method": "POST"}, "OPTIONS")
    assert (preflight.status_code, code_of(preflight)) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://LOCALHOST", "localhost:80", True),
        ("http://localhost:80", "localhost", True),
        ("https://localhost", "localhost:443", True),
        ("https://localhost", "localhost", True),  # a proxy speaks TLS
        ("http://[::1]:8000", "[::1]:8000", True),
        ("https://localhost", "localhost:80", False),
        ("http://localhost:8001", "localhost:8000", False),
        ("http://localhost", "localhost:8000", False),
        ("http://evil.example", "localhost", False),
        ("http://localhost.evil.example", "localhost", False),
        ("http://localhost@evil.example", "localhost", False),
        ("http://evil.example#localhost", "localhost", False),
        ("null", "localhost", False),
        ("", "localhost", False),
        ("localhost", "localhost", False),
        ("file://", "localhost", False),
        ("file://localhost", "localhost", False),
        ("chrome-extension://localhost", "localhost", False),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
def test_an_origin_is_compared_with_the_host_whatever_else_is_sent(origin: str, host: str, own: bool, method: str):
    for more in ({}, {"content-type": "text/plain"}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
        headers = Headers({"origin": origin, "host": host, **more})
        if own:
            check_page(method, headers, ())
        else:
            with pytest.raises(ApiError) as caught:
                check_page(method, headers, ())
            assert (caught.value.status, caught.value.code) == (403, "origin_not_allowed")


def test_every_origin_header_counts_and_reading_needs_none():
    app = App(cors_origins=("https://a.org",))
    both = [("host", "127.0.0.1"), ("origin", "https://a.org"), ("origin", "http://evil.example")]
    with pytest.raises(ApiError):
        check_page("POST", Headers(raw=[(name.encode(), value.encode()) for name, value in both]), ("https://a.org",))
    for method in ("GET", "HEAD", "OPTIONS"):
        check_page(method, Headers({"origin": "http://evil.example", "host": "127.0.0.1"}), ())
    assert app.ask("/v1/generate", {"origin": "http://evil.example", **HOST}, "POST").status_code == 403
    assert app.ask("/v1/generate", {"origin": "https://a.org", **HOST}, "POST").status_code == 200
    assert App().ask("/v1/generate", {"origin": "http://127.0.0.1", **HOST}, "POST").status_code == 200


def test_an_allowed_origin_may_do_both_and_learns_errors_too():
    app = App(cors_origins=("https://a.org",), api_keys=(KEY,))
    preflight = app.ask("/v1/generate", {**PAGE, "access-control-request-method": "POST"}, "OPTIONS")
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, "https://a.org")
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    answer = app.ask("/v1/generate", {**PAGE, "x-api-key": KEY}, "POST")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://a.org")
    assert answer.headers["vary"] == "Origin" and "access-control-allow-credentials" not in answer.headers
    assert app.ask("/v1/generate", PAGE, "POST").headers["access-control-allow-origin"] == "https://a.org"
    other = app.ask("/v1/generate", {**PAGE, "origin": "https://a.org.evil.example", "x-api-key": KEY}, "POST")
    assert other.status_code == 403 and "access-control-allow-origin" not in other.headers
    assert App(cors_origins=("*",)).ask("/v1/generate", PAGE, "POST").status_code == 200


@pytest.mark.parametrize("origin", ["a.org", "https://a.org/", "https://a.org/x", "null", "file://", "https://*.org"])
def test_what_is_not_an_origin_is_refused(origin: str):
    with pytest.raises(SettingsError, match="is not an origin"):
        Settings(ENGINES, cors_origins=(origin,))


def test_a_mistake_in_the_server_is_a_500_with_an_id_and_tells_nothing(caplog: pytest.LogCaptureFixture):
    app = App()
    response = app.ask("/boom", {"x-request-id": "mine"})
    assert (response.status_code, code_of(response)) == (500, "internal_error")
    assert response.headers["x-request-id"] == "mine" and "inner workings" not in response.text
    assert "RuntimeError: inner workings" in caplog.text and "request mine" in caplog.text


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # the example of the specification


def test_a_trace_is_continued_with_a_span_of_our_own():
    trace = continued(TRACE)
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE[3:35], TRACE[36:52], True)
    assert re.fullmatch(f"00-{TRACE[3:35]}-[0-9a-f]{{16}}-01", trace.traceparent)
    assert trace.span_id not in (trace.parent_id, continued(TRACE).span_id)
    assert not continued(TRACE[:-2] + "02").sampled, "other flags are not ours to interpret"
    assert continued("01" + TRACE[2:] + "-more").trace_id == TRACE[3:35], "a later version may say more"


@pytest.mark.parametrize(
    "broken",
    [
        None, "", "x", TRACE.upper(), TRACE + "-more", TRACE[:-1], "ff" + TRACE[2:], TRACE.replace("-", "_"),
        f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    ],
)  # fmt: skip
def test_a_broken_traceparent_starts_a_trace(broken: str | None):
    trace = continued(broken)
    assert trace.parent_id is None and not trace.sampled
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace.traceparent)
    assert trace.trace_id != continued(broken).trace_id != TRACE[3:35]


@given(st.text())
def test_any_text_gives_a_valid_trace(text: str):
    assert continued(continued(text).traceparent).parent_id is not None


def test_every_request_leaves_one_line_and_every_answer_its_ids(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "fewstep.access")
    app = App()
    response = app.ask("/v1/models", {"traceparent": TRACE, "x-request-id": "a-1"})
    app.ask('/no"where%0a', HOST)
    app.ask("/livez")
    lines = caplog.records
    first, second = (json.loads(JsonLines().format(line)) for line in lines)
    assert {name: first[name] for name in ("request_id", "trace_id", "parent_id", "path", "status", "outcome")} == {
        "request_id": "a-1", "trace_id": TRACE[3:35], "parent_id": TRACE[36:52],
        "path": "/v1/models", "status": 200, "outcome": "ok",
    }  # fmt: skip
    assert response.headers["traceparent"] == f"00-{first['trace_id']}-{first['span_id']}-01"
    assert response.headers["x-request-id"] == "a-1"
    assert (second["status"], second["outcome"], second["code"]) == (404, "invalid", "not_found")
    assert all("\n" not in line.getMessage() and "\n" not in JsonLines().format(line) for line in lines)
    assert [logging.getLevelName(line.levelno) for line in lines] == ["INFO", "INFO"], "a probe leaves none"


def test_answers_are_counted_by_route_and_status():
    app = App(api_keys=(KEY,))
    for path in ("/livez", "/livez", "/v1/models", "/made/up"):
        app.ask(path)
    page = app.metrics.render("")[0].decode()
    counts = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "fewstep_http_requests_total"
    }
    assert counts == {("/livez", "200"): 2, ("/v1/models", "401"): 1, ("other", "401"): 1}
