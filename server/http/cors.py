"""Cross-origin requests from the web pages of named origins (WHATWG Fetch, CORS protocol). Pure ASGI."""

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.origins import ANY, origin_allowed

PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Accept, Authorization, Content-Type, X-API-Key, X-Request-Id, traceparent",
    "Access-Control-Max-Age": "600",
}
EXPOSED = (
    "X-Request-Id, X-Steps, X-Seed, X-Label, X-Mode, X-Model, X-Noise-Version, Server-Timing, Retry-After, traceparent"
)


class Cors:
    """Adds the headers that let allowed origins read the answers. No cookies, hence no credentials."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin", "")
        if not origin_allowed(origin, self.origins):
            await self.app(scope, receive, send)
            return
        named = ANY if ANY in self.origins else origin  # only what the settings hold goes into the answer
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            permission = {"Access-Control-Allow-Origin": named, "Vary": "Origin", **PREFLIGHT}
            await Response(status_code=204, headers=permission)(scope, receive, send)
            return

        async def send_with_permission(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["Access-Control-Allow-Origin"] = named
                answer["Access-Control-Expose-Headers"] = EXPOSED
                answer.add_vary_header("Origin")
            await send(message)

        await self.app(scope, receive, send_with_permission)
