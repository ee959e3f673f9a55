"""The one place that turns a Refusal into an HTTP answer: {"error": {"message", "type", "param", "code"}}."""

import json
from collections.abc import Mapping

from starlette.responses import Response

from server.scheduler.refusal import Kind, Refusal

CLIENT_GONE = 499  # no client reads it; logs and metrics do
STATUS: Mapping[Kind, int] = {
    "invalid": 400,
    "malformed": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method": 405,
    "not_acceptable": 406,
    "slow": 408,
    "gone": 410,
    "too_large": 413,
    "unsupported": 415,
    "misdirected": 421,
    "full": 429,
    "head_too_large": 431,
    "failed": 500,
    "unavailable": 503,
    "timeout": 504,
}
LAST_ON_CONNECTION: frozenset[Kind] = frozenset({"malformed", "slow", "too_large", "head_too_large"})


def error_response(error: Refusal, headers: Mapping[str, str] | None = None, *, as_text: bool = False) -> Response:
    """The answer to a refused request; its body is ASCII, whatever the message holds.

    as_text: {"error": MESSAGE}, as the Open Inference Protocol has it.
    """
    status = STATUS[error.kind]
    answered = dict(headers or {})
    if error.retry_after_s is not None:
        answered["Retry-After"] = str(error.retry_after_s)
    if error.kind in LAST_ON_CONNECTION:
        answered["Connection"] = "close"
    if error.kind == "unauthorized":
        answered["WWW-Authenticate"] = "Bearer"
    body = {"error": error.message} if as_text else error_body(error)
    return Response(json.dumps(body), status, headers=answered, media_type="application/json")


def error_body(error: Refusal) -> dict[str, dict[str, str | None]]:
    """The one shape of every error."""
    kind = error_type(STATUS[error.kind])
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_type(status: int) -> str:
    """The class of an error, in the words of OpenAI's API."""
    if status == STATUS["full"]:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
