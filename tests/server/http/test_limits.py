"""Heads without end, upgrades, tiny chunks, nonsense and silence, against uvicorn with our protocol."""

import asyncio
import http.client
import json
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from server.http.access import Access
from server.http.errors import ApiError, error_response
from server.http.limits import LINGER_BYTES, MAX_HEAD_BYTES, BoundedHttp
from server.http.metrics import Metrics
from server.http.request_record import record_of

Scene = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADES = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
    b"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n",
]
MAX_BODY = 100_000
LARGE = bytes(20_000_000)  # an answer that no socket buffer takes whole


async def length_of_body(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes in the body, /early before it has come; 413 above MAX_BODY on /small."""
    count, more, status = 0, scope["path"] != "/early", 200
    try:
        while more:
            message = await receive()
            count += len(message.get("body", b""))
            more = message.get("more_body", False)
            if scope["path"] == "/small" and count > MAX_BODY:
                raise ApiError(413, "too large", code="body_too_large", headers={"Connection": "close"})
    except ApiError as error:
        record_of(scope).code = error.code
        await error_response(error)(scope, receive, send)
        return
    text = LARGE if scope["path"] == "/large" else str(count).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


class Hasty(BoundedHttp):
    head_s = write_s = linger_s = 0.05


def play(scene: Scene, protocol: type[BoundedHttp] = BoundedHttp, keep_alive_s: int = 5) -> Counter[str]:
    """Returns the count of answers by status."""
    metrics = Metrics(["tiny"], ["/"])

    async def run() -> None:
        app: Any = Access(length_of_body, metrics)
        config = uvicorn.Config(
            app, http=protocol, lifespan="off", log_level="critical", timeout_keep_alive=keep_alive_s
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
    families = text_string_to_metric_families(metrics.render("")[0].decode())
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


def test_header_lines_without_end_are_refused():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"X-A: " + b"a" * MAX_HEAD_BYTES)
        assert await refusal(reader) == (431, "headers_too_large")

    async def complete(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"X-A: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n")
        assert await refusal(reader) == (431, "headers_too_large")

    assert play(scene) == play(complete) == {"431": 1}


def test_one_header_that_never_ends_is_cut():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        assert await flood(writer, b"a" * 65_536) < 4 * LINGER_BYTES

    play(scene)


def test_trailers_without_end_are_refused_and_cut():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + CHUNKED + b"2\r\nab\r\n0\r\n")
        writer.write((b"X-T: " + b"a" * 4_096 + b"\r\n") * 20)
        assert await refusal(reader) == (431, "headers_too_large")
        assert await flood(writer, b"a" * 65_536) < 4 * LINGER_BYTES

    assert play(scene) == {"431": 1}


def test_a_head_that_does_not_come_is_not_waited_for():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""  # nothing was sent

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        assert await reader.read() == b""

    play(scene, Hasty)
    play(half, Hasty)


@pytest.mark.parametrize("rest", [b"", b"\r\n", HEAD])
def test_after_an_answer_every_silence_ends(rest: bytes):
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n")
        assert await answer(reader) == (200, b"0")
        writer.write(rest)
        assert await reader.read() == b""

    play(scene, Hasty, keep_alive_s=1)


@pytest.mark.parametrize("sent", [0, 1])
def test_a_body_that_does_not_come_after_its_answer_is_not_waited_for(sent: int):
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"/ ", b"/early ") + b"Content-Length: 1000000000\r\n\r\n")
        assert await answer(reader) == (200, b"0")
        writer.write(b"a" * sent)
        assert await reader.read() == b""

    play(scene, Hasty)


def test_a_body_that_comes_after_its_answer_is_skipped():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"/ ", b"/early ") + b"Content-Length: 3\r\n\r\n")
        assert await answer(reader) == (200, b"0")
        writer.write(b"GET" + HEAD + b"\r\n")
        assert await answer(reader) == (200, b"0")

    assert play(scene) == {"200": 2}


@pytest.mark.parametrize("half_closed", [False, True])
def test_an_answer_that_nobody_reads_is_given_up(half_closed: bool):
    lost = asyncio.Event()

    class Watched(Hasty):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"/ ", b"/large ") + b"\r\n")
        if half_closed:
            await reader.readuntil(b"\r\n\r\n")
            writer.write_eof()
        await lost.wait()

    play(scene, Watched)


def test_an_answer_that_is_read_slowly_is_not_given_up():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"/ ", b"/large ") + b"\r\n")
        assert await answer(reader) == (200, LARGE)

    play(scene, type("Slow", (BoundedHttp,), {"write_s": 0.2}))


def test_large_bodies_and_many_requests_on_one_connection_pass():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        large = 5 * MAX_HEAD_BYTES
        for _ in range(3):
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % large + b"b" * large)
            assert await answer(reader) == (200, str(large).encode())
        chunk = b"1000\r\n" + b"c" * 4_096 + b"\r\n"
        writer.write(HEAD + CHUNKED + chunk * 80 + b"0\r\n\r\n")
        assert await answer(reader) == (200, str(80 * 4_096).encode())
        filler = b"X-A: " + b"a" * (MAX_HEAD_BYTES // 2) + b"\r\n"
        for _ in range(4):
            writer.write(HEAD + filler + b"Content-Length: 1\r\n\r\nd")
            assert await answer(reader) == (200, b"1")

    play(scene)
    play(scene, type("Patient", (BoundedHttp,), {"head_s": 30.0}))


def test_a_body_in_chunks_of_one_byte_is_read():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(HEAD + CHUNKED + b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n")
            assert await answer(reader) == (200, b"40000")

    play(scene)


def test_chunk_extensions_without_end_are_refused():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + CHUNKED + (b"1;a=" + b"b" * 1_000 + b"\r\na\r\n") * 100)
        assert await refusal(reader) == (431, "headers_too_large")

    assert play(scene) == {"431": 1}


@pytest.mark.parametrize("chunked", [False, True])
def test_pythons_http_client_reads_a_413_though_it_sends_all_of_its_body(chunked: bool):
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def ask() -> int:
            connection = http.client.HTTPConnection(*writer.get_extra_info("peername"), timeout=20)
            body: Any = [b"a" * 10_000] * 2_000 if chunked else b"a" * 20_000_000
            connection.request("POST", "/small", body, encode_chunked=chunked, headers=(
                {"Transfer-Encoding": "chunked"} if chunked else {}
            ))  # fmt: skip
            response = connection.getresponse()
            assert json.loads(response.read())["error"]["code"] == "body_too_large"
            connection.close()
            return response.status

        for _ in range(5):
            assert await asyncio.to_thread(ask) == 413

    play(scene)


@pytest.mark.parametrize("offer", UPGRADES)
@pytest.mark.parametrize("pieces", [1, 2, 1_000], ids=["one segment", "head and body", "single bytes"])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offered_upgrade_changes_nothing(offer: bytes, pieces: int, chunked: bool):
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    framed = CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)
    if not chunked:
        framed = b"Content-Length: %d\r\n\r\n%s" % (len(hidden), hidden)
    head, body = framed.split(b"\r\n\r\n", 1)
    message = HEAD + offer + head + b"\r\n\r\n"
    behind = HEAD + offer + b"\r\n" + HEAD + b"Content-Length: 1\r\n\r\nx"

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = {1: [message + body + behind], 2: [message, body + behind]}.get(pieces)
        for part in parts or [bytes([byte]) for byte in message + body + behind]:
            writer.write(part)
            await asyncio.sleep(0)
        writer.write(HEAD + b"Connection: close\r\n\r\n")
        found = [await answer(reader) for _ in range(4)]
        assert found == [(200, str(len(hidden)).encode()), (200, b"0"), (200, b"1"), (200, b"0")]
        assert await reader.read() == b""

    assert play(scene) == {"200": 4}


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nNo colon\r\n\r\n", 400, "malformed_http"),
        (b"\x16\x03\x01\x02\x00", 400, "malformed_http"),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_http"),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + HEAD + b"\r\n", 405, "method_not_allowed"),
        (HEAD + CHUNKED + b"zz\r\n", 400, "malformed_http"),
        (HEAD + CHUNKED + b"2\r\nabcd\r\n", 400, "malformed_http"),
        (HEAD + UPGRADES[0] + CHUNKED + b"zz\r\n", 400, "malformed_http"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na", 400, "malformed_http"),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_http"),
        (b"GET \xff HTTP/1.1\r\n\r\n", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n", 400, "malformed_http"),
    ],
)
def test_what_cannot_be_parsed_gets_one_answer_in_our_shape_and_is_counted(
    sent: bytes, status: int, code: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "fewstep.access")

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        assert await refusal(reader) == (status, code)

    async def behind_another(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Content-Length: 1\r\n\r\na" + sent)
        assert await answer(reader) == (200, b"1")
        assert await refusal(reader) == (status, code)

    assert play(scene) == {str(status): 1}
    assert f"code={code}" in caplog.text
    assert play(behind_another) == {"200": 1, str(status): 1}
