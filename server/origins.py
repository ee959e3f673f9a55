"""Which names the server answers to, and which web pages may use it from a browser."""

import re
from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers

from server.errors import ApiError

AUTHORITY = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
ANY = "*"


def check_host(headers: Headers, allowed: Sequence[str]) -> None:
    """Raises ApiError 421 unless the Host header names this server. allowed: names without ports, "*.name", or "*"."""
    if ANY in allowed:
        return
    given = headers.get("host", "")
    match = AUTHORITY.fullmatch(given)
    host = match["host"].strip("[]").casefold() if match else ""
    if host and any(host.endswith(name[1:]) if name.startswith("*.") else host == name for name in allowed):
        return
    raise ApiError(
        HTTPStatus.MISDIRECTED_REQUEST,
        f"this server does not answer to the name {given[:100]!r}; whoever runs it can allow it with --allowed-hosts",
        code="host_not_allowed",
    )


def check_page(method: str, headers: Headers, origins: Sequence[str]) -> None:
    """Raises ApiError 403 when the page of another site wants something done, unless its origin is allowed.

    Without CORS the page could not read the answer, but the work would be done all the same. Browsers say in
    Sec-Fetch-Site (W3C Fetch Metadata) where the page is from; clients that are not browsers do not send it.
    """
    if method in ("GET", "HEAD", "OPTIONS") or headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return
    if not origin_allowed(headers.get("origin", ""), origins):
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            "pages of other sites may not use this server; whoever runs it can allow them with --cors-origins",
            code="origin_not_allowed",
        )


def origin_allowed(origin: str, origins: Sequence[str]) -> bool:
    return bool(origin) and (ANY in origins or origin in origins)
