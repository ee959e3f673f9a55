"""Whether the client of a request has left.

ASGI tells it to whoever waits for `receive`, which takes a task per request: 6 % of an HTTP process's time. Our own
protocol, server.http.limits, calls back instead.
"""

import asyncio
from collections.abc import Callable

from starlette.requests import Request

DEPARTURE = "fewstep.departure"  # key of the ASGI scope: a Departure, where our own protocol serves the request


class Departure:
    """Of one request."""

    def __init__(self, listen: Callable[[], None]) -> None:
        """listen: reads on, since the end of a connection that is not read goes unnoticed."""
        self._listen = listen
        self._left = False
        self._tell: Callable[[], None] | None = None

    def watch(self, tell: Callable[[], None]) -> None:
        """Call `tell` once the client leaves; at once, if it has."""
        self._listen()
        self._tell = tell
        if self._left:
            tell()

    def forget(self) -> None:
        """Stop telling."""
        self._tell = None

    def happened(self) -> None:
        """The protocol says that the client has left."""
        self._left = True
        if self._tell is not None:
            self._tell()


def watch(http: Request, tell: Callable[[], None]) -> Callable[[], object]:
    """Call `tell` when the client of a request whose body has been read leaves. Returns what ends the watch."""
    departure: Departure | None = http.scope.get(DEPARTURE)
    if departure is None:
        return asyncio.get_running_loop().create_task(_wait(http, tell)).cancel
    departure.watch(tell)
    return departure.forget


async def _wait(http: Request, tell: Callable[[], None]) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        continue
    tell()
