"""How the app counts requests: unknown paths, refusals, departures, forced stops."""

import asyncio
import importlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.http.access import STAGES, record_of
from server.http.app import App
from server.http.bodies import Bodies
from server.http.metrics import (
    OTHER,
)
from server.scheduler.refusal import Refusal
from server.settings.settings import Settings
from tests.server.fakes import manifest
from tests.server.http.counting import (
    counted,
    metrics_of,
    route_of,
    samples,
    unanswered,
    value,
)

SITE = "http://page.example"  # an allowed origin


SETTINGS = Settings({"tiny": Path("/nowhere")}, cors_origins=(SITE,))


class Site:
    """The app on two routes; what POST /v1/generate does is the test's."""

    def __init__(self, generate: Callable[[Request], Awaitable[Response]] = unanswered) -> None:
        self.metrics = metrics_of()
        routes = [route_of("/v1/generate", "POST", generate), route_of("/livez", answer=self.live)]
        self.app = App(routes, SETTINGS, self.metrics, Bodies(0))

    async def live(self, http: Request) -> Response:
        return Response("ok")

    async def ask(self, method: str, path: str, **headers: str) -> int:
        """The status, 0 where there was no answer."""
        sent: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])

        pairs = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), *pairs],
        }
        await self.app(scope, receive, send)
        return sent[0] if sent else 0

    def outcomes(self) -> Mapping[str, float]:
        """Image requests by outcome, of all models; those above zero."""
        totals: Counter[str] = Counter()
        for (name, labels), total in samples(self.metrics).items():
            if name == "fewstep_requests_total" and total:
                totals[dict(labels)["outcome"]] += int(total)
        return totals


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["GET", "PUT", "HEAD"]) | st.text(max_size=4), st.text(max_size=8).map("/{}".format))
def test_paths_and_methods_that_do_not_exist_are_other(method: str, path: str):
    site = Site()
    status = asyncio.run(site.ask(method, path))
    assert 400 <= status < 500
    assert counted(site.metrics) == {("fewstep_http_requests_total", (("route", OTHER), ("status", str(status)))): 1}


def test_only_the_method_that_makes_images_is_an_image_request():
    async def refuse(http: Request) -> Response:
        raise Refusal("full", "queue_full", "the queue is full", retry_after_s=1)

    async def scene(site: Site) -> None:
        assert await site.ask("GET", "/v1/generate") == 405
        assert await site.ask("OPTIONS", "/v1/generate", origin=SITE, access_control_request_method="POST") == 200
        assert site.outcomes() == {}
        assert await site.ask("POST", "/v1/generate") == 429
        assert site.outcomes() == {"rejected": 1}
        assert value(site.metrics, "http_requests_total", route="/v1/generate", status="200") == 1

    asyncio.run(scene(Site(refuse)))


def test_a_request_that_a_forced_stop_cancels_is_not_a_client_that_left():
    begun = asyncio.Event()

    async def never(http: Request) -> Response:
        record_of(http.scope).stage = "images"
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("cancelled before")

    async def scene(site: Site) -> None:
        task = asyncio.create_task(site.ask("POST", "/v1/generate"))
        await begun.wait()
        assert value(site.metrics, "requests_in_flight") == 1
        task.cancel()
        assert await task == 503
        assert site.outcomes() == {"unavailable": 1}
        assert [value(site.metrics, "cancelled_total", stage=stage) for stage in STAGES] == [0, 0]
        assert value(site.metrics, "rejected_total", reason="draining") == 1
        assert value(site.metrics, "requests_in_flight") == 0

    asyncio.run(scene(Site(never)))


def test_a_client_that_leaves_and_a_mistake_of_the_server_have_outcomes_of_their_own():
    async def leave(http: Request) -> Response:
        raise ClientDisconnect

    async def fail(http: Request) -> Response:
        raise ZeroDivisionError

    left, failed = Site(leave), Site(fail)
    asyncio.run(left.ask("POST", "/v1/generate"))
    assert asyncio.run(failed.ask("POST", "/v1/generate")) == 500
    assert (left.outcomes(), failed.outcomes()) == ({"cancelled": 1}, {"error": 1})
    assert value(failed.metrics, "rejected_total", reason="internal_error") == 1


def test_a_request_that_was_understood_but_not_admitted_has_its_model():
    class Full:
        """An ImageService without room."""

        def admit(self, model: str, images: int, calls: int) -> None:
            raise Refusal("full", "queue_full", "the queue is full", retry_after_s=1)

    native = importlib.import_module("server.http.dialects.native")
    site = Site(native.NativeDialect({"tiny": manifest()}, SETTINGS, Full()).generate)
    assert asyncio.run(site.ask("POST", "/v1/generate")) == 429
    assert value(site.metrics, "requests_total", model="tiny", outcome="rejected") == 1
