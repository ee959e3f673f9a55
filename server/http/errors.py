"""Every refusal is {"error": {"message", "type", "param", "code"}}, in sentences a user can act on."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.http.request_record import CLIENT_GONE, record_of

SHOWN = 60  # characters


class ApiError(Exception):
    """An answer other than success, raised anywhere below a route."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = None if param is None else escaped(param)
        self.headers = dict(headers or {})


def invalid(message: str, *, code: str, param: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, code=code, param=param)


def unavailable(message: str, *, code: str) -> ApiError:
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code=code, headers={"Retry-After": "1"})


def shown(value: Any) -> str:
    """A value of the client's as JSON in printable ASCII of at most 60 characters, safe in a log line and an answer."""
    try:
        text = json.dumps(value[:SHOWN] if isinstance(value, str) else value)
    except (ValueError, RecursionError):
        text = f"that {type(value).__name__}"
    text = text.replace("\x7f", "\\u007f")
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def escaped(text: str, limit: int = SHOWN) -> str:
    """A text of the client's in printable ASCII of at most `limit` characters; what is not is written as JSON does."""
    safe = json.dumps(text[:limit])[1:-1].replace("\x7f", "\\u007f")
    return safe if len(safe) <= limit and len(text) <= limit else safe[: limit - 3] + "..."


def error_response(error: ApiError) -> Response:
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    else:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
    body = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    content = json.dumps({"error": body})  # ASCII: whatever a message holds can be encoded
    return Response(content, error.status, headers=error.headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Give the answers of the framework itself (404, 405) the same shape as ours, and note the codes.

    What is not caught here is a mistake in the server; server.http.access answers for it.
    """

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        record_of(request.scope).code = error.code
        return error_response(error)

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, allowed = shown(request.scope["path"]), (error.headers or {}).get("Allow", "GET")
        if error.status_code == HTTPStatus.NOT_FOUND:
            message, code = f"there is nothing at {path}; images come from POST /v1/generate", "not_found"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            message, code = f"{path} answers {allowed}, not {shown(request.method)}", "method_not_allowed"
        else:
            message, code = str(error.detail), "http_error"
        return await ours(request, ApiError(error.status_code, message, code=code, headers=error.headers))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.router.redirect_slashes = False  # to an address made of the Host header
    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(ClientDisconnect, gone)
