"""What is known about one HTTP request, its ids (W3C trace context), and its log line."""

import json
import logging
import random
import re
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

from msgspec import Struct, field

from server.http.errors import CLIENT_GONE
from server.scheduler.events import Finished
from server.scheduler.refusal import escaped
from server.scheduler.request import ImageRequest

logger = logging.getLogger("fewstep.access")

Outcome = Literal["ok", "invalid", "rejected", "cancelled", "timeout", "unavailable", "error"]
Stage = Literal["body", "images"]  # what the server was doing when the client left: reading, or making images

OUTCOMES: tuple[Outcome, ...] = ("ok", "invalid", "rejected", "cancelled", "timeout", "unavailable", "error")
STAGES: tuple[Stage, ...] = ("body", "images")
STATUS_OUTCOMES: dict[int, Outcome] = {429: "rejected", CLIENT_GONE: "cancelled", 503: "unavailable", 504: "timeout"}
RECORD = "fewstep.record"  # key of the ASGI scope
COMPLETE = "fewstep.complete"  # key of the scope: the whole body has arrived, and receiving it does not wait
REFUSED = "fewstep.refused"  # key of the scope: the Refusal that answers what the parser did not understand
REFUSED_AT = "fewstep.refused_at"  # key of such a scope: the path, as far as it was read
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")  # goes into logs: no spaces, no control characters
TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
SAMPLED = 0x01  # the only flag of version 00; others are not passed on
PATH_CHARACTERS = 200


class Trace(Struct, frozen=True):
    """A request's place in its trace (W3C Trace Context, Level 1, 2021)."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16, of this server's part
    parent_id: str | None  # the caller's span; None: the trace begins here
    sampled: bool

    @property
    def traceparent(self) -> str:
        """The header value that names our span as the parent."""
        return f"00-{self.trace_id}-{self.span_id}-{SAMPLED if self.sampled else 0:02x}"


def continued(traceparent: str | None) -> Trace:
    """Our span in the caller's trace; a header that is absent or malformed starts a trace of its own (section 4.3)."""
    match = TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
    if match is not None:
        version, trace_id, parent_id, flags, more = match.groups()
        if version != "ff" and int(trace_id, 16) and int(parent_id, 16) and not (version == "00" and more):
            return Trace(trace_id, new_id(64), parent_id, bool(int(flags, 16) & SAMPLED))
    return Trace(new_id(128), new_id(64), None, sampled=False)


def new_id(bits: int) -> str:
    """A random hexadecimal number that is not zero. Ids are no secrets, and the system's generator takes its time."""
    return f"{random.getrandbits(bits) or 1:0{bits // 4}x}"


def request_id(given: str | None) -> str:
    """The client's own id if it is well formed, else a fresh one."""
    return given if given and REQUEST_ID.fullmatch(given) else new_id(128)


class Record(Struct):
    """Filled in while the request is served; its log line and its counts are made of this."""

    request_id: str = ""
    trace: Trace = field(default_factory=lambda: continued(None))
    method: str = ""
    started_s: float = field(default_factory=time.monotonic)
    status: int = 0  # 0: no answer yet
    code: str | None = None  # of the error in the answer
    stage: Stage = "body"
    request: ImageRequest | None = None  # an image request that was understood
    finished: Finished | None = None  # and answered

    @property
    def outcome(self) -> Outcome:
        return outcome_of(self.status)


def outcome_of(status: int) -> Outcome:
    """One word for an HTTP status."""
    if status in STATUS_OUTCOMES:
        return STATUS_OUTCOMES[status]
    return "ok" if status < 400 else "invalid" if status < 500 else "error"


def record_of(scope: MutableMapping[str, Any]) -> Record:
    """The record of the request behind an ASGI scope; begins one where the app has not."""
    if RECORD not in scope:
        scope[RECORD] = Record()
    return scope[RECORD]


def timings_ms(finished: Finished) -> dict[str, float]:
    """Milliseconds in the queue, in the engine, and in the image encoder."""
    seconds = {"queue": finished.queue_s, "engine": finished.engine_s, "encode": finished.encode_s}
    return {name: round(1e3 * value, 3) for name, value in seconds.items()}


def log_request(scope: Mapping[str, Any], record: Record, elapsed_s: float) -> None:
    """One line for a request that has ended. No header values and no query: they may hold secrets."""
    if logger.isEnabledFor(logging.INFO):
        fields = access_fields(scope, record, elapsed_s)
        logger.info("%s", access_text(fields), extra={"fields": fields})


def access_fields(scope: Mapping[str, Any], record: Record, elapsed_s: float) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "trace_id": record.trace.trace_id,
        "span_id": record.trace.span_id,
        "parent_id": record.trace.parent_id,
        "client": escaped((scope.get("client") or ("",))[0]).replace(" ", "_"),  # a proxy may pass on any text
        "method": escaped(scope["method"]),
        "path": escaped(scope["path"], PATH_CHARACTERS),
        "status": record.status,
        "outcome": record.outcome,
        "code": record.code,
        "duration_ms": round(1e3 * elapsed_s, 3),
    }
    if asked := record.request:
        fields |= {"model": asked.model, "steps": asked.steps, "images": asked.images, "seed": asked.seeds[0]}
    if record.finished:
        fields |= {f"{name}_ms": value for name, value in timings_ms(record.finished).items()}
    return fields


def access_text(fields: Mapping[str, Any]) -> str:
    """The same for people: one line whatever the path holds."""
    head = f"{fields['method']} {json.dumps(fields['path'])} {fields['status']} {fields['outcome']}"
    named = ("method", "path", "status", "outcome")
    rest = [f"{name}={value}" for name, value in fields.items() if name not in named and value not in ("", None)]
    return " ".join([head, *rest])
