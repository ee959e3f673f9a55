"""Encoders: which thread encodes an event, in which order events are handed on, and what may go wrong."""

import itertools
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduler import encoding
from server.scheduler.encoding import Encoders, encoded, encoded_together
from server.scheduler.events import Failed, Finished, Health, Progress
from server.scheduler.loop import Delivery
from server.scheduler.request import ImageFormat
from tests.server.conftest import DEADLINE_S

SMALL, LARGE = (np.zeros((side, side, 3), np.uint8) for side in (8, 64))
FORMATS: list[ImageFormat] = ["png", "webp", "npy", "pixels"]
FAILED = Failed(1, "failed", "network_error", "the network call failed")


def progress(id: int, pixels: np.ndarray | None, step: int = 1, format: ImageFormat = "png") -> Progress:
    return Progress(id, 0, step, 8, format, pixels)


def finished(id: int, pixels: np.ndarray, format: ImageFormat = "png") -> Finished:
    return Finished(id, format, (pixels,), 0.0, 0.0)


def handed_on(events: Sequence[Delivery], flush: Iterator[bool]) -> list[Delivery]:
    """In order; no thread fails."""
    emitted: list[Delivery] = []
    encoders = Encoders(emitted.extend, lambda error: pytest.fail(str(error)))
    encoders.start()
    for event in events:
        encoders.deliver(event)
        if next(flush):
            encoders.flush()
    encoders.flush()
    encoders.close()
    return emitted


@given(st.data())
def test_events_of_a_request_stay_in_order_and_none_is_lost(data: st.DataObject):
    kinds = st.tuples(st.sampled_from([SMALL, LARGE]), st.sampled_from(FORMATS), st.booleans())
    requests = dict(enumerate(data.draw(st.lists(kinds, min_size=1, max_size=5))))
    made = dict.fromkeys(requests, 0)
    events: list[Delivery] = []
    for number in data.draw(st.lists(st.sampled_from(sorted(requests)), max_size=30)):
        pixels, format, steps_only = requests[number]
        made[number] += 1
        events.append(progress(number, None if steps_only else pixels, made[number], format))
    ends = {n: FAILED if data.draw(st.booleans()) else finished(n, p, f) for n, (p, f, _) in requests.items()}
    for number, end in ends.items():
        events.append(end if isinstance(end, Finished) else Failed(number, end.kind, end.code, end.message))
    emitted = handed_on(
        events, itertools.chain(data.draw(st.lists(st.booleans(), max_size=30)), itertools.repeat(True))
    )
    assert len(emitted) == len(events)
    for number in requests:
        mine = [event for event in emitted if not isinstance(event, Health) and getattr(event, "id", None) == number]
        steps = [event.step for event in mine if isinstance(event, Progress)]
        assert steps == list(range(1, made[number] + 1)) and isinstance(mine[-1], Finished | Failed)


def test_a_failure_waits_for_what_is_still_being_encoded(monkeypatch: pytest.MonkeyPatch):
    go = threading.Event()
    monkeypatch.setattr(encoding, "encode", lambda pixels, format, quality: b"x" if go.wait(DEADLINE_S) else b"")
    emitted: list[Delivery] = []
    encoders = Encoders(emitted.extend, lambda error: None)
    encoders.start()
    for event in (progress(1, LARGE), FAILED, Health("tiny", True)):
        encoders.deliver(event)
        encoders.flush()
    assert emitted == [Health("tiny", True)]
    go.set()
    encoders.close()
    assert [type(event) for event in emitted] == [Health, Progress, Failed]


def test_a_thread_gets_an_event_only_when_earlier_ones_of_its_request_are_handed_on():
    emitted: list[Delivery] = []

    def emit(events: Sequence[Delivery]) -> None:
        assert all(events.empty() for events in encoders.queues)
        emitted.extend(events)

    encoders = Encoders(emit, lambda error: pytest.fail(str(error)))  # its threads do not run
    for event in (progress(1, None), finished(1, LARGE)):
        encoders.deliver(event)
    encoders.flush()
    assert emitted == [progress(1, None)] and encoders.queues[1].get_nowait() is not None


def test_the_engine_thread_encodes_so_many_small_images_and_no_more():
    by: dict[threading.Thread, list[int]] = {}
    encoders = Encoders(
        lambda events: by.setdefault(threading.current_thread(), []).extend(
            event.id for event in events if isinstance(event, Finished)
        ),
        lambda error: None,
    )
    encoders.start()
    for number in range(encoding.INLINE_IMAGES + 2):
        encoders.deliver(finished(number, SMALL))
    encoders.flush()
    encoders.close()
    assert by.pop(threading.current_thread()) == list(range(encoding.INLINE_IMAGES))
    assert sorted(itertools.chain(*by.values())) == [encoding.INLINE_IMAGES, encoding.INLINE_IMAGES + 1]


def test_an_image_that_cannot_be_written_fails_its_request_and_a_preview_is_left_out(monkeypatch: pytest.MonkeyPatch):
    def broken(pixels: np.ndarray, format: str, quality: int | None) -> bytes:
        raise MemoryError("at 0x7f in /srv/secret")

    monkeypatch.setattr(encoding, "encode", broken)
    assert encoded(progress(1, SMALL)) is None
    end = encoded(finished(1, SMALL))
    assert isinstance(end, Failed) and end.code == "encode_error" and "secret" not in end.message
    assert encoded(progress(1, None)) == progress(1, None), "there is nothing to encode"


def test_of_images_written_together_only_the_one_that_cannot_be_fails(monkeypatch: pytest.MonkeyPatch):
    def broken(pixels: np.ndarray, *_: object) -> bytes:
        return b"png" if np.any(pixels) else bytes(2**62)

    monkeypatch.setattr(encoding, "encode", broken)
    monkeypatch.setattr(encoding, "encode_pngs", lambda images: [broken(image) for image in images])
    events: list[Delivery] = [finished(0, SMALL + 1), finished(1, SMALL), progress(2, SMALL), Health("tiny", True)]
    first, second, third = encoded_together(events)
    assert isinstance(first, Finished) and first.images == (b"png",)
    assert isinstance(second, Failed) and (second.id, second.code) == (1, "encode_error")
    assert third == Health("tiny", True)


@pytest.mark.parametrize("pixels", [SMALL, LARGE], ids=["engine thread", "encoder thread"])
@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_an_error_of_the_receiver_is_reported_from_whichever_thread(pixels: np.ndarray, error: type[BaseException]):
    def emit(events: Sequence[Delivery]) -> None:
        raise error

    reported: list[BaseException] = []
    encoders = Encoders(emit, reported.append)
    encoders.start()
    encoders.deliver(finished(0, pixels))
    encoders.flush()
    encoders.close()
    assert [type(each) for each in reported] == [error]
