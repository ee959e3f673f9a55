"""A raw keep-alive HTTP/1.1 client on asyncio, little more than a socket: it must not disturb what it measures."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CONNECTIONS = 4096  # open at once, at most
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        try:
            answer, self.buffer = take_answer(self.buffer)
        except ValueError as error:
            self._fail(ConnectionError(str(error)))
            return
        if answer is not None:
            waiter, self.waiter = self.waiter, None
            self.open = self.open and answer.headers.get("connection", "").lower() != "close"
            if waiter is not None and not waiter.done():
                waiter.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
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
        assert parts.hostname and parts.port, f"{url} names no host and port"
        self.host, self.port = parts.hostname, parts.port
        self.idle: list[Connection] = []
        self.gate = asyncio.Semaphore(CONNECTIONS)

    async def take(self) -> Connection:
        """An open connection; `give` it back. Raises OSError when the server cannot be reached."""
        await self.gate.acquire()
        while self.idle:
            connection = self.idle.pop()
            if connection.open:
                return connection
        try:
            loop = asyncio.get_running_loop()
            return (await loop.create_connection(Connection, self.host, self.port))[1]
        except BaseException:
            self.gate.release()
            raise

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


def request(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def generate(fields: Mapping[str, Any]) -> bytes:
    """The bytes of POST /v1/generate."""
    return request("POST", GENERATE, json.dumps(fields).encode(), {"Content-Type": "application/json"})


def take_answer(buffer: bytes) -> tuple[Answer | None, bytes]:
    """The first response in the bytes, if it is whole, and what is left. Raises ValueError on what is not HTTP/1.1."""
    head, found, rest = buffer.partition(b"\r\n\r\n")
    if not found:
        return None, buffer
    status_line, *lines = head.decode("latin-1").split("\r\n")
    version, _, status = status_line.partition(" ")
    if version != "HTTP/1.1" or not status[:3].isdecimal():
        raise ValueError(f"the server answered {status_line[:60]!r}, which is not HTTP/1.1")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    closing = headers.get("connection", "").lower() == "close"
    if "content-length" not in headers and not closing:
        raise ValueError("the server answered without Content-Length; this client reads no other kind of body")
    length = int(headers.get("content-length", 0))  # a body that ends with the connection does not interest anybody
    if len(rest) < length:
        return None, buffer
    return Answer(int(status[:3]), headers, rest[:length], time.perf_counter()), rest[length:]


def error_code(answer: Answer) -> str:
    """The `code` of an error answer, or an empty string."""
    try:
        return str(json.loads(answer.body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""
