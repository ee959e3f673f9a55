"""How many images the server accepts: a bound, and the seconds after which a refused client should come back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct

from server.processes.shared import SharedTable
from server.scheduler.refusal import Refusal, invalid


@dataclass(frozen=True)
class Room:
    """What the running workers have for one model."""

    slots: int  # of all workers together
    workers: int
    row_s: float  # seconds of one worker per row of a full network call


class Ticket(Struct, frozen=True):
    """What a request that was admitted gives back when it ends."""

    model: str
    images: int
    work_s: float  # seconds of one worker that its rows need


class Admission:
    """Counts images accepted and not yet answered, of all models and of all HTTP processes.

    max_queue: images that may wait for a slot. most: images that fit when every worker of the server is there;
    empty while unknown. `rooms` is kept up to date by the WorkerPool.
    """

    def __init__(self, max_queue: int, models: Sequence[str], processes: int = 1) -> None:
        """Create it before the HTTP processes are forked."""
        self.max_queue = max_queue
        self.rooms: Mapping[str, Room] = {}
        self.most: dict[str, int] = {}
        self.columns = {model: column for column, model in enumerate(models)}  # and behind them the seconds of work
        self.table = SharedTable(processes, len(models) + 1)
        self.own = self.table.row(0)

    def use_row(self, process: int) -> None:
        """Say in each HTTP process which one it is."""
        self.own = self.table.row(process)

    @property
    def images(self) -> int:
        """Accepted and not yet answered."""
        return sum(map(self.held, self.columns))

    @property
    def work_s(self) -> float:
        """Device time that the accepted images need."""
        return self.table.total(len(self.columns))

    def held(self, model: str) -> int:
        """Images of one model, accepted and not yet answered."""
        return int(self.table.total(self.columns[model]))

    def enter(self, model: str, images: int, calls: int) -> Ticket:
        """Admit a request. calls: network calls per image.

        Raises Refusal: "full" when too many would wait, "invalid" when so many never fit.
        """
        room = self.rooms[model]
        most = max(room.slots, self.most.get(model, 0)) + self.max_queue
        if images > most:
            message = f"n must be at most {most}: more images never fit into this server's queue"
            raise invalid(message, code="out_of_range", param="n")
        with self.table.locked():
            excess = self._waiting(model, images) - self.max_queue
            if excess > 0:
                raise self._full(excess, room.workers)
            ticket = Ticket(model, images, images * calls * room.row_s)
            self._add(ticket, 1)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The request was answered, failed or left."""
        self._add(ticket, -1)
        if not any(self.own[:-1]):  # no rounding errors are kept
            self.own[-1] = 0.0

    def _add(self, ticket: Ticket, sign: int) -> None:
        self.own[self.columns[ticket.model]] += sign * ticket.images
        self.own[-1] += sign * ticket.work_s

    def _full(self, excess: int, workers: int) -> Refusal:
        images = self.images
        seconds = retry_after_s(self.work_s, images, excess, workers)
        message = f"the queue is full ({images} images are being made); try again in {seconds} s"
        return Refusal("full", "queue_full", message, retry_after_s=seconds)

    def _waiting(self, model: str, more: int) -> int:
        """Images without a slot if `more` of a model were admitted."""
        held = {name: self.held(name) + (more if name == model else 0) for name in self.columns}
        return sum(max(0, images - self.rooms[name].slots) for name, images in held.items() if images)


def retry_after_s(work_s: float, images: int, excess: int, workers: int) -> int:
    """Whole seconds until `excess` of `images` will have been answered, were all slots busy; at least 1."""
    return max(1, math.ceil(work_s / max(images, 1) * excess / workers - 1e-9))
