"""LocalService when a network, an encoder or a thread fails, when a request is wrong, and when it is closed."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from server.scheduler import encoding
from server.scheduler.events import Accepted, Failed, Progress
from server.scheduler.refusal import Refusal
from server.scheduler.request import Edit
from tests.server.fakes import (
    CLASSES,
    SHAPE,
    expected_pixels,
)
from tests.server.local_bench import Fake, explode, gated, request, threads_end

IN_THREADS = pytest.mark.parametrize("inline", [encoding.INLINE_BYTES, 0], ids=["engine thread", "encoder thread"])
Until = Callable[[Callable[[], bool]], None]


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_network_that_fails_ends_the_requests_in_the_call_and_the_service_goes_on(service: Fake, how: str):
    service.network.before = explode if how == "raises" else lambda x, c_noise: x.fill(np.nan)
    stream = service.submit(request())
    events = list(stream)
    assert [type(event) for event in events] == [Accepted, Failed]
    with pytest.raises(Refusal) as caught:
        stream.result()
    assert (caught.value.kind, caught.value.code) == (
        "failed",
        f"network_{'error' if how == 'raises' else 'not_finite'}",
    )
    assert "secret" not in caught.value.message
    service.network.before = lambda x, c_noise: None
    np.testing.assert_array_equal(service.submit(request()).result().images[0], expected_pixels(7, 1, 4))


def test_a_network_that_keeps_failing_is_said_to_and_recovers(service: Fake, until: Until):
    service.network.before = explode
    codes = []
    for _ in range(6):
        with pytest.raises(Refusal) as caught:
            service.submit(request()).result()
        codes.append(caught.value.code)
    assert codes[0] == "network_error" and codes[-1] == "model_failing"
    until(lambda: service.failing == {"tiny"})
    service.network.before = lambda x, c_noise: None
    until(lambda: service.failing == set())
    service.submit(request()).result()


@IN_THREADS
def test_an_encoder_that_raises_fails_the_request_and_a_preview_that_cannot_be_written_does_not(
    service: Fake, inline: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encoding, "INLINE_BYTES", inline)
    broken = iter([True, True, False, True])
    working = encoding.encode

    def encode(pixels: np.ndarray, format: Any, quality: int | None) -> bytes:
        if next(broken):
            raise MemoryError
        return working(pixels, format, quality)

    def together(images: Sequence[np.ndarray]) -> list[bytes]:
        raise MemoryError

    monkeypatch.setattr(encoding, "encode", encode)
    monkeypatch.setattr(encoding, "encode_pngs", together)
    events = list(service.submit(replace(request(steps=4, previews="images"), format="png")))
    assert [type(event) for event in events] == [Accepted, Progress, Failed]  # steps 1, 2 and the image were lost
    assert isinstance(events[-1], Failed) and events[-1].code == "encode_error"
    monkeypatch.setattr(encoding, "encode", working)
    service.submit(replace(request(), format="png")).result()


def test_a_request_whose_time_is_up_fails(service: Fake, monkeypatch: pytest.MonkeyPatch):
    with gated(service) as gate:
        stream = service.submit(request(steps=8), timeout_s=50)
        gate.wait()
        monkeypatch.setattr(service._loop, "clock", lambda: time.monotonic() + 100)
        gate.go()
        with pytest.raises(Refusal) as caught:
            stream.result()
    assert caught.value.kind == "timeout"


def test_close_fails_what_is_open_and_refuses_the_rest():
    with threads_end():
        service = Fake()
        with gated(service) as gate:
            streams = [service.submit(request(images=3, steps=8)) for _ in range(5)]
            gate.wait()
            closing = threading.Thread(target=service.close)
            closing.start()
            gate.go(8)
            for stream in streams:
                with pytest.raises(Refusal) as caught:
                    stream.result()
                assert (caught.value.kind, caught.value.code) == ("unavailable", "closed")
            closing.join()
        with pytest.raises(Refusal, match="closed"):
            service.submit(request())
        streams[0].cancel()
        service.close()


def test_a_submit_beside_a_close_is_refused_or_ends(service: Fake):
    class Closing:
        def __next__(self) -> int:
            service.close()  # the other thread is done while this one is in the middle of its submit
            return 0

    service._ids = Closing()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Refusal) as caught:
        service.submit(request()).result()
    assert caught.value.code == "closed"


@pytest.mark.parametrize("where", ["engine", "encoder"])
@pytest.mark.parametrize("error", [SystemExit, RuntimeError])
def test_a_thread_that_fails_closes_the_service(
    monkeypatch: pytest.MonkeyPatch, where: str, error: type[BaseException]
):
    def fail(*_: object) -> None:
        raise error

    with threads_end():
        service = Fake()
        target = service._loop if where == "engine" else service._encoders
        monkeypatch.setattr(target, "turn" if where == "engine" else "emit", fail)
        for _ in range(3):
            with pytest.raises(Refusal) as caught:
                service.submit(request()).result()
            assert caught.value.code == "closed"
        service.close()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 2)}, "seeds"),
        ({"seeds": (-1,)}, "seed"),
        ({"seeds": (2**63,)}, "seed"),
        ({"labels": (CLASSES,)}, "label"),
        ({"labels": (-2,)}, "label"),
        ({"sigmas": ()}, "sigmas"),
        ({"sigmas": (1.0,) * 9}, "sigmas"),
        ({"sigmas": (1.0, 0.0)}, "sigmas"),
        ({"sigmas": (math.nan,)}, "sigmas"),
        ({"edit": Edit((3, 8, 8), bytes(192), None)}, "edit"),
        ({"edit": Edit(SHAPE, bytes(63), None)}, "edit"),
        ({"edit": Edit(SHAPE, bytes(64), bytes(63))}, "edit"),
        ({"model": "another"}, "model"),
    ],
)
def test_what_no_slot_table_can_run_is_refused_and_ends_nothing(service: Fake, fields: dict[str, Any], param: str):
    with pytest.raises(Refusal) as caught:
        service.submit(replace(request(), **fields))
    assert caught.value.param == param
    service.submit(request(edit=Edit(SHAPE, bytes(64), bytes(64)))).result()
