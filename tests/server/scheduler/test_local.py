"""The engine loop in a thread of its own: on a fake network, and on the tiny engine."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from msgspec import structs
from PIL import Image

from export.engine import load_engine
from export.manifest import read_manifest, write_manifest
from fewstep.card import CheckpointError
from fewstep.noise import noise_for
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from server.scheduler import encoding
from server.scheduler.events import Accepted, Event, Failed, Finished, Progress
from server.scheduler.loading import LoadOptions
from server.scheduler.local import EventStream, LocalService
from server.scheduler.refusal import Refusal
from server.scheduler.request import ImageRequest, Previews
from server.scheduler.validate import image_request
from tests.server.fakes import (
    CLASSES,
    LEVELS,
    SHAPE,
    expected_pixels,
)
from tests.server.local_bench import SLOTS, Fake, explode, gated, request, threads_end

IN_THREADS = pytest.mark.parametrize("inline", [encoding.INLINE_BYTES, 0], ids=["engine thread", "encoder thread"])
Until = Callable[[Callable[[], bool]], None]


def in_order(events: list[Event]) -> bool:
    """Accepted, Progress ascending by image, one end."""
    first, *between, last = events
    steps: dict[int, list[int]] = {}
    for event in between:
        assert isinstance(event, Progress)
        steps.setdefault(event.image, []).append(event.step)
    ascending = all(made == list(range(1, len(made) + 1)) for made in steps.values())
    return ascending and isinstance(first, Accepted) and isinstance(last, Finished | Failed)


async def collected(stream: EventStream) -> list[Event]:
    return [event async for event in stream]


@pytest.mark.parametrize("collect", [list, lambda stream: asyncio.run(collected(stream))], ids=["sync", "async"])
@pytest.mark.parametrize("previews", ["none", "steps", "images"])
def test_the_events_of_a_request(service: Fake, collect: Callable[[EventStream], list[Event]], previews: Previews):
    stream = service.submit(request(images=6, steps=3, previews=previews))
    events = collect(stream)
    assert in_order(events)
    progress, last = [event for event in events if isinstance(event, Progress)], events[-1]
    assert isinstance(last, Finished) and last == stream.result(), "asking again is no wait"
    assert len(progress) == {"none": 0, "steps": 6 * 2, "images": 6 * 2 + 5}[previews]
    assert [event.step for event in progress].count(3) == (5 if previews == "images" else 0), "all but the last image"
    assert {event.of for event in progress} <= {3} and len({event.id for event in events}) == 1
    for event in progress:
        assert (event.preview is None) == (previews == "steps")
        assert event.preview is None or (event.preview.shape, event.preview.dtype) == ((8, 8, 1), np.uint8)
    for image, pixels in enumerate(last.images):
        np.testing.assert_array_equal(pixels, expected_pixels(7 + image, 1, 3))


@IN_THREADS
def test_images_and_previews_are_written_in_the_format_of_the_request(
    service: Fake, inline: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encoding, "INLINE_BYTES", inline)
    *_, preview, finished = service.submit(structs.replace(request(steps=2, previews="images"), format="png"))
    assert isinstance(preview, Progress) and isinstance(finished, Finished)
    for data in (preview.preview or b"", *finished.images):
        assert Image.open(io.BytesIO(data)).size == (8, 8)
    pixels = np.asarray(Image.open(io.BytesIO(finished.images[0])))
    np.testing.assert_array_equal(pixels, expected_pixels(7, 1, 2)[..., 0])


def test_many_threads_and_event_loops_at_once_get_the_images_of_the_sampler(service: Fake, until: Until):
    threads = 16

    def make(number: int) -> np.ndarray:
        stream = service.submit(request(seed=number, steps=1 + number % 8, label=number % CLASSES))
        return (stream.result() if number % 2 else asyncio.run(stream.aresult())).images[0]

    def until_all_have_asked(x: np.ndarray, c_noise: np.ndarray) -> None:
        service.network.before = lambda x, c_noise: None  # the first call alone waits
        until(lambda: len(service._loop.flights) + service._inbox.queue.qsize() == threads)

    service.network.before = until_all_have_asked
    with ThreadPoolExecutor(threads) as pool:
        for number, pixels in enumerate(pool.map(make, range(120))):
            np.testing.assert_array_equal(pixels, expected_pixels(number, number % CLASSES, 1 + number % 8))
    assert service.network.batches[1] == SLOTS, "calls are shared"


def test_one_event_loop_waits_for_many_requests_at_once(service: Fake):
    async def all_of() -> list[Finished]:
        return await asyncio.gather(*(service.submit(request(seed=seed)).aresult() for seed in range(40)))

    for seed, finished in enumerate(asyncio.run(all_of())):
        np.testing.assert_array_equal(finished.images[0], expected_pixels(seed, 1, 4))


def test_images_come_as_they_are_finished_and_no_slot_waits_for_requests(service: Fake, until: Until):
    """Each network call lasts until the caller has taken what was finished before it and has begun as many requests."""
    steps = [8, 1, 2, 4, 1, 3, 2, 8, 5, 1, 1, 6] * 5
    all_begun = threading.Event()
    begun_before: list[bool] = []  # of each call, whether all requests were begun before it

    def asked() -> Iterator[ImageRequest]:
        yield from (request(seed=seed, steps=each) for seed, each in enumerate(steps))
        all_begun.set()

    def caller_has_caught_up() -> bool:
        unfinished = len(service._loop.flights) + service._inbox.queue.qsize()
        return unfinished == 2 * SLOTS or all_begun.is_set()

    def during_a_call(x: np.ndarray, c_noise: np.ndarray) -> None:
        begun_before.append(all_begun.is_set())
        until(caller_has_caught_up)

    service.network.before = during_a_call
    made = dict(service.as_finished(asked(), at_once=2 * SLOTS))
    assert sorted(made) == [*range(60)] and [*made] != sorted(made), "short ones overtake long ones"
    for number, finished in made.items():
        np.testing.assert_array_equal(finished.images[0], expected_pixels(number, 1, steps[number]))
    calls = service.network.batches
    full = begun_before.index(True)
    assert calls[1:full] == [SLOTS] * (full - 1) and full > 0.8 * len(calls)


def test_no_more_requests_are_begun_than_together(service: Fake):
    taken: list[int] = []
    made = service.as_finished((taken.append(seed) or request(seed=seed) for seed in range(9)), at_once=2)
    assert not taken, "nothing is begun before the first is asked for"
    for finished in range(1, 10):
        next(made)
        assert len(taken) == min(9, finished + 1)
    assert list(made) == []


def test_as_finished_cancels_the_rest_when_it_is_left_and_when_one_fails(service: Fake, until: Until):
    made = service.as_finished((request(seed=seed, steps=1 if not seed else 8) for seed in range(9)), at_once=9)
    with gated(service) as gate:
        gate.go()
        assert next(made)[0] == 0
        made.close()
        assert not service._receivers
    until(lambda: not service._loop.flights)
    with pytest.raises(Refusal) as caught:
        list(service.as_finished([request(), structs.replace(request(), model="absent")], at_once=2))
    assert caught.value.code == "model_not_found"
    until(lambda: not service._loop.flights)
    service.network.before = explode
    with pytest.raises(Refusal) as caught:
        list(service.as_finished((request(seed=seed) for seed in range(9)), at_once=9))
    assert caught.value.code == "network_error" and not service._receivers


@pytest.mark.parametrize("cancel", ["here", "another thread"])
def test_a_cancelled_request_frees_its_slots_and_its_iteration_ends(service: Fake, until: Until, cancel: str):
    with gated(service) as gate:
        stream = service.submit(request(images=SLOTS, steps=8, previews="steps"))
        waiting = service.submit(request(seed=1, steps=1))
        gate.wait()
        gate.go()
        events = iter(stream)
        assert isinstance(next(events), Accepted) and isinstance(next(events), Progress)
        if cancel == "here":
            stream.cancel()
        else:
            threading.Thread(target=stream.cancel).start()
        assert len(list(events)) < SLOTS * 8  # ends without another call
        gate.go(100)
        np.testing.assert_array_equal(waiting.result().images[0], expected_pixels(1, 1, 1))
    until(lambda: service.counts().evicted == {"running": SLOTS} and service.counts().active_slots == 0)
    assert list(stream) == []
    with pytest.raises(Refusal) as caught:
        stream.result()
    assert caught.value.code == "cancelled"


def test_a_request_of_priority_batch_lets_a_later_one_pass(service: Fake):
    with gated(service) as gate:
        running = service.submit(request(images=SLOTS, steps=1))
        gate.wait()
        batch = service.submit(request(seed=1, images=SLOTS, steps=1, priority="batch"))
        later = service.submit(request(seed=2, images=SLOTS, steps=1))
        gate.go(2)  # the running call and one more
        for stream in (running, later):
            stream.result()
        gate.wait()
        gate.wait()  # the third call has begun: that of the batch request
        assert isinstance(next(iter(batch)), Accepted) and batch._events.empty()
    batch.result()


def test_a_cancel_wakes_the_consumer_that_waits(service: Fake):
    async def leave() -> str:
        stream = service.submit(request())
        waiting = asyncio.create_task(stream.aresult())
        await asyncio.to_thread(gate.wait)
        await asyncio.to_thread(stream.cancel)
        with pytest.raises(Refusal) as caught:
            await waiting
        return caught.value.code

    with gated(service) as gate:
        assert asyncio.run(leave()) == "cancelled"


def test_after_a_cancel_there_are_no_events_though_some_had_come(service: Fake):
    stream = service.submit(request())
    stream.cancel()
    assert list(stream) == []


def test_a_consumer_whose_event_loop_has_ended_disturbs_no_other(service: Fake):
    async def leave() -> EventStream:
        stream = service.submit(request(previews="steps"))
        async for _ in stream:
            break
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(collected(stream), 0.01)
        return stream

    with gated(service) as gate:
        left = asyncio.run(leave())
    assert isinstance(list(left)[-1], Finished), "the rest of the events is still there"
    service.submit(request()).result()
    assert gate is not None


def test_a_request_runs_with_the_levels_it_carries(service: Fake):
    finished = service.submit(structs.replace(request(), sigmas=LEVELS[7], steps=99)).result()
    np.testing.assert_array_equal(finished.images[0], expected_pixels(7, 1, 7))


def test_nothing_is_kept_of_requests_that_have_ended(service: Fake, until: Until):
    for number in range(1_500):
        stream = service.submit(request(seed=number, steps=1, previews="steps"))
        if number % 3:
            stream.result()
        else:
            stream.cancel()
    until(lambda: not service._loop.flights)
    assert (service._receivers, service._loop.finished, service._inbox.queue.qsize()) == ({}, [], 0)
    assert len(service._loop.deadlines) <= 66 and not any(each.qsize() for each in service._encoders.queues)
    until(lambda: service.counts().active_slots == 0)
    assert len(service.counts().calls_by_fill) <= SLOTS


def test_an_engine_directory_is_served_under_the_name_it_is_given(engine_dir: Path):
    descriptors = psutil.Process().num_fds()
    with threads_end(), LocalService.open({"mine": engine_dir}, LoadOptions(threads=1)) as service:
        described = service.manifests["mine"]
        asked = [image_request(described, steps=2 + seed % 3, seed=seed, label=2) for seed in range(20)]
        made = [service.submit(structs.replace(each, format="pixels")) for each in asked]
        denoiser = load_engine(engine_dir, threads=1).denoiser
        for each, stream in zip(asked, made, strict=True):
            sample = sample_dpdm(
                lambda x, sigma: denoiser(x, sigma, np.array([2])), noise_for(each.seeds, SHAPE), each.sigmas
            )
            gap = np.abs(stream.result().images[0].astype(int) - to_pixels(sample.images)[0])
            assert gap.max() <= 1  # other batch sizes
    assert psutil.Process().num_fds() <= descriptors


def test_a_folder_without_a_student_is_refused_in_a_sentence(engine_dir: Path, tmp_path: Path):
    write_manifest(tmp_path, replace(read_manifest(engine_dir), role="teacher", levels={}))
    with pytest.raises(CheckpointError, match="holds a teacher, which has no levels to serve"):
        LocalService.open({"tiny": tmp_path})
