"""Upgrades, nonsense, pipelines and errors: each request on a connection gets one answer, and none is lost."""

import asyncio
import http.client
import json
import logging
from typing import Any
from unittest import mock

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.http.departure import watch
from server.http.errors import CLIENT_GONE
from server.http.limits import INTERIM, MAX_HEAD_BYTES, BoundedHttp, _Transport
from server.http.routes import Route
from server.http.service import read_body
from tests.server.http.over_tcp import CHUNKED, HEAD, MAX_BODY, answer, play, refusal
from tests.server.in_process import until

UPGRADES = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
    b"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n",
]


@pytest.mark.parametrize("sent", [HEAD + b"Connection: close\r\n\r\n", HEAD.replace(b"1.1", b"1.0") + b"\r\n"])
def test_what_comes_behind_the_last_request_does_not_take_its_answer(sent: bytes):
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        for _ in range(100):  # the server has closed its side
            writer.write(HEAD + b"\r\n")
            await writer.drain()
        assert b"content-length: 1\r\n" in head and await reader.read() == b"0"

    assert play(scene) == {"200": 1}


def test_a_client_that_has_closed_its_sending_half_gets_its_answers():
    """An interim answer shows that it is there; the connection ends behind the last answer."""
    body = b"Content-Length: 2\r\n\r\nab"
    seen = asyncio.Event()

    async def made(http: Request) -> Response:
        await seen.wait()
        return Response(await http.body())

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + body + HEAD.replace(b"/length", b"/made") + body)
        writer.write_eof()
        assert await answer(reader) == (200, b"2")
        assert await reader.readuntil(b"\r\n\r\n") == INTERIM
        seen.set()
        assert await answer(reader) == (200, b"ab")
        assert await reader.read() == b""

    assert play(scene, more=[Route("/made", "POST", made, "")]) == {"200": 2}


class Stream(Response):
    """Three parts, each after one release of go. It watches for the client's departure as streams of images do.

    probes: it sends a part when its client may have left.
    """

    def __init__(
        self, http: Request, begun: asyncio.Event, go: asyncio.Semaphore, left: asyncio.Event, probes: bool
    ) -> None:
        super().__init__()
        self.http, self.begun, self.go, self.left, self.probes = http, begun, go, left, probes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        forget = watch(self.http, self.left.set, self.go.release if self.probes else None)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.begun.set()
        for part in (b"a", b"b", b"c"):
            await self.go.acquire()
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        forget()


def play_stream(behind: bytes, leave: bool, probes: bool = False) -> None:
    """A stream begins, and its client closes its sending half, or leaves. behind: what else the client has sent."""
    begun, left, ended, go = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Semaphore(0)

    class Watched(BoundedHttp):
        def eof_received(self) -> bool:
            ended.set()
            return super().eof_received()

    async def stream(http: Request) -> Response:
        await http.body()
        return Stream(http, begun, go, left, probes)

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"/length", b"/stream") + b"\r\n" + behind)
        await begun.wait()
        assert b"chunked" in await reader.readuntil(b"\r\n\r\n")
        writer.close() if leave else writer.write_eof()
        await ended.wait()
        if not probes:
            go.release()
        if leave:
            await left.wait()
        go.release()
        go.release()
        if not leave:
            assert await reader.readuntil(b"0\r\n\r\n") == b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"
            rest = await reader.read()
            assert rest.split()[1:2] == ([b"200"] if behind.startswith(HEAD) else [b"400"] if behind else [])

    play(scene, Watched, more=[Route("/stream", "POST", stream, "")])


@pytest.mark.parametrize(
    "behind", [b"", HEAD + b"\r\n", b"nonsense\r\n\r\n"], ids=["alone", "another request", "nonsense"]
)
def test_a_stream_goes_on_when_the_client_closes_its_sending_half(behind: bytes):
    """To its last chunk, without an interim answer within it; then come the answers to what was sent behind it."""
    play_stream(behind, leave=False)


def test_a_client_that_leaves_within_a_stream_is_found_after_the_next_part():
    play_stream(b"", leave=True)


@pytest.mark.parametrize("leave", [True, False])
def test_a_stream_is_told_when_its_client_may_have_left_so_that_it_sends_a_part(leave: bool):
    """One that has left is found by it, and one that has only closed its sending half gets the part."""
    play_stream(b"", leave, probes=True)


