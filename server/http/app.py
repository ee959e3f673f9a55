"""The ASGI application: ids, CORS, the gate, one route table, counts and log line. One layer, no framework.

A route may raise Refusal. Any other exception is a fault of the server: 500, and the log has the traceback.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.access import RECORD, REFUSED, REFUSED_AT, Record, continued, log_request, request_id
from server.http.bodies import Bodies
from server.http.draining import LATE
from server.http.errors import CLIENT_GONE, STATUS, error_response
from server.http.gate import FOREIGN, Gate
from server.http.metrics import Metrics
from server.http.routes import EXPOSED_HEADERS, MODEL_VERSION, REQUEST_HEADERS, Route, by_path, error_texts
from server.scheduler.refusal import Refusal, shown
from server.scheduler.validate import no_model
from server.settings.settings import Settings

logger = logging.getLogger(__name__)

INTERNAL = Refusal("failed", "internal_error", "the server made a mistake; its log has the details")
PREFLIGHT_S = 600  # how long a browser may remember what CORS allows
REQUEST_ID, TRACEPARENT = ID_HEADERS = (b"x-request-id", b"traceparent")
CORS_METHODS = ("GET", "HEAD", "POST")


class App:
    """lifespan: entered while the server runs.

    cancelled_when_client_leaves: why the task of a request is cancelled. uvicorn does it when the server stops and
    waits no longer, Ray Serve when the client has left.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        settings: Settings,
        metrics: Metrics,
        bodies: Bodies,
        lifespan: AbstractAsyncContextManager[Any] | None = None,
        *,
        cancelled_when_client_leaves: bool = False,
    ) -> None:
        self.routes = by_path(routes)
        self.gate = Gate(settings)
        self.models = tuple(metrics.models)
        self.metrics = metrics
        self.bodies = bodies
        self.lifespan = lifespan
        self.cancelled_when_client_leaves = cancelled_when_client_leaves
        self.inner: ASGIApp = self._gated
        if settings.cors_origins:
            self.inner = Cors(
                self._gated,
                allow_origins=settings.cors_origins,
                allow_methods=CORS_METHODS,
                allow_headers=REQUEST_HEADERS,
                expose_headers=EXPOSED_HEADERS,
                max_age=PREFLIGHT_S,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _run_lifespan(self.lifespan, receive, send)
            return
        given = {name: value.decode("latin-1") for name, value in reversed(scope["headers"]) if name in ID_HEADERS}
        trace = continued(given.get(TRACEPARENT))
        record = Record(request_id(given.get(REQUEST_ID)), trace, scope["method"])
        scope[RECORD] = record
        route = self.route(scope["path"])

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (REQUEST_ID, record.request_id.encode()),
                    (TRACEPARENT, record.trace.traceparent.encode()),
                ]
            await send(message)

        self.metrics.began()
        body = self.bodies.counted(receive, (scope.get("client") or ("",))[0])
        try:
            await self.inner(scope, body.receive, send_with_ids)
        except asyncio.CancelledError:  # this client has not taken its answer
            if self.cancelled_when_client_leaves:
                record.status = CLIENT_GONE
            else:
                record.status, record.code = STATUS[LATE.kind], LATE.code
        except Exception:  # while an answer was sent: its rest does not come
            record.status, record.code = STATUS[INTERNAL.kind], INTERNAL.code
            logger.exception("request %s met a mistake in the server", record.request_id)
        finally:
            body.release()
            del scope[RECORD]  # uvicorn keeps the scope until the connection's next request, and with it the images
            elapsed_s = time.monotonic() - record.started_s
            self.metrics.ended(route, record, elapsed_s)
            if route is None or not route.quiet or record.status >= 400:
                log_request(scope, record, elapsed_s)

    def route(self, path: str) -> Route | None:
        """The route of a path; a slash at its end changes nothing."""
        return self.routes.get(path) or self.routes.get(path.removesuffix("/"))

    async def _gated(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(scope, receive)
        except Refusal as error:
            response = self._refused(scope, error)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_GONE)
        except asyncio.CancelledError:
            left = self.cancelled_when_client_leaves
            response = Response(status_code=CLIENT_GONE) if left else self._refused(scope, LATE)
        except Exception:
            logger.exception("request %s met a mistake in the server", scope[RECORD].request_id)
            response = self._refused(scope, INTERNAL)
        if scope["method"] == "HEAD":
            response.body = b""  # with the length of the body that GET has
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        if refusal := scope.get(REFUSED):
            raise refusal.with_traceback(None)  # one object for many requests must not keep their tracebacks
        method, path = scope["method"], scope["path"]
        route = self.route(path)
        http = Request(scope, receive)
        self.gate.check(method, http.headers, route)
        if route is None:
            raise nothing_at(path, self.models)
        if method not in route.methods:
            message = f"{route.path} answers {' and '.join(route.methods)}, not {shown(method)}"
            raise Refusal("method", "method_not_allowed", message)
        return await route.answer(http)

    def _refused(self, scope: Scope, error: Refusal) -> Response:
        """The answer; that to a refused method lists those that are answered (RFC 9110, section 15.5.6)."""
        scope[RECORD].code = error.code
        route = self.route(scope["path"])
        headers = {}
        if error.kind == "method":
            headers["Allow"] = ", ".join(route.methods if route else ("GET", "HEAD", "POST"))
        return error_response(error, headers, as_text=error_texts(scope.get(REFUSED_AT, scope["path"])))


