"""W3C trace context (Trace Context, Level 1, 2021): which trace a request belongs to, and our own span in it."""

import random
import re
from dataclasses import dataclass

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
SAMPLED = 0x01  # the only flag of version 00; others are not passed on


@dataclass(frozen=True)
class Trace:
    """Where a request stands in its trace."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16, of this server's part
    parent_id: str | None  # the caller's span; None: the trace begins here
    sampled: bool

    @property
    def traceparent(self) -> str:
        """The header value that names our span as the parent."""
        return f"00-{self.trace_id}-{self.span_id}-{SAMPLED if self.sampled else 0:02x}"


def continued(traceparent: str | None) -> Trace:
    """Our span in the caller's trace; a header that is absent or malformed starts a trace of its own (section 4.3)."""
    match = TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
    if match is not None:
        version, trace_id, parent_id, flags, more = match.groups()
        if version != "ff" and int(trace_id, 16) and int(parent_id, 16) and not (version == "00" and more):
            return Trace(trace_id, new_id(64), parent_id, bool(int(flags, 16) & SAMPLED))
    return Trace(new_id(128), new_id(64), None, sampled=False)


def new_id(bits: int) -> str:
    """A random hexadecimal number that is not zero. Ids are no secrets, and the system's generator takes its time."""
    return f"{random.getrandbits(bits) or 1:0{bits // 4}x}"
