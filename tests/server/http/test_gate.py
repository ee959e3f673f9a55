"""Keys, hosts, pages of other sites, CORS, ids and traces, on all routes of the server."""

import json
import logging
import re
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from server.http.access import continued
from server.http.gate import KeyRing, check_host, check_page
from server.http.routes import Route
from server.logs import JsonLines
from server.scheduler.refusal import Refusal
from tests.server.in_process import Site, code_of

KEY, OTHER = "k" * 32, "l" * 32
HOST = {"host": "127.0.0.1"}
SITE = "https://a.org"
PAGE = {"origin": SITE, "sec-fetch-site": "cross-site"}


async def boom(http: Request) -> Response:
    raise RuntimeError("inner workings")


BOOM = Route("/boom", "GET", boom, "A mistake of the server.")


def post(site: Site, headers: dict[str, str]) -> httpx.Response:
    """To a route that answers 503, since no worker is there, once the request has passed the gate."""
    return site.get("/v1/generate", headers, "POST")


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
    response = Site(api_keys=(KEY, OTHER)).get("/v1/models", headers)
    assert response.status_code == status
    if code:
        assert (code_of(response), response.headers["www-authenticate"]) == (code, "Bearer")
        assert not any(key in response.text for key in (KEY, OTHER))


@pytest.mark.parametrize(("public", "status"), [(False, 401), (True, 200)])
def test_probes_and_page_need_no_key_and_metrics_only_if_not_public(public: bool, status: int):
    site = Site(api_keys=(KEY,), metrics_public=public)
    assert [site.get(path).status_code for path in ("/livez", "/readyz", "/")] == [200, 503, 200]
    assert site.get("/metrics").status_code == status
    assert site.get("/nowhere").status_code == 401, "without a key nobody learns what exists"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/v1/models"])
def test_what_names_models_and_classes_needs_a_key_and_the_refusal_says_how_a_person_gets_it(path: str):
    site = Site(api_keys=(KEY,))
    assert "curl -H 'X-API-Key: KEY' URL -o FILE" in site.get(path).json()["error"]["message"]
    assert site.get(path, {"x-api-key": KEY}).status_code == 200


def test_an_environment_variable_of_litserve_locks_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIT_SERVER_API_KEY", KEY)
    site = Site()
    assert [site.get(path).status_code for path in ("/livez", "/readyz", "/v1/models", "/")] == [200, 503, 200, 200]
    assert code_of(post(site, {})) == "not_ready"


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

    monkeypatch.setattr("server.http.gate.hmac.compare_digest", compare)
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
        ({}, "localhost.:8000", 200),
        ({}, "localhost:", 200),
        ({}, "localhost..", 421),
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
        ({"allowed_hosts": ("2001:DB8:0:0::1",)}, "[2001:db8::1]:8000", 200),
        ({"host": "::ffff:127.0.0.1"}, "[::ffff:7f00:1]", 200),
    ],
)
def test_the_host_header_must_name_this_server(settings: dict[str, Any], host: str, status: int):
    site = Site(**settings)
    response = site.get("/v1/models", {"host": host})
    assert response.status_code == status
    if status != 200:
        assert code_of(response) == "host_not_allowed"
    assert site.get("/livez", {"host": host}).status_code == 200, "probes ask by address"


def test_a_second_host_header_passes_for_no_name():
    both = Site().get("/v1/models", [("host", "localhost"), ("host", "evil.example")])
    assert (both.status_code, code_of(both)) == (421, "host_not_allowed")


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_no_other_text_passes_for_loopback(host: str):
    try:
        check_host(Headers({"host": host}), ("localhost", "127.0.0.1"))
    except Refusal as error:
        assert error.kind == "misdirected"
    else:
        assert re.fullmatch(r"(localhost|127\.0\.0\.1)\.?(:\d*)?", host, re.IGNORECASE)


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
            with pytest.raises(Refusal) as caught:
                check_page(method, headers, ())
            assert (caught.value.kind, caught.value.code) == ("forbidden", "origin_not_allowed")


def test_every_origin_header_counts_and_reading_needs_none():
    both = [("host", "127.0.0.1"), ("origin", SITE), ("origin", "http://evil.example")]
    with pytest.raises(Refusal):
        check_page("POST", Headers(raw=[(name.encode(), value.encode()) for name, value in both]), (SITE,))
    for method in ("GET", "HEAD", "OPTIONS"):
        check_page(method, Headers({"origin": "http://evil.example", "host": "127.0.0.1"}), ())


def test_a_mistake_in_the_server_is_a_500_with_an_id_and_tells_nothing(caplog: pytest.LogCaptureFixture):
    response = Site(more=[BOOM]).get("/boom", {"x-request-id": "mine"})
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
    site = Site()
    response = site.get("/v1/models", {"traceparent": TRACE, "x-request-id": "a-1"})
    site.get('/no"where\n')
    site.get("/livez")
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
    site = Site(api_keys=(KEY,))
    for path in ("/livez", "/livez/", "/v1/models", "/made/up"):
        site.get(path)
    page = site.metrics.render("")[0].decode()
    counts = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "fewstep_http_requests_total"
    }
    assert counts == {("/livez", "200"): 2, ("/v1/models", "401"): 1, ("other", "401"): 1}
