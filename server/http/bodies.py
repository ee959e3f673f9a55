"""How many bytes of request bodies an HTTP process holds at once, over all connections and for one address."""

from collections import Counter
from ipaddress import IPv6Address, ip_network

from starlette.types import Message, Receive

from server.scheduler.refusal import Refusal

AT_ONCE = 32  # bodies of the largest size
UNCOUNTED_BYTES = 65_536  # of each body: requests without pictures pass while those with pictures are refused
IPV6_SITE_BITS = 64  # one client has at least this network (RFC 6177), and may use any address of it


class Bodies:
    """A count of the bytes of all bodies that are being read or answered, and its limits.

    Without it a client with many connections, each in the middle of its body, would decide how much memory is taken:
    a body is read before its request can be admitted or refused. Without the share, it would keep all others out.
    """

    def __init__(self, most_bytes: int, share: float = 1.0) -> None:
        """share: of most_bytes, what one address may hold, in (0, 1]."""
        self.most_bytes = most_bytes
        self.share = share
        self.held = 0
        self.held_by: Counter[str] = Counter()  # bytes by `holder`; without those that hold nothing

    def counted(self, receive: Receive, address: str = "") -> "Body":
        """receive: ASGI's, of one request. address: of its client."""
        return Body(self, receive, address)

    def add(self, holder: str, size: int) -> None:
        """Count `size` bytes more, or fewer where it is negative."""
        self.held += size
        self.held_by[holder] += size
        if not self.held_by[holder]:
            del self.held_by[holder]

    def check(self, holder: str) -> None:
        """Raises Refusal "full" where more is held than there is room for."""
        own_bytes = int(self.share * self.most_bytes)
        if self.held_by[holder] > own_bytes:
            whose, most = "from your address", own_bytes
        elif self.held > self.most_bytes:
            whose, most = "of all requests", self.most_bytes
        else:
            return
        message = f"the bodies {whose} together have more than {most} bytes; try again in 1 s, or save pictures smaller"
        raise Refusal("full", "bodies_full", message, retry_after_s=1)


class Body:
    """The body of one request. Pass `receive` on in place of ASGI's, and call `release` when the request has ended."""

    def __init__(self, bodies: Bodies, receive: Receive, address: str) -> None:
        self._bodies = bodies
        self._receive = receive
        self._address = address
        self._holder = ""  # once bytes are counted
        self._size = 0

    async def receive(self) -> Message:
        """Raises Refusal "full" when there is no room for what has come."""
        message = await self._receive()
        if content := message.get("body"):
            self._add(len(content))
        return message

    def _add(self, size: int) -> None:
        before = self._counted()
        self._size += size
        if added := self._counted() - before:
            self._holder = self._holder or holder(self._address)
            self._bodies.add(self._holder, added)
            self._bodies.check(self._holder)

    def _counted(self) -> int:
        return max(0, self._size - UNCOUNTED_BYTES)

    def release(self) -> None:
        """The body is not held any more."""
        if counted := self._counted():
            self._bodies.add(self._holder, -counted)
        self._size = 0


def holder(address: str) -> str:
    """Who shares the room of this address: the address itself, or its network of 2^64 IPv6 addresses."""
    try:
        number = IPv6Address(address)
    except ValueError:
        return address
    return str(number.ipv4_mapped or ip_network((int(number), IPV6_SITE_BITS), strict=False))
