"""How much the server takes on: a bound in images, and an honest answer to "when should I come back?"."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from server.http.errors import ApiError, invalid


@dataclass(frozen=True)
class Room:
    """What the living workers have for one model."""

    slots: int  # of all workers together
    workers: int
    row_s: float  # seconds of one worker per row of a full network call


@dataclass(frozen=True)
class Ticket:
    """What a request that was let in must give back when it leaves."""

    model: str
    images: int
    work_s: float  # seconds of one worker that its rows need


class Admission:
    """Counts images accepted and not yet answered, of all models, and the time that their network calls will take.

    max_queue: images that may wait for a slot. `rooms` is kept up to date by the EngineClient.
    """

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self.rooms: Mapping[str, Room] = {}
        self.held: Counter[str] = Counter()  # images by model
        self.work_s = 0.0

    @property
    def images(self) -> int:
        """Accepted and not yet answered."""
        return self.held.total()

    def enter(self, model: str, images: int, calls: int) -> Ticket:
        """Let a request in. ApiError 429 with Retry-After when too many would wait, 400 when it could never fit.

        calls: network calls per image.
        """
        room = self.rooms[model]
        if images > room.slots + self.max_queue:
            message = f"n must be at most {room.slots + self.max_queue}: more images never fit into this server's queue"
            raise invalid(message, code="out_of_range", param="n")
        excess = self._waiting(model, images) - self.max_queue
        if excess > 0:
            seconds = self.retry_after_s(excess, room.workers)
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"the queue is full ({self.images} images are being made); try again in {seconds} s",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        ticket = Ticket(model, images, images * calls * room.row_s)
        self.held[model] += images
        self.work_s += ticket.work_s
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The request was answered, failed or left."""
        self.held[ticket.model] -= ticket.images
        self.work_s = self.work_s - ticket.work_s if self.images else 0.0  # no rounding errors are kept

    def retry_after_s(self, excess: int, workers: int) -> int:
        """Whole seconds until `excess` images will have been answered, were all slots busy; at least 1."""
        return max(1, math.ceil(self.work_s / self.images * excess / workers - 1e-9))

    def _waiting(self, model: str, more: int) -> int:
        """Images without a slot if `more` of a model were let in."""
        held = self.held + Counter({model: more})
        return sum(max(0, images - self.rooms[name].slots) for name, images in held.items())
