"""A raw keep-alive HTTP/1.1 client on asyncio, little more than a socket: it must not disturb what it measures."""

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CONNECTIONS = 4096  # open at once, at most
PORTS = {"http": 80, "https": 443}
GENERATE = "/v1/generate"


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    done_s: float  # perf_counter when its last byte was read


class Connection(asyncio.Protocol):
    """One connection, one request at a time. `Pool` makes it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiter: asyncio.Future[Answer] | None = None
        self.buffer = b""
        self.open = False
        self.placed_s = 0.0  # perf_counter when the pool had a place for it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._take(ended=False)

    def _take(self, ended: bool) -> None:
        try:
            answer, self.buffer = take_answer(self.buffer, ended)
        except ValueError as error:
            self._fail(ConnectionError(str(error)))
            return
        if answer is not None:
            waiter, self.waiter = self.waiter, None
            self.open = self.open and answer.headers.get("connection", "").lower() != "close"
            if waiter is not None and not waiter.done():
                waiter.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiter is not None and self.buffer:
            self._take(ended=True)
        self._fail(ConnectionError("the server closed the connection without an answer"))

    def send(self, payload: bytes) -> "asyncio.Future[Answer]":
        """Write the request now; the future ends in the answer or a ConnectionError."""
        assert self.transport is not None and self.waiter is None, "one request at a time"
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(payload)
        return self.waiter

    def abort(self) -> None:
        """Leave without a word, as a closed browser tab does."""
        self.open = False
        if self.transport is not None:
            self.transport.abort()

    def _fail(self, error: ConnectionError) -> None:
        self.abort()
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


class Pool:
    """Keep-alive connections to one server: an idle one if there is any, else another."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.scheme in PORTS and parts.hostname, f"{url} is not of http or https with a host"
        self.host, self.port = parts.hostname, parts.port or PORTS[parts.scheme]
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.idle: list[Connection] = []
        self.gate = asyncio.Semaphore(CONNECTIONS)

    async def take(self) -> Connection:
        """An open connection; `give` it back. Raises OSError when the server cannot be reached."""
        await self.gate.acquire()
        placed_s = time.perf_counter()
        connection = self._idle()
        if connection is None:
            try:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, self.host, self.port, ssl=self.tls)
            except BaseException:
                self.gate.release()
                raise
        connection.placed_s = placed_s
        return connection

    def _idle(self) -> Connection | None:
        while self.idle:
            connection = self.idle.pop()
            if connection.open:
                return connection
        return None

    def give(self, connection: Connection) -> None:
        """The connection is free for the next request; one that still waits for an answer is closed instead."""
        if connection.open and connection.waiter is None:
            self.idle.append(connection)
        else:
            connection.abort()
        self.gate.release()

    async def fetch(self, payload: bytes, timeout_s: float = 60.0) -> Answer:
        """One request. Raises TimeoutError, ConnectionError or another OSError."""
        connection = await self.take()
        try:
            return await asyncio.wait_for(connection.send(payload), timeout_s)
        finally:
            self.give(connection)

    def close(self) -> None:
        for connection in self.idle:
            connection.abort()
        self.idle.clear()


def request(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, host: str = "127.0.0.1"
) -> bytes:
    """The bytes of a request. host: as the header Host has it."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def generate(fields: Mapping[str, Any]) -> bytes:
    """The bytes of POST /v1/generate."""
    return request("POST", GENERATE, json.dumps(fields).encode(), {"Content-Type": "application/json"})


def take_answer(buffer: bytes, ended: bool = False) -> tuple[Answer | None, bytes]:
    """The first response in the bytes, if it is whole, and what is left. Raises ValueError on what is not HTTP/1.

    ended: no more bytes come, which is the end of a body without a length (RFC 9112, 6.3).
    """
    head, found, rest = buffer.partition(b"\r\n\r\n")
    if not found:
        return None, buffer
    status_line, *lines = head.decode("latin-1").split("\r\n")
    version, _, status = status_line.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or not status[:3].isdecimal():
        raise ValueError(f"the server answered {status_line[:60]!r}, which is not HTTP/1.1")
    if status[0] == "1":  # of 100 Continue and 103 Early Hints; the answer follows
        return take_answer(rest, ended)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if version == "HTTP/1.0" and headers.get("connection", "").lower() != "keep-alive":
        headers["connection"] = "close"
    if headers.get("transfer-encoding", "").lower() == "chunked":
        taken = take_chunks(rest)
    elif "content-length" in headers:
        length = int(headers["content-length"])
        taken = (rest[:length], rest[length:]) if len(rest) >= length else None
    elif headers.get("connection", "").lower() == "close":
        taken = (rest, b"") if ended else None
    else:
        raise ValueError("the server answered without the length of its body, on a connection that stays open")
    if taken is None:
        return None, buffer
    return Answer(int(status[:3]), headers, taken[0], time.perf_counter()), taken[1]


def take_chunks(data: bytes) -> tuple[bytes, bytes] | None:
    """A chunked body (RFC 9112, 7.1) and what is left behind it; None while it is not whole. Raises ValueError."""
    body, at = [], 0
    while (end := data.find(b"\r\n", at)) >= 0:
        try:
            size = int(data[at:end].partition(b";")[0], 16)
        except ValueError as error:
            raise ValueError(f"the server sent {data[at : at + 20]!r} where a chunk has its size") from error
        at = end + 2 + size + 2
        if size == 0:
            if data[end : end + 4] == b"\r\n\r\n":
                return b"".join(body), data[end + 4 :]
            last = data.find(b"\r\n\r\n", end)  # behind fields of a trailer, which say nothing here
            return (b"".join(body), data[last + 4 :]) if last >= 0 else None
        if at > len(data):
            return None
        body.append(data[end + 2 : end + 2 + size])
    return None


def error_code(answer: Answer) -> str:
    """The `code` of an error answer, or an empty string."""
    try:
        return str(json.loads(answer.body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""
