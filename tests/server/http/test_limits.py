"""Heads without end, upgrades, tiny chunks, nonsense and silence, against uvicorn with our protocol."""

import asyncio

import pytest

from server.http.limits import LINGER_BYTES, MAX_HEAD_BYTES, PIECE_BYTES, BoundedHttp
from tests.server.http.over_tcp import CHUNKED, HEAD, LARGE, answer, flood, play, refusal


class Hasty(BoundedHttp):
    head_s = write_s = linger_s = 0.05


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


def test_a_trailer_is_not_taken_for_a_header():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + CHUNKED + b"2\r\nab\r\n0\r\nHost: elsewhere\r\nContent-Encoding: gzip\r\n\r\n")
        assert await answer(reader) == (200, b"2")

    play(scene)


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
        writer.write(HEAD.replace(b"/length", b"/early") + b"Content-Length: 1000000000\r\n\r\n")
        assert await answer(reader) == (200, b"0")
        writer.write(b"a" * sent)
        assert await reader.read() == b""

    play(scene, Hasty)


def test_a_body_that_comes_after_its_answer_is_skipped():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"/length", b"/early") + b"Content-Length: 3\r\n\r\n")
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
        writer.write(HEAD.replace(b"/length", b"/large") + b"\r\n")
        if half_closed:
            await reader.readuntil(b"\r\n\r\n")
            writer.write_eof()
        await lost.wait()

    play(scene, Watched)


def test_an_answer_that_is_read_slowly_is_not_given_up():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"/length", b"/large") + b"\r\n")
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


def test_requests_that_nobody_waits_for_are_not_parsed_ahead():
    """A connection that sends requests and reads no answer holds some hundred of them, not all."""
    seen: list[BoundedHttp] = []
    most = [0, 0]  # requests that wait, bytes that do

    class Watched(BoundedHttp):
        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            seen.append(self)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            most[0], most[1] = max(most[0], len(self.pipeline)), max(most[1], len(self.unparsed))

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 2_500
        writer.write((HEAD + b"\r\n") * count)
        for _ in range(count):
            assert await answer(reader) == (200, b"0")

    play(scene, Watched)
    assert len(seen) == 1 and 0 < most[0] <= PIECE_BYTES // len(HEAD) + 1 and most[1] <= 2**19


@pytest.mark.parametrize(
    "before", [b"", HEAD + b"Content-Length: 6000\r\n\r\n" + b"b" * 6_000, HEAD + CHUNKED + b"1\r\na\r\n0\r\n\r\n"]
)
def test_pipelined_requests_are_answered_in_order(before: bytes):
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sizes = [*range(300), 9_000, 0, 70_000, 1, *range(50)]
        writer.write(before + b"".join(HEAD + b"Content-Length: %d\r\n\r\n" % size + b"G" * size for size in sizes))
        if before:
            await answer(reader)
        for size in sizes:
            assert await answer(reader) == (200, str(size).encode())
        writer.write(HEAD + b"Connection: close\r\n\r\n")
        assert await answer(reader) == (200, b"0") and await reader.read() == b""

    play(scene)


def test_a_refusal_in_the_middle_of_requests_that_wait_is_read_and_the_last_answer():
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        large = HEAD.replace(b"/length", b"/small") + b"Content-Length: 2000000\r\n\r\n"
        writer.write((HEAD + b"\r\n") * 300 + large + b"b" * 2_000_000 + (HEAD + b"\r\n") * 300)
        for _ in range(300):
            assert await answer(reader) == (200, b"0")
        assert await refusal(reader) == (413, "body_too_large") and await reader.read() == b""

    assert play(scene) == {"200": 300, "413": 1}
