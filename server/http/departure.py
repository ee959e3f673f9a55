"""Whether the client of a request has left.

ASGI reports it only to a task that waits for `receive`, and a task per request takes 6 % of an HTTP process's time. Our
own protocol, server.http.limits, calls back instead.
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
        self._doubt: Callable[[], object] | None = None

    def watch(self, tell: Callable[[], None], doubt: Callable[[], object] | None = None) -> None:
        """Call `tell` once the client leaves; at once, if it has. doubt: see the function `watch`."""
        self._listen()
        self._tell, self._doubt = tell, doubt
        if self._left:
            tell()

    def forget(self) -> None:
        """Stop telling."""
        self._tell = self._doubt = None

    def doubted(self) -> None:
        """The protocol says that the client may have left."""
        if self._doubt is not None:
            self._doubt()

    def happened(self) -> None:
        """The protocol says that the client has left."""
        self._left = True
        if self._tell is not None:
            self._tell()


def watch(http: Request, tell: Callable[[], None], doubt: Callable[[], object] | None = None) -> Callable[[], object]:
    """Call `tell` when the client of a request whose body has been read leaves. Returns what ends the watch.

    doubt: called when the client sends nothing more within its answer. It waits for the rest, or has left: only a
    further part of the answer shows which.
    """
    departure: Departure | None = http.scope.get(DEPARTURE)
    if departure is None:
        return asyncio.get_running_loop().create_task(_wait(http, tell)).cancel
    departure.watch(tell, doubt)
    return departure.forget


async def _wait(http: Request, tell: Callable[[], None]) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        continue
    tell()
