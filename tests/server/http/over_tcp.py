"""uvicorn with our protocol around all routes and a few more, and a client that writes bytes."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import Response

from server.http.limits import LINGER_BYTES, BoundedHttp
from server.http.routes import Route
from server.http.service import read_body
from tests.server.in_process import Site

Scene = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


HEAD = b"POST /length HTTP/1.1\r\nHost: localhost\r\n"


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


MAX_BODY = 100_000


LARGE = bytes(20_000_000)  # an answer that no socket buffer takes whole


async def length(http: Request) -> Response:
    """The number of bytes in the body."""
    return Response(str(len(await read_body(http, 2**30, 60))))


async def small(http: Request) -> Response:
    """The same, of at most MAX_BODY."""
    return Response(str(len(await read_body(http, MAX_BODY, 60))))


async def early(http: Request) -> Response:
    """Before the body has come."""
    return Response("0")


async def large(http: Request) -> Response:
    return Response(LARGE)


ROUTES = [Route(f"/{answer.__name__}", "POST", answer, "") for answer in (length, small, early, large)]


def play(
    scene: Scene, protocol: type[BoundedHttp] = BoundedHttp, keep_alive_s: int = 5, more: Sequence[Route] = ()
) -> Counter[str]:
    """Returns the count of answers by status."""
    site = Site(more=[*ROUTES, *more])

    async def run() -> None:
        config = uvicorn.Config(
            site.app,  # pyright: ignore[reportArgumentType]
            http=protocol,
            lifespan="off",
            log_level="critical",
            timeout_keep_alive=keep_alive_s,
            timeout_graceful_shutdown=1,
        )
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
    families = text_string_to_metric_families(site.metrics.render("")[0].decode())
    counts: Counter[str] = Counter()
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == "fewstep_http_requests_total":
            counts[sample.labels["status"]] += int(sample.value)
    return counts


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length"))
    return int(head.split()[1]), await reader.readexactly(length)


async def refusal(reader: asyncio.StreamReader) -> tuple[int, str]:
    """The last answer on a connection."""
    status, body = await answer(reader)
    assert await reader.read() == b""
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return status, error["code"]


async def flood(writer: asyncio.StreamWriter, piece: bytes) -> int:
    """Send pieces until the other side has had enough, or four times what it reads away."""
    sent = 0
    try:
        while sent < 4 * LINGER_BYTES:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
    except ConnectionError:
        pass
    return sent
