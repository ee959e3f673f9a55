"""Items of an iterator, made in a thread while the consumer works with earlier ones."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def prefetched(items: Iterator[T], ahead: int) -> Generator[T]:
    """The same items in the same order, at most `ahead` of them made before they are asked for.

    An error of `items` is raised where its item would come. Closing the iterator ends the thread after the item that
    it makes.
    """
    room, made, closed = threading.Semaphore(ahead), queue.SimpleQueue[tuple[Any, BaseException | None]](), []

    def make() -> None:
        try:
            while room.acquire() and not closed:
                made.put((next(items, _END), None))
        except BaseException as error:  # the consumer raises it
            made.put((None, error))

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            room.release()
            yield item
    finally:
        closed.append(True)
        room.release()
        thread.join()
