"""The routes that belong to no dialect: probes, metrics, and the page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.http.openapi import answers
from server.http.page_files import INDEX, LOCAL_POLICY, POLICY, page_file
from server.http.routes import Route
from server.http.service import ImageService
from server.settings.settings import Settings

TEXT = answers("text/plain")


@dataclass(frozen=True)
class SystemRoutes:
    """render: the Accept header -> the metrics page and its media type."""

    settings: Settings
    service: ImageService
    render: Callable[[str], tuple[bytes, str]]

    def routes(self) -> list[Route]:
        ready = "An image request would be served."
        probe: dict[str, Any] = {"keyless": True, "any_host": True, "quiet": True}
        policy, page = LOCAL_POLICY if self.settings.page_runtime else POLICY, answers("text/html")
        metrics: dict[str, Any] = {"keyless": self.settings.metrics_public, "quiet": True}
        return [
            Route("/livez", "GET", self.livez, "The process answers.", TEXT, **probe),
            Route("/readyz", "GET", self.readyz, ready, TEXT, ("unavailable",), **probe),
            Route("/health", "GET", self.readyz, f"{ready} The same as /readyz.", TEXT, ("unavailable",), **probe),
            Route("/metrics", "GET", self.show_metrics, "Prometheus metrics.", TEXT, **metrics),
            Route("/", "GET", page_file(INDEX, policy), "A page to try the models with.", page, keyless=True),
        ]

    async def livez(self, http: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(self, http: Request) -> Response:
        self.service.check_ready()
        return Response("ok\n", media_type="text/plain")

    async def show_metrics(self, http: Request) -> Response:
        page, media_type = self.render(", ".join(http.headers.getlist("accept")))
        return Response(page, media_type=media_type)
