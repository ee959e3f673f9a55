"""What is known about one request; its log line and its counts are made of this at its end."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from server.http.tracing import Trace, continued

if TYPE_CHECKING:
    from server.http.dialects.native import GenerateRequest
    from server.processes.messages import Done

Outcome = Literal["ok", "invalid", "rejected", "cancelled", "timeout", "unavailable", "error"]
Stage = Literal["body", "images"]  # what the server was doing when the client left: reading, or making images

OUTCOMES: tuple[Outcome, ...] = ("ok", "invalid", "rejected", "cancelled", "timeout", "unavailable", "error")
CLIENT_GONE = 499  # nobody reads it; logs and tests do
SPECIAL: dict[int, Outcome] = {429: "rejected", CLIENT_GONE: "cancelled", 503: "unavailable", 504: "timeout"}
KEY = "fewstep.record"  # of the ASGI scope
REFUSED = "fewstep.refused"  # of the ASGI scope: the ApiError for a request that the HTTP parser did not understand


@dataclass
class Record:
    """Filled in while the request is served; nothing in it is needed to serve it."""

    request_id: str = ""
    trace: Trace = field(default_factory=lambda: continued(None))
    started_s: float = field(default_factory=time.monotonic)
    status: int = 0  # 0: no answer yet
    code: str | None = None  # of the error in the answer
    stage: Stage = "body"
    wanted: "GenerateRequest | None" = None  # a generate request that was understood
    done: "Done | None" = None  # and answered

    @property
    def outcome(self) -> Outcome:
        return outcome_of(self.status)


def outcome_of(status: int) -> Outcome:
    """One word for an HTTP status."""
    if status in SPECIAL:
        return SPECIAL[status]
    return "ok" if status < 400 else "invalid" if status < 500 else "error"


def record_of(scope: MutableMapping[str, Any]) -> Record:
    """The record of the request behind an ASGI scope; begins one where no middleware has."""
    if KEY not in scope:
        scope[KEY] = Record()
    return scope[KEY]
