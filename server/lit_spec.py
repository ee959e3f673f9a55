"""The routes, as a LitSpec: LitServe registers them on its FastAPI app in place of its own /predict."""

import asyncio
from http import HTTPStatus
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from litserve import LitAPI
from litserve.specs.base import LitSpec

from export.manifest import Manifest
from server.admission import Admission
from server.engine_client import EngineClient
from server.errors import CLIENT_GONE, ApiError
from server.messages import Done
from server.requests import GenerateRequest, parse_request, read_body
from server.responses import generate_response, models_body
from server.settings import Settings

PAGE = Path(__file__).parent / "page" / "index.html"
PAGE_HEADERS = {
    # The page is one file; it may talk to this server and to nothing else.
    "Content-Security-Policy": "default-src 'none'; img-src data:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


class GenerateSpec(LitSpec):
    """HTTP in, HTTP out; the engine is behind `client`."""

    def __init__(self, model: Manifest, settings: Settings, client: EngineClient) -> None:
        super().__init__()
        self.api_path = "/v1/generate"
        self.model = model
        self.settings = settings
        self.client = client
        self.admission = Admission(settings.capacity, settings.limit)
        self.page = PAGE.read_bytes()

    @property
    def stream(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """True keeps LitServe's gzip away: PNG does not shrink, and gzip would stall the event loop."""
        return True

    def pre_setup(self, lit_api: LitAPI) -> None:
        self.add_endpoint(self.api_path, self.generate, ["POST"])
        self.add_endpoint("/v1/models", self.models, ["GET"])
        self.add_endpoint("/livez", self.livez, ["GET", "HEAD"])
        self.add_endpoint("/readyz", self.readyz, ["GET", "HEAD"])
        self.add_endpoint("/", self.index, ["GET", "HEAD"])

    async def generate(self, request: Request) -> Response:
        """POST /v1/generate."""
        ready = self.client.check_ready()
        body = await read_body(request.stream(), request.headers, self.settings.max_body_bytes)
        wanted = parse_request(body, self.model, self.settings.max_images)
        self.admission.enter(wanted.images, wanted.steps, ready.tick_s)
        try:
            done = await self._images(wanted, request)
        finally:
            self.admission.leave(wanted.images, wanted.steps)
        if done is None:
            return Response(status_code=CLIENT_GONE)
        return generate_response(request, wanted, done, self.model, self.settings)

    async def _images(self, wanted: GenerateRequest, request: Request) -> Done | None:
        """The worker's answer; None when the client has left. Raises ApiError, 504 when the time is up."""
        number, answer = self.client.submit(wanted)
        departure = asyncio.ensure_future(_client_left(request))
        try:
            await asyncio.wait(
                {answer, departure}, timeout=self.settings.timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                return answer.result()
            if departure.done():
                return None
            message = f"the images were not ready after {self.settings.timeout_s:g} s; ask for fewer or retry later"
            raise ApiError(HTTPStatus.GATEWAY_TIMEOUT, message, code="timeout")
        finally:
            self.client.forget(number)
            departure.cancel()

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse(models_body(self.model, self.settings))

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
