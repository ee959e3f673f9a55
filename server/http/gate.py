"""What every request passes before a route sees it: ids and log, CORS, then the checks of host, page and key."""

from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.access import Access
from server.http.auth import KeyRing
from server.http.cors import Cors
from server.http.errors import ApiError, error_response
from server.http.metrics import Metrics
from server.http.origins import check_host, check_page
from server.http.request_record import record_of
from server.settings.settings import Settings

Layer = Callable[..., Any] | tuple[Callable[..., Any], dict[str, Any]]

LIVE, READY = "/livez", "/readyz"
PROBES = (LIVE, READY)  # asked by address and without a key; they tell nothing
PAGE = "/"  # holds nothing secret, and asks its user for the key
METRICS = "/metrics"


class Gate:
    """Turns away requests for another host, from a foreign page, or without a key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.hosts = settings.hosts
        self.keys = KeyRing(settings.api_keys)
        self.keyless = {PAGE, METRICS} if settings.metrics_public else {PAGE}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            try:
                self.check(scope)
            except ApiError as error:
                record_of(scope).code = error.code
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Raises ApiError 421, 403 or 401."""
        headers = Headers(scope=scope)
        check_host(headers, self.hosts)
        check_page(scope["method"], headers, self.settings.cors_origins)
        if scope["path"] not in self.keyless:
            self.keys.check(headers)


def middlewares(settings: Settings, metrics: Metrics) -> list[Layer]:
    """As LitServer takes them: the last one is the outermost."""
    layers: list[Layer] = [(Gate, {"settings": settings})]
    if settings.cors_origins:
        layers.append((Cors, {"origins": settings.cors_origins}))
    return [*layers, (Access, {"metrics": metrics})]
