"""Connections that send heads without end, or none, against uvicorn with our protocol."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from server.http_protocol import MAX_HEAD_BYTES, BoundedHttp

Scene = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"


async def length_of_body(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes in the body."""
    count, more = 0, True
    while more:
        message = await receive()
        count += len(message.get("body", b""))
        more = message.get("more_body", False)
    text = str(count).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


class Hasty(BoundedHttp):
    head_s = 0.05


def play(scene: Scene, protocol: type[BoundedHttp] = BoundedHttp) -> None:
    async def run() -> None:
        config = uvicorn.Config(length_of_body, http=protocol, lifespan="off", log_level="critical")
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup([listener])
        try:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await asyncio.wait_for(scene(reader, writer), 30)
            writer.close()
        finally:
            await server.shutdown([listener])

    asyncio.run(run())


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length"))
    return int(head.split()[1]), await reader.readexactly(length)


async def flood(writer: asyncio.StreamWriter, piece: bytes) -> int:
    """Send pieces until the other side has had enough, or a hundred times what it should take."""
    sent = 0
    try:
        while sent < 100 * MAX_HEAD_BYTES:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
    except ConnectionError:
        pass
    return sent


def test_header_lines_without_end_are_refused():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"X-A: " + b"a" * MAX_HEAD_BYTES)
        status, body = await answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")
        assert await reader.read() == b""

    play(scene)


def test_one_header_that_never_ends_is_cut():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        assert await flood(writer, b"a" * 4_096) < 100 * MAX_HEAD_BYTES

    play(scene)


def test_trailers_without_end_are_cut():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n")
        assert await flood(writer, b"X-T: " + b"a" * 4_096 + b"\r\n") < 100 * MAX_HEAD_BYTES

    play(scene)


def test_a_head_that_does_not_come_is_not_waited_for():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""  # nothing was sent

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        assert await reader.read() == b""

    play(scene, Hasty)
    play(half, Hasty)


def test_large_bodies_and_many_requests_on_one_connection_pass():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        large = 5 * MAX_HEAD_BYTES
        for _ in range(3):
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % large + b"b" * large)
            assert await answer(reader) == (200, str(large).encode())
        chunk = b"1000\r\n" + b"c" * 4_096 + b"\r\n"
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 80 + b"0\r\n\r\n")
        assert await answer(reader) == (200, str(80 * 4_096).encode())
        filler = b"X-A: " + b"a" * (MAX_HEAD_BYTES // 2) + b"\r\n"
        for _ in range(4):
            writer.write(HEAD + filler + b"Content-Length: 1\r\n\r\nd")
            assert await answer(reader) == (200, b"1")

    play(scene)
    play(scene, type("Patient", (BoundedHttp,), {"head_s": 30.0}))
