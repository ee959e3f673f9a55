"""Who gets the free slots, and whose turn it is: pure functions of what waits, what runs, and the time."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from msgspec import Struct
from msgspec.structs import replace


class Waiting(Struct, frozen=True):
    """A request with images that have no slot yet."""

    request: int
    images: int  # still without a slot, at least 1
    arrived_s: float  # monotonic clock
    deadline_s: float = math.inf  # same clock
    calls: int = 1  # network calls of each image
    batch: bool = False  # of priority "batch": no user waits for it
    slots: int = 1  # that each image takes

    @property
    def work(self) -> int:
        """Rows of network calls of the images without a slot."""
        return self.images * self.calls * self.slots


class Grant(Struct, frozen=True):
    request: int
    images: int


# (waiting in order of arrival, free slots, now_s) -> who gets slots for how many images, in order
Policy = Callable[[Iterable[Waiting], int, float], list[Grant]]


def fifo(waiting: Iterable[Waiting], free: int, now_s: float) -> list[Grant]:
    """First come, first served, image by image: a request larger than the free slots takes them all. Where an image of
    two slots waits for the second one, later requests wait behind it."""
    grants: list[Grant] = []
    for entry in waiting:
        images = min(entry.images, free // entry.slots)
        if images:
            grants.append(Grant(entry.request, images))
            free -= images * entry.slots
        if free == 0 or images < entry.images:
            break
    return grants


def earliest_deadline(waiting: Iterable[Waiting], free: int, now_s: float) -> list[Grant]:
    """The request that must be answered first is served first; equal deadlines in order of arrival.

    One whose deadline has passed is not served at all. No request starves as long as deadlines are finite: the
    deadline of one that waits stays, while those of later ones move on with the clock.
    """
    alive = (entry for entry in waiting if entry.deadline_s > now_s)
    return fifo(sorted(alive, key=lambda entry: entry.deadline_s), free, now_s)


def shortest(waiting: Iterable[Waiting], free: int, now_s: float, ageing: float) -> list[Grant]:
    """The request with the least work first, where each second of waiting counts for `ageing` (> 0) calls less.

    No request starves: work less the credit for waiting orders requests as work + ageing * arrival does, so a request
    of work w is overtaken only by requests that arrive within w / ageing seconds after it. Images that have a slot
    keep it. docs/operations.md says what it gains.
    """
    return fifo(sorted(waiting, key=lambda entry: entry.work + ageing * entry.arrived_s), free, now_s)


def behind_interactive(
    waiting: Iterable[Waiting], free: int, now_s: float, policy: Policy, delay_s: float
) -> list[Grant]:
    """A policy in which a request of priority "batch" counts as if it and its deadline had come delay_s later.

    No batch request starves where none does under the policy: under `fifo` it is overtaken only by requests that arrive
    within delay_s after it. Among themselves, batch requests keep the policy's order.
    """
    if not free:
        return []
    entries = list(waiting)
    if any(entry.batch for entry in entries):
        entries = [_later(entry, delay_s) if entry.batch else entry for entry in entries if entry.deadline_s > now_s]
        entries.sort(key=lambda entry: entry.arrived_s)  # stable: equal times in order of arrival
    return policy(entries, free, now_s)


def policy_of(name: str, ageing: float, batch_delay_s: float) -> Policy:
    """The policy of a server's settings. name: fifo, deadline or shortest.

    ageing: of `shortest`, > 0. batch_delay_s: of `behind_interactive`.
    """
    policies: dict[str, Policy] = {
        "fifo": fifo, "deadline": earliest_deadline, "shortest": partial(shortest, ageing=ageing),
    }  # fmt: skip
    return partial(behind_interactive, policy=policies[name], delay_s=batch_delay_s)


def _later(entry: Waiting, delay_s: float) -> Waiting:
    return replace(entry, arrived_s=entry.arrived_s + delay_s, deadline_s=entry.deadline_s + delay_s)


def least_served(busy: Mapping[str, float]) -> str:
    """The model whose turn it is: the one that has had the least time on the device. Ties go to the first.

    busy: seconds on the device by model, for the models with work, at least one. Two models with work all the
    time get half of the device each, however different their network calls are in length.
    """
    return min(busy, key=lambda model: busy[model])