class Cors(CORSMiddleware):
    """Starlette's, except that a refused preflight request gets an error like that of every refused request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if scope["method"] == "OPTIONS" and {"origin", "access-control-request-method"} <= set(headers):
            await self._preflight(headers, scope["path"])(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def _preflight(self, asked: Headers, path: str) -> Response:
        response = self.preflight_response(asked)
        if response.status_code < 400:
            return response
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return error_response(self._refusal(asked), kept, as_text=error_texts(path))

    def _refusal(self, asked: Headers) -> Refusal:
        """Why a preflight request was refused."""
        if not self.is_allowed_origin(asked["origin"]):
            return Refusal("forbidden", "origin_not_allowed", FOREIGN)
        method = asked["access-control-request-method"]
        if method not in CORS_METHODS:
            message = f"pages of other sites may send {', '.join(CORS_METHODS)}, not {shown(method)}"
            return Refusal("forbidden", "method_not_allowed", message)
        names = asked.get("access-control-request-headers", "accept").split(",")
        if others := [name.strip() for name in names if name.strip().lower() not in self.allow_headers]:
            message = f"pages of other sites may send the headers {', '.join(REQUEST_HEADERS)}, not {shown(others[0])}"
            return Refusal("forbidden", "header_not_allowed", message)
        return Refusal("forbidden", "origin_not_allowed", "public pages may not use a server of a private network")


def nothing_at(path: str, models: Sequence[str]) -> Refusal:
    """Why a path has no route. models: the names of those that are served."""
    match path.split("/"):
        case ["", "v1", "models", name] | ["", "v2", "models", name, *_] if name and name not in models:
            return no_model(name, models)
        case ["", "v2", "models", name, "versions", version, *_] if version and version != MODEL_VERSION:
            message = f"{name} has no version {shown(version)}; it has version {MODEL_VERSION}"
            return Refusal("not_found", "version_not_found", message)
    source = f"/v2/models/{models[0]}/infer" if error_texts(path) else "/v1/generate"
    message = f"there is nothing at {shown(path)}; images come from POST {source}"
    return Refusal("not_found", "not_found", message)


async def _run_lifespan(lifespan: AbstractAsyncContextManager[Any] | None, receive: Receive, send: Send) -> None:
    """The ASGI lifespan protocol."""
    await receive()
    try:
        if lifespan is not None:
            await lifespan.__aenter__()
    except Exception as error:
        logger.exception("the HTTP process cannot start")
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if lifespan is not None:
        await lifespan.__aexit__(None, None, None)
    await send({"type": "lifespan.shutdown.complete"})
