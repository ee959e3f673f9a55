"""What every request passes before its route: the Host header, the origin of the page that asks, and the API key."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence

from starlette.datastructures import Headers

from server.http.routes import Route
from server.scheduler.refusal import Refusal, shown
from server.settings.settings import Settings, comparable

AUTHORITY = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>\d{0,5}))?", re.ASCII)
ANY = "*"
DEFAULT_PORTS = {"http": 80, "https": 443}
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
FOREIGN = "pages of other sites may not use this server; its operator can allow them with --cors-origins"
NO_BROWSER = "a browser cannot, but curl -H 'X-API-Key: KEY' URL -o FILE saves what it would show"


class Gate:
    """Refuses requests for another host, from the page of another site, or without a key."""

    def __init__(self, settings: Settings) -> None:
        self.hosts = settings.hosts
        self.origins = settings.cors_origins
        self.keys = KeyRing(settings.api_keys)

    def check(self, method: str, headers: Headers, route: Route | None) -> None:
        """Raises Refusal. route: None where the path has none."""
        if route is None or not route.any_host:
            check_host(headers, self.hosts)
            check_page(method, headers, self.origins)
        if route is None or not route.keyless:
            self.keys.check(headers)


class KeyRing:
    """The API keys of the server: `Authorization: Bearer KEY` or `X-API-Key: KEY`. None: all requests pass."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.digests = [_digest(key) for key in keys]

    def check(self, headers: Headers) -> None:
        """Raises Refusal "unauthorized" unless a key is right or none is needed."""
        if not self.digests:
            return
        given = key_in(headers)
        if given is None:
            message = "this server needs an API key: send Authorization: Bearer KEY, or X-API-Key: KEY; " + NO_BROWSER
            raise Refusal("unauthorized", "missing_api_key", message)
        if not self.holds(given):
            raise Refusal("unauthorized", "invalid_api_key", "the API key is not one of this server's")

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


def check_host(headers: Headers, allowed: Sequence[str]) -> None:
    """Raises Refusal unless the Host header names this server. allowed: names without ports, "*.name", or "*"."""
    if ANY in allowed:
        return
    given = ", ".join(headers.getlist("host"))  # several are none (RFC 9112, section 3.2)
    match = AUTHORITY.fullmatch(given)
    host = comparable(match["host"]) if match else ""
    if host and any(host.endswith(name[1:]) if name.startswith("*.") else host == name for name in allowed):
        return
    message = f"this server does not answer to the name {shown(given)}; its operator can allow it with --allowed-hosts"
    raise Refusal("misdirected", "host_not_allowed", message)


def check_page(method: str, headers: Headers, origins: Sequence[str]) -> None:
    """Raises Refusal when the page of another site wants something done, unless its origin is allowed.

    Without CORS the page could not read the answer, but the work would be done all the same. Browsers send the page's
    origin with every such request, and to trustworthy addresses (https, loopback) also Sec-Fetch-Site (W3C Fetch
    Metadata). Clients that are not browsers send neither.
    """
    if method in SAFE_METHODS:
        return
    given = headers.getlist("origin")
    foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    own = not foreign and all(own_origin(origin, headers.get("host", "")) for origin in given)
    if not own and not (given and all(origin_allowed(origin, origins) for origin in given)):
        raise Refusal("forbidden", "origin_not_allowed", FOREIGN)


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


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
