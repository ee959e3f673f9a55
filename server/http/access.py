"""The outermost layer of the app: an id and a trace for every request, its log line and its counts. Pure ASGI.

It also answers for everything inside that raises, so that an answer of 500 has the same shape, id and line.
"""

import logging
import re
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.dialects.native_answers import timings_ms
from server.http.errors import ApiError, error_response, escaped
from server.http.metrics import Metrics
from server.http.request_record import CLIENT_GONE, KEY, REFUSED, Record
from server.http.tracing import continued, new_id

logger = logging.getLogger("fewstep.access")

SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")  # goes into logs: no spaces, no control characters
QUIET = ("/livez", "/readyz", "/metrics")  # asked every few seconds; logged only when they fail
SHOWN_PATH = 200


class Access:
    """Wraps the whole app."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = scope[KEY] = Record(request_id(headers.get("x-request-id")), continued(headers.get("traceparent")))

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = record.request_id
                answer["traceparent"] = record.trace.traceparent
            await send(message)

        try:
            with self.metrics.in_flight():
                if refusal := scope.get(REFUSED):
                    record.code = refusal.code
                    await error_response(refusal)(scope, receive, send_with_ids)
                else:
                    await self.app(scope, receive, send_with_ids)
        except Exception:
            logger.exception("request %s met a mistake in the server", record.request_id)
            if not record.status:
                error = ApiError(500, "the server made a mistake; its log has the details", code="internal_error")
                record.code = error.code
                await error_response(error)(scope, receive, send_with_ids)
        finally:
            record.status = record.status or CLIENT_GONE  # the server is stopping and does not wait any longer
            elapsed_s = time.monotonic() - record.started_s
            self.metrics.observe(scope["method"], scope["path"], record, elapsed_s)
            loud = scope["path"] not in QUIET or record.status >= 400
            if loud and logger.isEnabledFor(logging.INFO):  # most servers keep no text log of requests
                fields = access_fields(scope, record, elapsed_s)
                logger.info("%s", access_text(fields), extra={"fields": fields})


def request_id(given: str | None) -> str:
    """The client's own id if it is sane, else a fresh one."""
    return given if given and SANE.fullmatch(given) else new_id(128)


def access_fields(scope: Scope, record: Record, elapsed_s: float) -> dict[str, Any]:
    """What a log line says about a request. No header values and no query: they may hold secrets."""
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "trace_id": record.trace.trace_id,
        "span_id": record.trace.span_id,
        "parent_id": record.trace.parent_id,
        "client": escaped((scope.get("client") or ("",))[0]),  # a trusted proxy may pass on what it was sent
        "method": escaped(scope["method"]),
        "path": escaped(scope["path"], SHOWN_PATH),
        "status": record.status,
        "outcome": record.outcome,
        "code": record.code,
        "duration_ms": round(1e3 * elapsed_s, 3),
    }
    if wanted := record.wanted:
        fields |= {"model": wanted.model, "steps": wanted.steps, "images": wanted.images, "seed": wanted.seed}
    if record.done:
        fields |= {f"{name}_ms": value for name, value in timings_ms(record.done).items()}
    return fields


def access_text(fields: dict[str, Any]) -> str:
    """The same for people."""
    head = f'{fields["method"]} "{fields["path"]}" {fields["status"]} {fields["outcome"]}'
    named = ("method", "path", "status", "outcome")
    rest = [f"{name}={value}" for name, value in fields.items() if name not in named and value not in ("", None)]
    return " ".join([head, *rest])
