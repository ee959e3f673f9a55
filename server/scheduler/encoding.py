"""Encodes finished images, between an engine loop and the receiver of its events."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain, islice

from msgspec.structs import replace

from fewstep.pixels import encode, encode_pngs
from server.scheduler.events import Failed, Finished, Image, Progress
from server.scheduler.loop import Delivery

logger = logging.getLogger(__name__)

THREADS = 2  # zlib works outside the interpreter's lock
TOGETHER = 16  # events that are handed on at once, at most: one write serves several answers
# Of one network call, in the engine thread: 0.6 ms, for which a GPU is busy anyway. In threads they take twice the CPU
# time, because numpy and zlib let go of the interpreter at every call, and each time another thread takes it.
INLINE_IMAGES = 32
INLINE_BYTES = 4_096  # of a PNG's pixels: writing one takes 20 microseconds, and to wake a thread takes as long


class Encoders:
    """Small PNGs, up to INLINE_IMAGES, are encoded by the engine thread; two threads encode other images.

    emit: called with encoded events, from any of these threads; must not block. The events of one request stay in
    order. on_error: called with what emit has raised, which no image causes.
    """

    def __init__(
        self,
        emit: Callable[[Sequence[Delivery]], None],
        on_error: Callable[[BaseException], None],
        threads: int = THREADS,
    ) -> None:
        self.emit = emit
        self.on_error = on_error
        self.series: list[Delivery] = []  # delivered since the last flush
        self.queues: list[queue.SimpleQueue[Delivery | None]] = [queue.SimpleQueue() for _ in range(threads)]
        self.given = [0] * threads  # events that each thread has got; the engine thread counts
        self.done = [0] * threads  # events that it has handed on; the thread itself counts
        self.threads = [
            threading.Thread(target=self._run, args=(number,), name=f"encode-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def deliver(self, event: Delivery) -> None:
        """Take an event from the engine thread. `flush` must follow."""
        self.series.append(event)

    def flush(self) -> None:
        """Encode what was delivered and hand it on, or give it to the threads."""
        if not self.series:
            return
        series, self.series = self.series, []
        left = INLINE_IMAGES
        inline: list[Delivery] = []
        given: list[tuple[int, Delivery]] = []
        for event in series:
            if isinstance(event, Finished | Progress | Failed):
                thread = event.id % len(self.queues)
                images = _quick_images(event)
                # Every event of a request comes behind those that are still being encoded.
                if images is None or images > left or self.given[thread] > self.done[thread]:
                    self.given[thread] += 1
                    given.append((thread, event))
                    continue
                left -= images
            inline.append(event)
        for first in range(0, len(inline), TOGETHER):  # the receiver works on these while the next are encoded
            if made := encoded_together(inline[first : first + TOGETHER]):
                self._emit(made)
        for thread, event in given:  # only now: a thread must not be ahead of an earlier event of the same request
            self.queues[thread].put(event)

    def close(self) -> None:
        """Returns when everything delivered before has been emitted, or the threads have failed."""
        for events in self.queues:
            events.put(None)
        for thread in self.threads:
            thread.join()

    def _emit(self, events: Sequence[Delivery]) -> None:
        try:
            self.emit(events)
        except BaseException as error:  # the engine loop would take it for a failure of the network
            self.on_error(error)

    def _run(self, number: int) -> None:
        try:
            ended = False
            while not ended:
                taken = _take(self.queues[number])
                ended = taken[-1] is None
                made = [encoded(event) for event in taken if event is not None]
                if ready := [event for event in made if event is not None]:
                    self.emit(ready)
                self.done[number] += len(made)
        except BaseException as error:  # whatever it is, no thread ends unnoticed
            self.on_error(error)


def _take(events: "queue.SimpleQueue[Delivery | None]") -> list[Delivery | None]:
    """Wait for one event and take what else there is, up to TOGETHER and not beyond a None."""
    taken = [events.get()]
    while taken[-1] is not None and len(taken) < TOGETHER and not events.empty():
        taken.append(events.get())
    return taken


def encoded(event: Delivery) -> Delivery | None:
    """The event with its images as bytes of their format.

    Where that fails: Failed in place of Finished; None in place of Progress, for the request goes on.
    """
    if not isinstance(event, Finished | Progress):
        return event
    started_s = time.monotonic()
    try:
        images = [encode(image, event.format, event.quality) for image in _images(event)]  # pyright: ignore[reportArgumentType]
    except Exception:  # MemoryError among them: the thread goes on
        logger.exception("encoding request %d failed", event.id)
        if isinstance(event, Progress):
            return None
        message = f"the image could not be written as {event.format}; the server's log says why"
        return Failed(event.id, "failed", "encode_error", message)
    return _with_images(event, images, time.monotonic() - started_s)


def encoded_together(events: Sequence[Delivery]) -> list[Delivery]:
    """`encoded` of events whose images are PNGs if any, and small, in less time; without what it gives None for."""
    images = [_images(event) for event in events]
    started_s = time.monotonic()
    try:
        pngs = iter(encode_pngs([*chain(*images)]))
    except Exception:  # one after the other, so that only the request fails whose image cannot be written
        return [ready for event in events if (ready := encoded(event)) is not None]
    counts = [*map(len, images)]
    image_s = (time.monotonic() - started_s) / max(1, sum(counts))
    return [_with_images(event, [*islice(pngs, n)], n * image_s) for event, n in zip(events, counts, strict=True)]


def _images(event: Delivery) -> Sequence[Image]:
    """What there is to encode."""
    if isinstance(event, Finished):
        return () if event.format == "pixels" else event.images
    if isinstance(event, Progress):
        return () if event.format == "pixels" or event.preview is None else (event.preview,)
    return ()


def _quick_images(event: Finished | Progress | Failed) -> int | None:
    """How many images there are to encode; None: one of them takes longer than to wake a thread for it."""
    images = _images(event)
    if isinstance(event, Failed) or not images:
        return 0
    return len(images) if event.format == "png" and images[0].nbytes <= INLINE_BYTES else None


def _with_images(event: Delivery, images: Sequence[Image], seconds: float) -> Delivery:
    """The event with its images encoded, which took so long; without images, the event."""
    if isinstance(event, Finished) and images:
        return replace(event, images=tuple(images), encode_s=seconds)
    if isinstance(event, Progress) and images:
        return replace(event, preview=images[0])
    return event
