"""What the HTTP process that asked sees of one request: its events, in order."""

import asyncio
from collections import deque
from collections.abc import Callable

from server.scheduler.events import Event, is_last


class PoolStream:
    """The events of one request, for one consumer on the event loop; used like server.scheduler.local.EventStream."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    def put(self, event: Event) -> None:
        """On the event loop."""
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cancel(self) -> None:
        """Give up: the iteration ends, and the request's slots become free before the next network call."""
        self._ended = True
        self._cancel()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def pending(self) -> bool:
        """Whether the next event has come already."""
        return bool(self._events) and not self._ended

    def __aiter__(self) -> "PoolStream":
        return self

    async def __anext__(self) -> Event:
        while not self._ended:
            if self._events:
                event = self._events.popleft()
                self._ended = is_last(event)
                return event
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        raise StopAsyncIteration
