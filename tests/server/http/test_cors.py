"""What pages of other origins may do, and what they can read of the answers."""

from typing import Any

import httpx
import pytest

from server.http.routes import EXPOSED_HEADERS, HEADER_LENGTH, REQUEST_HEADERS
from server.settings.settings import Settings, SettingsError
from tests.server.http.test_gate import BOOM, KEY, PAGE, SITE, post
from tests.server.in_process import Site, code_of


def test_without_cors_settings_no_page_of_another_site_may_post_or_read():
    site = Site()
    response = post(site, PAGE)
    assert (response.status_code, code_of(response)) == (403, "origin_not_allowed")
    for own in ({"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}, {"origin": "http://127.0.0.1"}):
        assert post(site, own).status_code == 503
    assert post(site, {"origin": "http://evil.example", "content-type": "text/plain"}).status_code == 403
    read = site.get("/v1/models", PAGE)
    assert not [name for name in read.headers if name.startswith("access-control")]
    preflight = site.get("/v1/generate", {**PAGE, "access-control-request-method": "POST"}, "OPTIONS")
    assert (preflight.status_code, code_of(preflight)) == (405, "method_not_allowed")


def preflight(
    site: Site, origin: str = SITE, method: str = "POST", asked: str = "", private: bool = False
) -> httpx.Response:
    more = {"access-control-request-headers": asked} if asked else {}
    more |= {"access-control-request-private-network": "true"} if private else {}
    headers = {"origin": origin, "access-control-request-method": method, **more}
    return site.get("/v1/generate", headers, "OPTIONS")


def test_a_browser_may_send_what_the_table_lists_from_the_origins_that_are_allowed():
    site = Site(cors_origins=(SITE, "http://b.org:8080"), api_keys=(KEY,))
    answer = preflight(site, asked=", ".join(REQUEST_HEADERS).lower())
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, SITE)
    assert {"Accept", "Authorization", "X-API-Key"} <= set(answer.headers["access-control-allow-headers"].split(", "))
    assert "Origin" in answer.headers["vary"] and "access-control-allow-credentials" not in answer.headers
    assert preflight(site, "http://b.org:8080", "HEAD", "x-api-key").status_code == 200
    for wrong in (
        preflight(site, "https://a.org.evil.example"),
        preflight(site, "http://a.org"),
        preflight(site, "null"),
    ):
        assert (wrong.status_code, code_of(wrong)) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in wrong.headers
    every = preflight(Site(cors_origins=("*",)), "http://whoever.example")
    assert (every.status_code, every.headers["access-control-allow-origin"]) == (200, "*")


@pytest.mark.parametrize(
    "asked",
    [
        "authorization,content-type,openai-organization,openai-project,x-stainless-arch,x-stainless-lang,x-stainless-os,"
        "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,"
        "x-stainless-timeout",
        "traceparent,tracestate",
        "content-type,inference-header-content-length",
    ],
    ids=["openai-js", "traces", "tensors"],
)
def test_the_headers_of_known_clients_are_allowed(asked: str):
    assert preflight(Site(cors_origins=(SITE,)), asked=asked).status_code == 200


@pytest.mark.parametrize(
    ("asked", "code", "given"),
    [
        ({"method": "DELETE"}, "method_not_allowed", "DELETE"),
        ({"asked": "accept, x-other"}, "header_not_allowed", "x-other"),
        ({"private": True}, "origin_not_allowed", "private network"),
    ],
)
def test_a_refused_preflight_request_gets_our_error_and_the_headers_of_cors(
    asked: dict[str, Any], code: str, given: str
):
    refused = preflight(Site(cors_origins=(SITE,)), **asked)
    assert (refused.status_code, code_of(refused)) == (403, code)
    assert (
        refused.headers["content-type"] == "application/json" and refused.headers["access-control-allow-origin"] == SITE
    )
    assert int(refused.headers["content-length"]) == len(refused.content)
    error = refused.json()["error"]
    assert given in error["message"] and error["type"] == "invalid_request_error"
    below = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    inference = Site(cors_origins=(SITE,)).get("/v2/models/tiny/infer", below, "OPTIONS")
    assert (inference.status_code, type(inference.json()["error"])) == (403, str)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/models", {"x-api-key": KEY}, 200),
        ("/v1/models", {}, 401),
        ("/v1/models", {"host": "evil.example"}, 421),
        ("/nowhere", {"x-api-key": KEY}, 404),
        ("/v1/generate", {"x-api-key": KEY}, 405),
        ("/boom", {"x-api-key": KEY}, 500),
        ("/readyz", {}, 503),
    ],
)
def test_a_page_of_an_allowed_origin_can_read_every_answer_and_the_headers_of_the_table(
    path: str, headers: dict[str, str], status: int
):
    site = Site(cors_origins=(SITE,), api_keys=(KEY,), more=[BOOM])
    answer = site.get(path, {**PAGE, **headers})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, SITE)
    assert answer.headers["access-control-expose-headers"].split(", ") == list(EXPOSED_HEADERS)
    assert {"X-Seed", "X-Request-Id", "Retry-After", HEADER_LENGTH} <= set(EXPOSED_HEADERS)
    assert "Origin" in answer.headers["vary"] and "access-control-allow-credentials" not in answer.headers
    other = site.get(path, {**headers, "origin": "https://a.org.evil.example"})
    assert other.status_code == status and "access-control-allow-origin" not in other.headers


def test_a_page_of_an_allowed_origin_may_make_images_and_no_other_page():
    site = Site(cors_origins=(SITE,), api_keys=(KEY,))
    answer = post(site, {**PAGE, "x-api-key": KEY})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (503, SITE)
    assert code_of(post(site, {**PAGE, "origin": "http://evil.example", "x-api-key": KEY})) == "origin_not_allowed"
    assert post(Site(cors_origins=("*",)), PAGE).status_code == 503


@pytest.mark.parametrize("origin", ["a.org", "https://a.org/", "https://a.org/x", "null", "file://", "https://*.org"])
def test_what_is_not_an_origin_is_refused(origin: str):
    with pytest.raises(SettingsError, match="is not an origin"):
        Settings(Site().settings.engines, cors_origins=(origin,))
