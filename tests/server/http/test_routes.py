"""What holds for every route: HEAD, slashes, methods, Accept, forced stops, answers that break off."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from server.http.routes import Route
from tests.server.in_process import Site, code_of, play


async def unfinished(http: Request) -> Response:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


def test_a_request_that_a_forced_stop_cancels_is_answered():
    async def scenario(site: Site) -> None:
        task = asyncio.create_task(site.ask("GET", "/unfinished", headers={"origin": "https://a.org"}))
        await asyncio.sleep(0)
        task.cancel()
        answer = await task
        assert (answer.status_code, code_of(answer), answer.headers["retry-after"]) == (503, "draining", "1")
        assert answer.headers["access-control-allow-origin"] == "https://a.org"

    play(scenario, more=[Route("/unfinished", "GET", unfinished, "")], cors_origins=("https://a.org",))


class Broken(Response):
    """Its second half does not come."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        raise RuntimeError("in the middle")


def test_a_method_of_another_route_is_refused_with_those_that_are_answered():
    answer = Site().get("/v1/generate/", method="HEAD")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")


def test_a_compressed_body_is_415():
    async def scenario(site: Site) -> None:
        answer = await site.ask("POST", "/v1/generate", b"\x1f\x8b", {"content-encoding": "gzip"})
        assert (answer.status_code, code_of(answer)) == (415, "unsupported_encoding")
        plain = await site.ask("POST", "/v1/generate", b"{}", {"content-encoding": "Identity"})
        assert code_of(plain) == "not_ready"

    play(scenario)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
         "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "application/openmetrics-text"),
        ("application/openmetrics-text;version=abc", "application/openmetrics-text"),
        ("application/openmetrics-text;q=0, */*", "text/plain"),
        ("image/png", "text/plain"),
    ],
)  # fmt: skip
def test_metrics_have_the_form_that_accept_prefers(accept: str, media_type: str):
    answer = Site().get("/metrics", {"accept": accept})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(media_type)


def test_an_answer_that_breaks_off_is_an_error_in_log_and_metrics(caplog: pytest.LogCaptureFixture):
    async def broken(http: Request) -> Response:
        return Broken()

    site = Site(more=[Route("/broken", "GET", broken, "")])
    assert site.get("/broken").content == b""
    assert "RuntimeError: in the middle" in caplog.text
    assert 'fewstep_http_requests_total{route="other",status="500"} 1.0' in site.metrics.render("")[0].decode()
