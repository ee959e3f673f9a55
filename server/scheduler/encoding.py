"""Encodes finished images, between an engine loop and the receiver of its events."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from fewstep.pixels import Pixels, encode
from server.scheduler.events import Failed, Finished, Image, Progress
from server.scheduler.loop import Delivery
from server.scheduler.request import ImageFormat

logger = logging.getLogger(__name__)

THREADS = 2  # zlib works outside the interpreter's lock
TOGETHER = 16  # events that a thread hands on at once, at most: one write serves several answers
INLINE_BYTES = 4_096  # of a PNG's pixels: writing one takes 20 microseconds, and to wake a thread takes as long


class Encoders:
    """Small PNGs are encoded by the engine thread while it has nothing to do; two threads encode other images.

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
        self.encoded: list[Delivery] = []  # by the engine thread, since the last flush
        self.queues: list[queue.SimpleQueue[Delivery | None]] = [queue.SimpleQueue() for _ in range(threads)]
        self.threads = [
            threading.Thread(target=self._run, args=(events,), name=f"encode-{number}", daemon=True)
            for number, events in enumerate(self.queues)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def deliver(self, event: Delivery) -> None:
        """Take an event from the engine thread. `flush` must follow."""
        if isinstance(event, Failed) or (isinstance(event, Finished | Progress) and not _quick(event)):
            self.queues[event.id % len(self.queues)].put(event)  # Failed too, behind what is still being encoded
        elif made := encoded(event):
            self.encoded.append(made)

    def flush(self) -> None:
        """Hand on what the engine thread has encoded."""
        if self.encoded:
            events, self.encoded = self.encoded, []
            self._emit(events)

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

    def _run(self, events: "queue.SimpleQueue[Delivery | None]") -> None:
        try:
            ended = False
            while not ended:
                taken = _take(events)
                ended = taken[-1] is None
                made = [encoded(event) for event in taken if event is not None]
                if ready := [event for event in made if event is not None]:
                    self.emit(ready)
        except BaseException as error:  # whatever it is, no thread ends unnoticed
            self.on_error(error)


def _quick(event: Finished | Progress) -> bool:
    """Whether encoding takes less than to wake a thread for it; the same for all events of a request."""
    image = event.preview if isinstance(event, Progress) else event.images[0]
    return image is None or event.format == "pixels" or (event.format == "png" and image.nbytes <= INLINE_BYTES)


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
        if isinstance(event, Progress):
            preview = None if event.preview is None else _encode(event.preview, event.format, event.quality)
            return replace(event, preview=preview)
        images = tuple(_encode(pixels, event.format, event.quality) for pixels in event.images)
    except Exception:  # MemoryError among them: the thread goes on
        logger.exception("encoding request %d failed", event.id)
        if isinstance(event, Progress):
            return None
        message = f"the image could not be written as {event.format}; the server's log says why"
        return Failed(event.id, "failed", "encode_error", message)
    return replace(event, images=images, encode_s=time.monotonic() - started_s)


def _encode(pixels: Pixels, format: ImageFormat, quality: int | None) -> Image:
    return pixels if format == "pixels" else encode(pixels, format, quality)
