"""uvicorn's HTTP protocol, with a bound on what comes around a body, and on how long a head may take.

uvicorn 0.54 with httptools takes header lines without end, and waits for them without end.
"""

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
HEAD_S = 10.0

BODY = json.dumps(
    {
        "error": {
            "message": f"the headers are larger than {MAX_HEAD_BYTES} bytes; a request needs only a few",
            "type": "invalid_request_error",
            "param": None,
            "code": "headers_too_large",
        }
    }
).encode()
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    head_s = HEAD_S
    around = 0  # bytes of the present message that were not its body: its head, chunk sizes, trailers
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.around += len(data)
        super().data_received(data)
        if self.around > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self._idle():
                self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start()

    def on_headers_complete(self) -> None:
        self._stop()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.around -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.around = 0
        super().on_message_complete()

    def _start(self) -> None:
        self._stop()
        self.timer = self.loop.call_later(self.head_s, self._expire)

    def _expire(self) -> None:
        """Give up on the head, unless the answer to an earlier request on this connection is still being made."""
        if self._idle():
            self.transport.close()
        else:
            self._start()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
