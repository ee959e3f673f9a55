"""API keys: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""

import hashlib
import hmac
from collections.abc import Iterable
from http import HTTPStatus

from starlette.datastructures import Headers

from server.http.errors import ApiError


class KeyRing:
    """The keys that open the server. Empty: it is open to everybody."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.digests = [_digest(key) for key in keys]

    def check(self, headers: Headers) -> None:
        """Raises ApiError 401 unless a key is right or none is needed."""
        if not self.digests:
            return
        given = key_in(headers)
        if given is None:
            message = "this server needs an API key: send Authorization: Bearer KEY, or X-API-Key: KEY"
            raise _unauthorized(message, code="missing_api_key")
        if not self.holds(given):
            raise _unauthorized("the API key is not one of this server's", code="invalid_api_key")

    def holds(self, key: str) -> bool:
        """In a time that tells nothing about the keys: digests of equal length, every one of them compared."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        return any(matches)


def key_in(headers: Headers) -> str | None:
    """The key a request carries, if any."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.casefold() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key") or None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unauthorized(message: str, *, code: str) -> ApiError:
    return ApiError(HTTPStatus.UNAUTHORIZED, message, code=code, headers={"WWW-Authenticate": "Bearer"})
