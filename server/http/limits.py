"""uvicorn's HTTP protocol, made safe against clients that send or read slowly, too much, or nonsense.

uvicorn 0.54 with httptools takes head lines without end and waits for them without end, loses the body of a request
that offers an upgrade, resets a connection whose body is not read, answers what it cannot parse by itself, and
sends chunks to HTTP/1.0.
Here each of these requests gets one answer from the app, and every state of a connection has a timer:

    no head yet, or a head in pieces          HEAD_S from its beginning
    between two requests                      uvicorn's keep-alive time, whatever blank lines arrive
    body after its answer was sent            HEAD_S and LINGER_BYTES
    body before its answer, images being made the app's own limits (server.http.dialects.native, server.http.app)
    half closed, images being made            as before; a client that has left is found within LAST_CHECK_S
    half closed, answer being sent            as before; one that has left is found so after the next part of the
                                              answer, which a stream of events sends at once
    answer that the client does not read      WRITE_S, again and again while MIN_READ_BYTES were read in it
    after its last answer                     LINGER_S and LINGER_BYTES to read the rest away, so that it is not reset

Requests that come before earlier ones are answered wait unparsed, but for those of one piece; uvicorn would parse what
a connection sends without end.
"""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.http.access import COMPLETE, REFUSED, REFUSED_AT
from server.http.departure import DEPARTURE, Departure
from server.scheduler.refusal import Refusal

MAX_HEAD_BYTES = 65_536  # of a head, or of everything in a chunked body that is not its content
CHUNK_BYTES = 8  # framing allowed for each byte of content: chunks of one byte need five
PIECE_BYTES = 4_096  # that are parsed at once: a hundred requests
HEAD_S = 10.0
WRITE_S = 30.0
MIN_READ_BYTES = 32_768
LINGER_S = 2.0
LINGER_BYTES = 32 * 2**20

TOO_LARGE = Refusal(
    "head_too_large",
    "headers_too_large",
    f"the headers are larger than {MAX_HEAD_BYTES} bytes, or the chunks of the body are too small; "
    "a request needs a few short headers only",
)
MALFORMED = Refusal("malformed", "malformed_http", "the request is not valid HTTP; it could not be read")
NO_PROXY = Refusal("method", "method_not_allowed", "CONNECT is not served: this server is no proxy")
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
FIRST_CHECK_S, LAST_CHECK_S = 0.001, 0.1  # whether a client has left: the reset comes after a round trip
TCP_CLOSE = 7  # state of a connection that was reset (Linux, net/tcp_states.h)
FINAL = tuple(b"HTTP/1.1 %d" % digit for digit in range(2, 6))  # how the head of an answer begins, unlike 100 Continue
FRAMING = (b"content-length", b"transfer-encoding")  # the headers that say where a body ends


class _TooLargeError(Exception):
    """A head that is complete and too large."""


class _Transport:
    """The connection as uvicorn sees it: closing is left to the protocol, and a head is sent with its body.

    uvicorn writes them one after the other: two packets, and a client that is woken twice.
    """

    def __init__(self, transport: asyncio.Transport, protocol: "BoundedHttp") -> None:
        self._transport = transport
        self._protocol = protocol
        self._head = b""  # of an answer whose body has not been written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(FINAL):
            self._head = data
            self._protocol.loop.call_soon(self.flush)  # where no body follows, or not at once
        else:
            self._transport.write(data)

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._protocol.close()

    def is_closing(self) -> bool:
        return self._protocol.lingering or self._transport.is_closing()


