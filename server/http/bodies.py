"""How many bytes of request bodies an HTTP process holds at once, over all connections."""

from starlette.types import Message, Receive

from server.scheduler.refusal import Refusal

AT_ONCE = 32  # bodies of the largest size
UNCOUNTED_BYTES = 65_536  # of each body: requests without pictures pass while those with pictures are refused


class Bodies:
    """A count of the bytes of all bodies that are being read or answered, and its limit.

    Without it a client with many connections, each in the middle of its body, would decide how much memory is taken:
    a body is read before its request can be admitted or refused.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held = 0

    def counted(self, receive: Receive) -> "Body":
        """receive: ASGI's, of one request."""
        return Body(self, receive)


class Body:
    """The body of one request. Pass `receive` on in place of ASGI's, and call `release` when the request has ended."""

    def __init__(self, bodies: Bodies, receive: Receive) -> None:
        self._bodies = bodies
        self._receive = receive
        self._size = 0

    async def receive(self) -> Message:
        """Raises Refusal "full" when there is no room for what has come."""
        message = await self._receive()
        if content := message.get("body"):
            self._add(len(content))
        return message

    def _add(self, size: int) -> None:
        bodies, before = self._bodies, self._counted()
        self._size += size
        bodies.held += self._counted() - before
        if bodies.held > bodies.most_bytes:
            message = (
                f"the bodies of all requests together have more than {bodies.most_bytes} bytes; "
                "try again in 1 s, or save pictures smaller"
            )
            raise Refusal("full", "bodies_full", message, retry_after_s=1)

    def _counted(self) -> int:
        return max(0, self._size - UNCOUNTED_BYTES)

    def release(self) -> None:
        """The body is not held any more."""
        self._bodies.held -= self._counted()
        self._size = 0
