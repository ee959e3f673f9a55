"""The generator: what it sends, what it makes of answers and of none, and how it judges itself."""

import ast
import asyncio
import csv
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from benchmarks.load.arrivals import poisson
from benchmarks.load.closed_loop import saturate
from benchmarks.load.http_client import Pool, generate, take_answer
from benchmarks.load.open_loop import NO_ANSWER, Record, play, write_log
from benchmarks.load.run_summary import MAX_LAG_S, summarise

T = TypeVar("T")
Respond = Callable[[dict[str, object]], bytes | None]  # None: close the connection without an answer


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


def against(respond: Respond, use: Callable[[str], Awaitable[T]], *, once: bool = False) -> tuple[T, int]:
    """What `use` makes of a server that answers with `respond`, and how many connections it opened.

    once: the server closes each connection after an answer, without having said so.
    """
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                reply = respond(json.loads(await reader.readexactly(length)))
                if reply is None:
                    break
                writer.write(reply)
                if once:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def run() -> T:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    return asyncio.run(run()), connections


def test_every_request_of_a_schedule_is_sent_once_and_accounted_for():
    seen: list[dict[str, object]] = []
    full = json.dumps({"error": {"code": "queue_full"}}).encode()

    def respond(body: dict[str, object]) -> bytes | None:
        seen.append(body)
        return {1: answer(200, b"png"), 2: answer(429, full), 4: answer(500), 8: None}[int(str(body["steps"]))]

    schedule = poisson(2000, 0.02, images=3, seed=1)
    records, _ = against(respond, lambda url: play(url, schedule))
    assert sorted(int(str(body["seed"])) for body in seen) == sorted(a.seed for a in schedule)
    assert {body["n"] for body in seen} == {3}
    assert [(r.due_s, r.steps, r.images) for r in records] == [(a.due_s, a.steps, 3) for a in schedule]
    endings = {(r.steps, r.status, r.code) for r in records}
    assert endings == {(1, 200, ""), (2, 429, "queue_full"), (4, 500, ""), (8, NO_ANSWER, "ConnectionError")}
    assert all(r.due_s <= r.sent_s <= r.done_s for r in records)


def test_a_server_that_is_not_there_is_no_answer():
    (record,) = asyncio.run(play("http://127.0.0.1:1", poisson(1, 1)[:1]))
    assert (record.status, record.code) == (NO_ANSWER, "ConnectionRefusedError")


def test_connections_are_kept_and_those_the_server_closes_are_not_used_again():
    async def five(url: str) -> list[int]:
        pool = Pool(url)
        return [(await pool.fetch(generate({"steps": 1}))).status for _ in range(5)]

    assert against(lambda _: answer(200), five) == ([200] * 5, 1)
    assert against(lambda _: answer(200, b"", "Connection: close"), five) == ([200] * 5, 5)


def test_a_connection_that_the_server_closed_while_idle_is_not_used_again():
    async def twice(url: str) -> list[int]:
        pool = Pool(url)
        statuses = [(await pool.fetch(generate({"steps": 1}))).status]
        while pool.idle[0].open:
            await asyncio.sleep(0)
        return [*statuses, (await pool.fetch(generate({"steps": 1}))).status]

    assert against(lambda _: answer(200), twice, once=True) == ([200, 200], 2)


def test_saturation_counts_images_and_refuses_other_answers():
    rate, connections = 0.0, 0
    for seconds in (0.05, 0.5, 5.0, 50.0):  # on a crowded machine nothing may be answered in the shorter ones
        if not rate:
            ask = lambda url, end_s=seconds: saturate(url, 3, 0.0, end_s, images=4)  # noqa: E731
            rate, connections = against(lambda _: answer(200), ask)
    assert rate > 0 and connections == 3
    with pytest.raises(RuntimeError, match="answered 429 to one of 2"):
        against(lambda _: answer(429), lambda url: saturate(url, 2, 0.0, 0.05))


def test_an_answer_is_taken_only_when_it_is_whole():
    whole = answer(200, b"image", "X-Seed: 7")
    for cut in range(len(whole)):
        assert take_answer(whole[:cut]) == (None, whole[:cut])
    taken, rest = take_answer(whole + b"HTTP")
    assert taken is not None and (taken.status, taken.body, taken.headers["x-seed"]) == (200, b"image", "7")
    assert rest == b"HTTP"
    with pytest.raises(ValueError, match="not HTTP"):
        take_answer(b"SSH-2.0 hello\r\n\r\n")
    with pytest.raises(ValueError, match="without the length of its body"):
        take_answer(b"HTTP/1.1 200 OK\r\n\r\n")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\n\r\nab\r\nA\r\n0123456789\r\n0\r\n"
