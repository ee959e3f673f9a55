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
        self._on_leave: Callable[[], None] | None = None
        self._on_doubt: Callable[[], object] | None = None

    def watch(self, on_leave: Callable[[], None], on_doubt: Callable[[], object] | None = None) -> None:
        """Call `on_leave` once the client leaves; at once, if it has. on_doubt: see the function `watch`."""
        self._listen()
        self._on_leave, self._on_doubt = on_leave, on_doubt
        if self._left:
            on_leave()

    def forget(self) -> None:
        """Call neither from now on."""
        self._on_leave = self._on_doubt = None

    def doubted(self) -> None:
        """The protocol says that the client may have left."""
        if self._on_doubt is not None:
            self._on_doubt()

    def happened(self) -> None:
        """The protocol says that the client has left."""
        self._left = True
        if self._on_leave is not None:
            self._on_leave()


def watch(
    http: Request, on_leave: Callable[[], None], on_doubt: Callable[[], object] | None = None
) -> Callable[[], object]:
    """Call `on_leave` when the client of a request whose body has been read leaves. Returns what ends the watch.

    on_doubt: called when the client sends nothing more within its answer. It waits for the rest, or has left: only a
    further part of the answer shows which.
    """
    departure: Departure | None = http.scope.get(DEPARTURE)
    if departure is None:
        return asyncio.get_running_loop().create_task(_wait(http, on_leave)).cancel
    departure.watch(on_leave, on_doubt)
    return departure.forget


async def _wait(http: Request, on_leave: Callable[[], None]) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        continue
    on_leave()
