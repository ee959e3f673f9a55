"""Why a request is not served, in terms that every protocol can translate; statuses are in server.http.errors."""

import json
from typing import Any, Literal

Kind = Literal[
    "invalid",  # a field is wrong; `param` names it
    "not_found",  # there is no such model or path
    "full",  # too many images wait; retry_after_s says when to come back
    "unavailable",  # loading, stopping, or the worker was lost; the same request may succeed later
    "timeout",  # the deadline has passed
    "failed",  # the network or the encoder failed
    # Raised by protocols only:
    "malformed",  # the request cannot be parsed
    "too_large",  # the body is larger than any field needs
    "head_too_large",  # the headers are
    "slow",  # the body did not arrive in time
    "unsupported",  # of a media type or an encoding that is not read
    "gone",  # an image is not kept any more
    "not_acceptable",  # no media type that is made is accepted
    "method",  # the path answers other methods
    "unauthorized",  # no API key, or not one of this server's
    "forbidden",  # a page of another site asks, or a url is not one of ours
    "misdirected",  # the request is for a server of another name
]
SHOWN_CHARACTERS = 60


class Refusal(Exception):  # noqa: N818 - an answer, not an error of the server
    """An answer other than images.

    kind: what any protocol needs to know. code: one word for programs, such as "queue_full". message: a sentence for
    people that says what to do. param: the field it is about. retry_after_s: whole seconds, where waiting helps.
    """

    def __init__(
        self, kind: Kind, code: str, message: str, param: str | None = None, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.code = code
        self.message = message
        self.param = None if param is None else escaped(param)
        self.retry_after_s = retry_after_s


def invalid(message: str, *, code: str, param: str | None = None) -> Refusal:
    """The client must change the request."""
    return Refusal("invalid", code, message, param)


def unavailable(message: str, *, code: str) -> Refusal:
    """The client may send the same request again."""
    return Refusal("unavailable", code, message, retry_after_s=1)


def shown(value: Any) -> str:
    """A client's value as JSON: printable ASCII of at most SHOWN_CHARACTERS, safe in a log line and an answer."""
    try:
        text = json.dumps(value[:SHOWN_CHARACTERS] if isinstance(value, str) else value)
    except (TypeError, ValueError, RecursionError):
        text = f"that {type(value).__name__}"
    text = text.replace("\x7f", "\\u007f")
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def escaped(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """A client's text in printable ASCII of at most `limit` characters; the rest is written as JSON escapes it."""
    safe = json.dumps(text[:limit])[1:-1].replace("\x7f", "\\u007f")
    return safe if len(safe) <= limit and len(text) <= limit else safe[: limit - 3] + "..."