@pytest.mark.parametrize(("version", "half"), [(b"1.1", False), (b"1.0", False), (b"1.0", True)])
def test_a_client_that_leaves_or_cannot_read_interim_answers_counts_as_gone(version: bytes, half: bool):
    begun, left = asyncio.Event(), asyncio.Event()

    async def wait(http: Request) -> Response:
        begun.set()
        while (await http.receive())["type"] != "http.disconnect":
            pass
        left.set()
        raise ClientDisconnect

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"/length", b"/wait").replace(b"1.1", version) + b"\r\n")
        await begun.wait()
        writer.write_eof() if half else writer.close()
        await left.wait()

    assert play(scene, more=[Route("/wait", "POST", wait, "")]) == {"499": 1}


def test_the_head_of_an_answer_goes_with_its_body(monkeypatch: pytest.MonkeyPatch):
    """Also where the body is empty, or comes later."""
    written: list[bytes] = []
    plain = _Transport.__init__

    def watched(self: _Transport, transport: Any, protocol: BoundedHttp) -> None:
        plain(self, transport, protocol)
        self._transport = mock.Mock(wraps=transport)
        self._transport.write = lambda data: (written.append(data), transport.write(data))

    monkeypatch.setattr(_Transport, "__init__", watched)
    sent = asyncio.Event()

    class Parts(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await sent.wait()
            await send({"type": "http.response.body", "body": b"ab"})

    async def parts(http: Request) -> Response:
        return Parts()

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n")
        assert await answer(reader) == (200, b"0")
        assert len(written) == 1 and written.pop().endswith(b"\r\n\r\n0")
        writer.write(HEAD.replace(b"POST /length", b"HEAD /livez") + b"\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        written.clear()
        writer.write(HEAD.replace(b"/length", b"/parts") + b"\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        sent.set()
        assert await reader.readexactly(2) == b"ab" and len(written) == 2

    assert play(scene, more=[Route("/parts", "POST", parts, "")]) == {"200": 3}


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


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v2/models/tiny/infer?a=b HTTP/1.1\r\nNo colon\r\n\r\n",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nX: " + bytes(2 * MAX_HEAD_BYTES).replace(b"\0", b"x"),
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED + b"zz\r\n",
    ],
    ids=["head", "large head", "body"],
)
def test_below_v2_what_cannot_be_parsed_is_a_text_and_elsewhere_on_the_connection_it_is_not(sent: bytes):
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        status, body = await answer(reader)
        assert status in (400, 431) and isinstance(json.loads(body)["error"], str)

    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n\x16\x03")
        assert (await answer(reader))[0] == 200
        assert await refusal(reader) == (400, "malformed_http")

    play(scene)
    play(later)


def test_each_of_the_requests_on_a_connection_learns_that_its_client_has_left():
    """uvicorn tells the last one that it has read, which waits behind the first."""
    begun, over = asyncio.Event(), asyncio.Event()

    async def waiting(http: Request) -> Response:
        await read_body(http, MAX_BODY, 60)
        begun.set()
        while (await http.receive())["type"] != "http.disconnect":
            continue
        over.set()
        raise ClientDisconnect

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = HEAD.replace(b"/length", b"/waiting") + b"Content-Length: 1\r\n\r\na"
        writer.write(first + HEAD + b"\r\n" + HEAD + b"\r\n")
        await begun.wait()
        writer.close()
        await over.wait()

    assert play(scene, more=[Route("/waiting", "POST", waiting, "")]) == {str(CLIENT_GONE): 1}


def test_a_request_that_a_forced_stop_cancels_is_answered_and_leaves_no_traceback(caplog: pytest.LogCaptureFixture):
    tasks: list[asyncio.Task[Any]] = []

    async def unfinished(http: Request) -> Response:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"/length", b"/unfinished") + b"\r\n")
        await until(lambda: bool(tasks))
        tasks[0].cancel()
        status, body = await answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (503, "draining")
        writer.write(HEAD + b"Content-Length: 1\r\n\r\na")
        assert await answer(reader) == (200, b"1")

    assert play(scene, more=[Route("/unfinished", "POST", unfinished, "")]) == {"503": 1, "200": 1}
    assert not caplog.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"DELETE /livez HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", 503),
        (b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{", 400),
        (
            b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
            b"Content-Length: 150000\r\n\r\n" + b"a" * 150_000,
            415,
        ),
    ],
)
def test_a_connection_goes_on_after_an_error(sent: bytes, status: int):
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent + HEAD + b"Content-Length: 1\r\n\r\na")
        assert (await answer(reader))[0] == status
        assert await answer(reader) == (200, b"1")

    assert play(scene) == {str(status): 1, "200": 1}


def test_head_has_the_length_and_no_body():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for path in (b"/", b"/livez", b"/openapi.json", b"/readyz"):
            writer.write(b"HEAD " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: 0\r\n" not in head and b"content-length: " in head
        writer.write(HEAD + b"Content-Length: 1\r\n\r\na")
        assert await answer(reader) == (200, b"1")

    play(scene)