def _without_chunks(cycle: RequestResponseCycle, plain: Callable[[Any], Awaitable[None]]) -> Callable[..., Any]:
    """What the app calls to answer HTTP/1.0, which has no chunks (RFC 9112, section 6.1): an answer that does not say
    its length ends with its connection. uvicorn sends chunks, or as many bytes as the head announced."""

    open_ended = False

    async def send(message: Any) -> None:
        nonlocal open_ended
        if message["type"] == "http.response.start":
            open_ended = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            if open_ended:
                cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
        elif open_ended and not message.get("more_body", False):
            cycle.expected_content_length = len(message.get("body", b""))  # the last ones
        await plain(message)

    return send


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    head_s = HEAD_S
    write_s = WRITE_S
    linger_s = LINGER_S
    raw: asyncio.Transport  # `transport` is this one in a _Transport
    wrapped: _Transport
    running: RequestResponseCycle | None = None  # whose answer is being made; `cycle` is the last one parsed
    url = b""  # of the present message, as far as it was read
    around = 0  # bytes of the present message that were not its body: its head, chunk sizes, trailers
    content = 0  # bytes of its body
    declared = 0  # bytes that its body is to have, where its head says so
    unparsed = b""  # what has come behind requests that wait for the answers to earlier ones
    reading = False  # whether a body is on its way
    resuming = False  # whether the parser is fed a head that was read before
    refused = False  # nothing more is parsed
    half_closed = False  # the client sends nothing more and waits for its answer
    lingering = False  # our side is closed; what still comes is read away
    broken: Refusal | None = None  # why the rest of the present body cannot be read
    unsent = 0  # bytes of answers that the client had not taken when `writing` began
    due_s: float | None = None  # on the event loop's clock, when the state of the connection has lasted too long
    timer: asyncio.TimerHandle | None = None  # comes at due_s or before it, and is set anew then
    writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.raw = transport
        self.wrapped = _Transport(transport, self)
        super().connection_made(self.wrapped)  # pyright: ignore[reportArgumentType]
        if self.client and "." in self.client[0]:  # an IPv4 client of a socket for both is named ::ffff:127.0.0.1
            self.client = (self.client[0].removeprefix("::ffff:"), self.client[1])
        self._start(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in {self.running, self.cycle}:
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True  # uvicorn tells only the last one
                cycle.message_event.set()
                if DEPARTURE in cycle.scope:
                    cycle.scope[DEPARTURE].happened()
        for timer in (self.timer, self.writing):
            if timer is not None:
                timer.cancel()

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The client sends nothing more. False: the transport closes when the rest of the answers has been read.

        A client that waits for an answer may only have closed its sending half, or it may have left: the two look the
        same until something is sent. A client that is there ignores an interim answer (RFC 9110, section 15.2), and
        the system of one that has left refuses it with a reset. HTTP/1.0 has no such answers: there it counts as gone.
        Within an answer, such as a stream of events, no other can be sent: there its next part provokes the reset, and
        `Departure.doubted` is called.
        """
        self._watch_reader()
        running = self.running
        if self._idle() or running is None:
            return False
        if self.reading and running is self.cycle and not self.refused:  # the rest of its body does not come
            return False
        if not running.response_started:
            if running.scope["http_version"] != "1.1":
                return False
            self.transport.write(INTERIM)
        self.half_closed = True
        self.cycle.keep_alive = False
        if running.response_started and DEPARTURE in running.scope:
            running.scope[DEPARTURE].doubted()
        self.loop.call_later(FIRST_CHECK_S, self._check_departure, FIRST_CHECK_S)
        return True

    def _check_departure(self, waited_s: float) -> None:
        """End the connection if its client has left; look again later while the answer is being made."""
        if self._idle() or self.raw.is_closing():
            return
        state = self.raw.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        if state[0] == TCP_CLOSE:
            self.raw.abort()
            return
        wait_s = min(2 * waited_s, LAST_CHECK_S)
        self.loop.call_later(wait_s, self._check_departure, wait_s)

    def data_received(self, data: bytes) -> None:
        if (self.unparsed or self.pipeline) and not (self.refused or self.lingering):
            self.unparsed += data
            self.flow.pause_reading()
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Piece by piece, until a request has to wait for the answer to an earlier one."""
        while data:
            if self.pipeline and not (self.refused or self.lingering):
                self.unparsed = data
                self.flow.pause_reading()
                return
            size = max(PIECE_BYTES, self.declared - self.content) if self.reading else PIECE_BYTES
            self._parse_piece(data[:size])
            data = data[size:]

    def _parse_piece(self, data: bytes) -> None:
        self.around += len(data)
        if self.refused or self.lingering:
            if self.around > LINGER_BYTES:
                self._finish()
            return
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(TOO_LARGE if isinstance(error.__context__, _TooLargeError) else MALFORMED)
        if self.around > MAX_HEAD_BYTES + CHUNK_BYTES * self.content:
            self._refuse(TOO_LARGE)
        if self.reading and self.content > LINGER_BYTES and self._idle():
            self._finish()

    def _feed(self, data: bytes) -> None:
        """Parse. The parser stops behind a head that offers an upgrade, and skips its body: another one goes on there.

        HTTP lets a server ignore the offer (RFC 9110, section 7.8); ours has no other protocol.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as pause:
                if self.refused:
                    return
                data = data[pause.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.resuming = True
                self.parser.feed_data(self._framing())
                self.resuming = False

    def _framing(self) -> bytes:
        """A head with the same body behind it as the last one, and without its offer."""
        lines = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name in FRAMING]
        options = b",".join(value for name, value in self.headers if name == b"connection").lower().split(b",")
        lines += [b"Connection: close\r\n"] if b"close" in map(bytes.strip, options) else []
        version = self.scope["http_version"].encode()
        return b"POST / HTTP/%s\r\n%s\r\n" % (version, b"".join(lines))

    def _should_upgrade(self) -> bool:
        return False

    def on_message_begin(self) -> None:
        if not self.resuming:
            super().on_message_begin()
            self._start(self.head_s)

    def on_url(self, url: bytes) -> None:
        if not self.resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.resuming and not self.reading:  # trailers are no headers (RFC 9110, section 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.resuming or self.refused:
            return
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            raise _TooLargeError
        if self.parser.get_method() == b"CONNECT":
            self._refuse(NO_PROXY)
            return
        scope: Any = self.scope
        scope[DEPARTURE] = Departure(self._listen)
        super().on_headers_complete()
        self.declared = int(dict(self.headers).get(b"content-length", 0))
        self.cycle.receive = self._receive(self.cycle, self.cycle.receive)
        if self.scope["http_version"] == "1.0":
            self.cycle.send = _without_chunks(self.cycle, self.cycle.send)
        self._stop()
        self.reading = True

    def _listen(self) -> None:
        if not self.unparsed:
            self.flow.resume_reading()

    def _receive(self, cycle: RequestResponseCycle, plain: Callable[[], Awaitable[Any]]) -> Callable[[], Any]:
        """What the app calls for a body; raises Refusal when the rest of it cannot be read."""

        async def receive() -> Any:
            message = await plain()
            if self.broken and cycle is self.cycle and not cycle.disconnected:
                raise self.broken.with_traceback(None)  # shared, and would keep every traceback
            return message

        return receive

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self.around -= len(body)
        self.content += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.refused or self.parser.should_upgrade():
            return
        super().on_message_complete()
        scope: Any = self.scope
        scope[COMPLETE] = True
        self.url, self.around, self.content, self.reading = b"", 0, 0, False
        if self._idle():
            self._start(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # ours goes on when a blank line arrives
        if self._idle() and not self.transport.is_closing():
            begun = self.reading or self.around > 0
            self._start(self.head_s if begun else self.timeout_keep_alive)
        self._go_on()

    def _go_on(self) -> None:
        """Parse what has waited for an answer; until it is parsed, nothing more is read."""
        if self.transport.is_closing():
            return
        if self.unparsed and not self.pipeline:
            data, self.unparsed = self.unparsed, b""
            self._parse(data)
        if self.unparsed or self.pipeline:
            self.flow.pause_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def shutdown(self) -> None:
        self._finish() if self._idle() else super().shutdown()

    def close(self) -> None:
        """Close behind an answer; what the client still sends is read away, since a reset could take the answer."""
        if self.lingering or self.half_closed or self.raw.is_closing():
            self._finish()
            return
        self.lingering, self.around = True, 0
        self._start(self.linger_s)
        self.flow.resume_reading()
        if self.raw.can_write_eof():
            with contextlib.suppress(OSError):
                self.raw.write_eof()

    def _refuse(self, error: Refusal) -> None:
        """Answer what cannot be parsed with an error, after the answers to earlier requests, and parse no more."""
        if self.refused or self.transport.is_closing():
            return
        self.refused, self.around = True, 0
        self._stop()
        if not self.reading:
            self._answer(error)
        elif self.cycle.response_complete:
            self.transport.close()
        else:
            self.broken = error
            self.cycle.keep_alive = False
            self.cycle.message_event.set()

    def _answer(self, error: Refusal) -> None:
        """Hand the app a request that was not understood; server.http.access answers it with the error."""
        path = self.url.partition(b"?")[0].decode("latin-1")
        super().on_message_begin()
        unknown = {"method": "-", "path": "", "raw_path": b"", "query_string": b"", "headers": []}
        scope: Any = {**self.scope, **unknown, REFUSED: error, REFUSED_AT: path}
        app: Any = self.app
        earlier = self.cycle
        self.cycle = RequestResponseCycle(
            scope=scope, transport=self.transport, flow=self.flow, logger=self.logger,
            access_logger=self.access_logger, access_log=self.access_log, message_event=asyncio.Event(),
            default_headers=self.server_state.default_headers, expect_100_continue=False, keep_alive=False,
            on_response=self.on_response_complete,
        )  # fmt: skip
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.pipeline.appendleft((self.cycle, app))

    def _finish(self) -> None:
        """Close for good, in a bounded time."""
        self._stop()
        self.wrapped.flush()
        self.raw.close()
        self._watch_reader()

    def _watch_reader(self) -> None:
        """Look after write_s whether the client has read something of its answers."""
        if self.writing is not None:
            self.writing.cancel()
        self.unsent = self.raw.get_write_buffer_size()
        self.writing = self.loop.call_later(self.write_s, self._check_reader) if self.unsent else None

    def _check_reader(self) -> None:
        if self.raw.get_write_buffer_size() > max(0, self.unsent - MIN_READ_BYTES):
            self.raw.abort()
        else:
            self._watch_reader()

    def _start(self, seconds: float) -> None:
        """Limit the state that begins now. A timer that comes earlier is kept: to set one takes as long as to parse."""
        self.due_s = self.loop.time() + seconds
        if self.timer is None or self.timer.when() > self.due_s:
            self._set_timer(self.due_s)

    def _set_timer(self, when_s: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_at(when_s, self._check_due)

    def _check_due(self) -> None:
        """Give up waiting, unless the answer to an earlier request on this connection is still being made."""
        self.timer = None
        if self.due_s is None:
            return
        if self.due_s > self.loop.time():
            self._set_timer(self.due_s)
        elif self._idle():
            self._finish()
        else:
            self._start(self.head_s)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop(self) -> None:
        self.due_s = None
