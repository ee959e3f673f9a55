"""Which waiting images get the free slots: a pure function of (waiting, free, now)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A request with images that have no slot yet."""

    request: int
    images: int  # still without a slot, at least 1
    arrived_s: float  # monotonic clock


@dataclass(frozen=True)
class Admission:
    request: int
    images: int


# (waiting in order of arrival, free slots, now_s) -> who gets how many slots, in order
Policy = Callable[[Iterable[Waiting], int, float], list[Admission]]


def fifo(waiting: Iterable[Waiting], free: int, now_s: float) -> list[Admission]:
    """First come, first served, image by image: a request larger than the free slots takes them all."""
    admissions: list[Admission] = []
    for entry in waiting:
        if free == 0:
            break
        images = min(entry.images, free)
        admissions.append(Admission(entry.request, images))
        free -= images
    return admissions