CLOSED = b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nimage"


@pytest.mark.parametrize("end", [b"\r\n", b"Digest: 7\r\nTrailer: 8\r\n\r\n"])
def test_a_chunked_body_is_read(end: bytes):
    whole = CHUNKED + end
    for cut in range(len(whole)):
        assert take_answer(whole[:cut]) == (None, whole[:cut])
    taken, rest = take_answer(whole + b"HTTP")
    assert taken is not None and (taken.body, rest) == (b"\r\nab0123456789", b"HTTP")
    with pytest.raises(ValueError, match="where a chunk has its size"):
        take_answer(CHUNKED.replace(b"4;x", b"z;x"))


def test_a_body_without_a_length_ends_with_the_connection():
    assert take_answer(CLOSED) == (None, CLOSED)
    taken, _ = take_answer(CLOSED, ended=True)
    assert taken is not None and taken.body == b"image"

    async def once(url: str) -> bytes:
        return (await Pool(url).fetch(generate({"steps": 1}))).body

    assert against(lambda _: CLOSED, once, once=True) == (b"image", 1)


def records(count: int = 100, **changes: object) -> list[Record]:
    """One request every 100 ms, each answered after 1, 2, ..., count ms."""
    made = [Record(0.1 * i, 0.1 * i, 0.1 * i + (i + 1) / 1000, 4, 1, 200) for i in range(count)]
    return [replace(record, **changes) for record in made]


def test_latency_counts_from_the_moment_a_request_was_due():
    late = Record(due_s=1.0, sent_s=1.5, done_s=1.6, steps=1, images=1, status=200)
    assert (late.latency_s, late.lag_s) == (pytest.approx(0.6), 0.5)


def test_percentiles_are_of_the_answers_in_the_window():
    summary = summarise(records(101), 0.0, 10.05, limit_s=1.0)
    assert summary.requests == 101 and summary.sustained and summary.valid
    assert summary.p50_ms == pytest.approx(51) and summary.p99_ms == pytest.approx(100)
    assert summary.max_ms == pytest.approx(101)
    warm = summarise(records(101), 5.0, 10.05, limit_s=1.0)
    assert warm.requests == 51 and warm.p50_ms == pytest.approx(76)


def test_goodput_counts_what_was_answered_in_time():
    summary = summarise(records(images=2), 0.0, 10.0, limit_s=0.0505)
    assert summary.goodput_per_s == pytest.approx(2 * 50 / 10)
    assert summary.images_per_s == pytest.approx(2 * 99 / 10)  # the last one ends after the window
    assert summary.offered_per_s == pytest.approx(20)


def test_rejects_and_errors_are_kept_apart_from_latency():
    mixed = [replace(r, status=status) for r, status in zip(records(), [200, 200, 429, 503] * 25, strict=True)]
    summary = summarise(mixed, 0.0, 10.0, limit_s=1.0)
    assert (summary.rejects, summary.errors, summary.sustained) == (25, 25, False)
    assert summary.reject_p99_ms == pytest.approx(99, abs=2) and summary.max_ms == pytest.approx(98)
    nothing = summarise(records(status=429), 0.0, 10.0, limit_s=1.0)
    assert nothing.p50_ms is None and nothing.images_per_s == 0


def test_a_growing_backlog_is_not_sustained():
    slow = [replace(r, done_s=r.due_s * 1.1) for r in records()]
    assert not summarise(slow, 0.0, 10.0, limit_s=1.0).sustained


def test_a_generator_that_falls_behind_declares_the_run_invalid():
    behind = [replace(r, sent_s=r.due_s + 2 * MAX_LAG_S * (i >= 95)) for i, r in enumerate(records())]
    summary = summarise(behind, 0.0, 10.0, limit_s=1.0)
    assert not summary.valid and summary.lag_p99_ms == pytest.approx(2000 * MAX_LAG_S)


def test_a_window_without_requests_is_refused():
    with pytest.raises(ValueError, match="run longer"):
        summarise(records(), 20.0, 30.0, limit_s=1.0)


def test_the_log_has_a_line_per_request(tmp_path):
    write_log(records(3), tmp_path / "logs" / "run.csv")
    lines = list(csv.DictReader((tmp_path / "logs" / "run.csv").open()))
    assert [float(line["due_s"]) for line in lines] == pytest.approx([0.0, 0.1, 0.2])
    assert {line["status"] for line in lines} == {"200"}


def test_the_locustfile_needs_nothing_of_this_checkout():
    tree = ast.parse((Path(__file__).parents[2] / "benchmarks/load/locustfile.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"locust"}
