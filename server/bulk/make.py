"""The images of an order's chunks, by the scheduler in this process or in several."""

import errno
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from export.manifest import engine_of
from fewstep.card import CheckpointError
from fewstep.pixels import Pixels
from server.bulk.inputs import InputsError
from server.bulk.journal import BulkError, Journal
from server.bulk.order import Order
from server.scheduler.loading import LoadOptions
from server.scheduler.local import EventStream, LocalService
from server.scheduler.refusal import Refusal

AHEAD = 3  # requests that wait for slots, each as large as a network call: the engine is never out of work


class Made(NamedTuple):
    """Some images are made; of the last ones of a chunk, its number: it is in the journal."""

    images: int
    chunk: int | None = None


MESSAGES = msgspec.json.Decoder(Made | str | None)  # of a worker: a sentence where it cannot go on, None at the end


@dataclass(frozen=True)
class Maker:
    """Where an order's images come from."""

    engine: Path
    order: Order
    journal: Journal
    options: LoadOptions

    def make(self, chunks: Sequence[int]) -> Iterator[Made]:
        """Make these chunks and keep them in the journal. Yields once when the engine is loaded, with no images.

        Raises Refusal, CheckpointError, InputsError, OSError.
        """
        order = self.order
        with LocalService.open({engine_of(order.manifest.name): self.engine}, self.options) as service:
            served = service.manifests.get(order.manifest.name)
            if served is None or (served.checkpoint, served.levels) != (
                order.manifest.checkpoint,
                order.manifest.levels,
            ):
                raise CheckpointError(
                    f"{self.engine} has changed since this command began: it serves another {order.manifest.name} now. "
                    "Start the command again"
                )
            yield Made(0)
            waiting: deque[tuple[int, bool, EventStream]] = deque()
            done: list[Pixels] = []
            for number in chunks:
                for first, count, last in parts(order, number):
                    waiting.append((number, last, service.submit(order.whole_request(first, count))))
                    if len(waiting) > AHEAD:
                        yield self._take(*waiting.popleft(), done)
            while waiting:
                yield self._take(*waiting.popleft(), done)

    def _take(self, number: int, last: bool, stream: EventStream, done: list[Pixels]) -> Made:
        images = stream.result().images
        done += images
        if last:
            self.journal.keep(number, np.stack(done))
            done.clear()
        return Made(len(images), number if last else None)

    def make_in(self, workers: int, chunks: Sequence[int]) -> Iterator[Made]:
        """Likewise, by so many processes. Raises BulkError when one of them ends early."""
        context = multiprocessing.get_context("spawn")
        links: dict[Connection, BaseProcess] = {}
        try:
            for worker in range(workers):
                ours, theirs = context.Pipe(duplex=False)
                own = replace(self, options=replace(self.options, process=worker))
                process = context.Process(target=_worker, args=(own, chunks[worker::workers], theirs), daemon=True)
                process.start()
                theirs.close()
                links[ours] = process
            while links:
                for link in wait(list(links)):
                    assert isinstance(link, Connection)
                    try:
                        message = MESSAGES.decode(link.recv_bytes())
                    except EOFError:
                        process = links.pop(link)
                        process.join()
                        raise BulkError(
                            f"a process that made images has ended (exit status {process.exitcode}); the images it had "
                            "finished are kept, and the same command goes on"
                        ) from None
                    if message is None:
                        links.pop(link).join()
                    elif isinstance(message, str):
                        raise BulkError(message)
                    else:
                        yield message
        finally:
            for process in links.values():
                process.kill()
                process.join()


def parts(order: Order, chunk: int) -> Iterator[tuple[int, int, bool]]:
    """The requests of a chunk: number of the first image, how many, whether it is the last."""
    begin = chunk * order.chunk
    end = min(begin + order.chunk, order.seeds.count)
    for first in range(begin, end, order.capacity):
        yield first, min(order.capacity, end - first), first + order.capacity >= end


def _worker(maker: Maker, chunks: Sequence[int], link: Connection) -> None:
    """The whole of a process: sends what is made, then None; a sentence where it cannot go on."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for made in maker.make(chunks):
            _send(link, made)
        _send(link, None)
    except (Refusal, CheckpointError, BulkError, InputsError, OSError) as error:
        _send(link, sentence(error, maker))
    except KeyboardInterrupt:
        pass  # the parent got it, too, and says so


def _send(link: Connection, message: Made | str | None) -> None:
    link.send_bytes(msgspec.json.encode(message))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)


def sentence(error: Exception, maker: Maker) -> str:
    """Why the work stopped, and what to do."""
    if isinstance(error, Refusal):
        return error.message
    if isinstance(error, OSError):
        return stopped(error, maker.journal.folder)
    return str(error)


def stopped(error: OSError, folder: Path) -> str:
    """A failure to write, in a sentence."""
    where = error.filename or folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "What is finished is kept; free some room, and the same command goes on"
        return f"{where} cannot be written: the disk is full. {advice}"
    return f"{where} cannot be written: {error.strerror or error}. What is finished is kept; the same command goes on"
