"""The routes, as a LitSpec: LitServe registers them on its FastAPI app in place of its own /predict."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from litserve import LitAPI
from litserve.specs.base import LitSpec

from export.manifest import Manifest
from server.http.dialects.native import GenerateRequest, body_limit, parse_request, read_body
from server.http.dialects.native_answers import generate_response, model_facts, models_body
from server.http.errors import ApiError
from server.http.gate import LIVE, METRICS, PAGE, READY, middlewares
from server.http.metrics import Metrics
from server.http.openapi import openapi_body
from server.http.request_record import CLIENT_GONE, record_of
from server.http.worker_metrics import WorkerMetrics
from server.processes.messages import Done
from server.processes.pool import EngineClient
from server.settings.settings import Settings

Result = TypeVar("Result")
INLINE_RESOLUTION = 64  # larger images are decoded off the event loop: 512x512 takes some milliseconds
PAGE_FILE = Path(__file__).parent / "page" / "index.html"
PAGE_HEADERS = {
    # The page is one file; it may talk to this server and to nothing else.
    "Content-Security-Policy": "default-src 'none'; img-src data:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


class GenerateSpec(LitSpec):
    """HTTP in, HTTP out; the engine is behind `client`."""

    def __init__(self, models: Mapping[str, Manifest], settings: Settings, client: EngineClient) -> None:
        super().__init__()
        self.api_path = "/v1/generate"
        self.models = models
        self.settings = settings
        self.client = client
        self.admission = client.admission
        self.max_body_bytes = body_limit(settings.max_body_bytes, models)
        self.inline = all(model.resolution <= INLINE_RESOLUTION for model in models.values())
        self.page = PAGE_FILE.read_bytes()
        self.routes: dict[str, tuple[Callable[[Request], Awaitable[Response]], list[str]]] = {
            self.api_path: (self.generate, ["POST"]),
            "/v1/models": (self.list_models, ["GET"]),
            "/openapi.json": (self.openapi, ["GET"]),
            METRICS: (self.show_metrics, ["GET"]),
            LIVE: (self.livez, ["GET", "HEAD"]),
            READY: (self.readyz, ["GET", "HEAD"]),
            PAGE: (self.index, ["GET", "HEAD"]),
        }
        self.metrics = Metrics(models, self.routes)
        self.metrics.add(WorkerMetrics(client, self.facts))
        self.middlewares = middlewares(settings, self.metrics)

    @property
    def stream(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """True keeps LitServe's gzip away: PNG does not shrink, and gzip would stall the event loop."""
        return True

    def pre_setup(self, lit_api: LitAPI) -> None:
        for path, (answer, methods) in self.routes.items():
            self.add_endpoint(path, answer, methods)

    def facts(self) -> dict[str, dict[str, str]]:
        """What runs each model, for the metrics."""
        return {
            name: model_facts(model, self.client.models.get(name), self.settings) for name, model in self.models.items()
        }

    async def generate(self, request: Request) -> Response:
        """POST /v1/generate."""
        record = record_of(request.scope)
        settings = self.settings
        body = await read_body(request.stream(), request.headers, self.max_body_bytes, settings.timeout_s)
        parsed = await self._aside(partial(parse_request, body, self.models, settings.max_images, settings.timeout_s))
        wanted = record.wanted = parsed.request
        self.client.check_ready(wanted.model)
        ticket = self.admission.enter(wanted.model, wanted.images, parsed.calls)
        try:
            wanted = record.wanted = await self._aside(partial(parsed.decoded, self.models))
            record.stage = "images"
            done = record.done = await self._images(wanted, request)
        finally:
            self.admission.leave(ticket)
        if done is None:
            return Response(status_code=CLIENT_GONE)
        return generate_response(request, wanted, done, self.models[wanted.model], settings)

    async def _aside(self, work: Callable[[], Result]) -> Result:
        """Do what takes long for large images in a thread."""
        return work() if self.inline else await asyncio.to_thread(work)

    async def _images(self, wanted: GenerateRequest, request: Request) -> Done | None:
        """The worker's answer; None when the client has left. Raises ApiError, 504 when the time is up."""
        number, answer = self.client.submit(wanted)
        departure = asyncio.ensure_future(_client_left(request))
        try:
            await asyncio.wait({answer, departure}, timeout=wanted.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if departure.done():
                return None
            message = f"the images were not ready after {wanted.timeout_s:g} s; ask for fewer or retry later"
            raise ApiError(HTTPStatus.GATEWAY_TIMEOUT, message, code="timeout")
        finally:
            self.client.forget(number)
            departure.cancel()

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse(models_body(self.models, self.client.models, self.settings))

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(openapi_body(self.models, self.settings))

    async def show_metrics(self, request: Request) -> Response:
        """GET /metrics."""
        page, media_type = self.metrics.render(request.headers.get("accept", ""))
        return Response(page, media_type=media_type)

    async def livez(self, request: Request) -> Response:
        """The HTTP process answers."""
        return Response("ok\n", media_type="text/plain")

    async def readyz(self, request: Request) -> Response:
        """The worker is warm: a request would be served."""
        self.client.check_ready()
        return Response("ok\n", media_type="text/plain")

    async def index(self, request: Request) -> Response:
        """The page."""
        return Response(self.page, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)


async def _client_left(request: Request) -> None:
    """Returns when the client closes its connection. The body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
