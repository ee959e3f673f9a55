"""How a body is read: its size, its time and its coding."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request

from server.http.service import read_body
from server.scheduler.refusal import Refusal


def body_of(chunks: Sequence[bytes], headers: dict[str, str], limit: int = 4, limit_s: float = 60) -> bytes:
    """The chunks as a client sends them; it never says that they are all if the last one is empty."""
    messages = [{"type": "http.request", "body": each, "more_body": True} for each in chunks]
    if chunks and chunks[-1]:
        messages[-1]["more_body"] = False

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    return asyncio.run(read_body(Request({"type": "http", "headers": encoded}, receive), limit, limit_s))


def test_a_body_that_does_not_end_is_not_waited_for():
    with pytest.raises(Refusal, match=r"not complete after 0\.05 s") as caught:
        body_of([b"{", b""], {}, limit_s=0.05)
    assert (caught.value.kind, caught.value.code) == ("slow", "body_timeout")


def test_a_body_is_bounded_whatever_its_length_header_says():
    assert body_of([b"ab", b"", b"cd"], {}) == b"abcd"
    for headers in ({}, {"content-length": "3"}, {"content-length": "x"}):
        with pytest.raises(Refusal) as caught:
            body_of([b"abc", b"de"], headers)
        assert caught.value.kind == "too_large"
    with pytest.raises(Refusal):
        body_of([], {"content-length": "5"})


@pytest.mark.parametrize("name", ["content-encoding", "transfer-encoding"])
@pytest.mark.parametrize("coding", ["gzip", "br, gzip", "gzip, chunked", "x" * 9_000, "é"])
def test_a_compressed_body_is_not_read(name: str, coding: str):
    with pytest.raises(Refusal) as caught:
        body_of([], {name: coding})
    assert caught.value.kind == "unsupported" and caught.value.message.isprintable() and len(caught.value.message) < 300
