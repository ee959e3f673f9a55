"""Which names the server answers to, and which web pages may use it from a browser."""

import re
from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers

from server.http.errors import ApiError, shown

AUTHORITY = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>\d{1,5}))?", re.ASCII)
ANY = "*"
DEFAULT_PORTS = {"http": 80, "https": 443}


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
        f"this server does not answer to the name {shown(given)}; whoever runs it can allow it with --allowed-hosts",
        code="host_not_allowed",
    )


def check_page(method: str, headers: Headers, origins: Sequence[str]) -> None:
    """Raises ApiError 403 when the page of another site wants something done, unless its origin is allowed.

    Without CORS the page could not read the answer, but the work would be done all the same. Browsers send the page's
    origin with every such request, and to trustworthy addresses (https, loopback) also Sec-Fetch-Site (W3C Fetch
    Metadata). Clients that are not browsers send neither.
    """
    if method in ("GET", "HEAD", "OPTIONS"):
        return
    given = headers.getlist("origin")
    foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    own = not foreign and all(own_origin(origin, headers.get("host", "")) for origin in given)
    if not own and not (given and all(origin_allowed(origin, origins) for origin in given)):
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            "pages of other sites may not use this server; whoever runs it can allow them with --cors-origins",
            code="origin_not_allowed",
        )


def own_origin(origin: str, host: str) -> bool:
    """Whether a page of this origin was loaded from this Host; without a port both have the default of the scheme.

    The scheme is the page's: the server behind a proxy with TLS does not know its own.
    """
    scheme, _, page = origin.partition("://")
    default = DEFAULT_PORTS.get(scheme.casefold())
    pair = AUTHORITY.fullmatch(page), AUTHORITY.fullmatch(host)
    if default is None or not all(pair):
        return False
    ours, theirs = ((match["host"].casefold(), int(match["port"] or default)) for match in pair if match)
    return ours == theirs


def origin_allowed(origin: str, origins: Sequence[str]) -> bool:
    return bool(origin) and (ANY in origins or origin in origins)
