"""Plays a schedule against a server: every request leaves when it is due, whether or not the last one is back.

A closed loop slows down with the server it measures; this one does not, and a request that leaves late still counts
from the moment it was due. How late they left is the generator's own lag, measured in every run.
"""

import asyncio
import csv
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.load.arrivals import Arrival
from benchmarks.load.http_client import Answer, Pool, error_code, generate

NO_ANSWER = 0  # status of a request that got none: the time was up, or the connection broke


@dataclass(frozen=True)
class Record:
    """What became of one request; times in seconds since the start of the run."""

    due_s: float
    sent_s: float  # when there was a connection for it, or a place for another one, whose opening is the server's time
    done_s: float
    steps: int
    images: int
    status: int  # HTTP status, or NO_ANSWER
    code: str = ""  # the error's code, or why there was no answer
    kind: int = 0  # Arrival.kind

    @property
    def latency_s(self) -> float:
        """From the moment it was due, so that a late generator cannot flatter the server."""
        return self.done_s - self.due_s

    @property
    def lag_s(self) -> float:
        """How late it left."""
        return self.sent_s - self.due_s


def native(arrival: Arrival) -> bytes:
    """The bytes of a request to /v1/generate."""
    return generate({"steps": arrival.steps, "n": arrival.images, "seed": arrival.seed})


def code_of(arrival: Arrival, answer: Answer) -> str:
    """What is wrong with an answer, in a word: the code of its error."""
    return error_code(answer) if answer.status >= 400 else ""


@dataclass(frozen=True)
class Asking:
    """How requests are written and judged. keep_on: told of each record; False ends the run, with what there is."""

    payload: Callable[[Arrival], bytes] = native
    judge: Callable[[Arrival, Answer], str] = code_of
    keep_on: Callable[[Record], bool] = lambda record: True
    timeout_s: float = 60.0


async def play(
    url: str, schedule: Sequence[Arrival], asking: Asking | None = None, pool: Pool | None = None
) -> list[Record]:
    """Send the schedule; returns when every request has its answer or its timeout. Records in order of the schedule.

    pool: connections to the same server that are open already; it stays open.
    """
    asking, own, pool = asking or Asking(), pool is None, pool or Pool(url)
    records: list[Record | None] = [None] * len(schedule)
    tasks: set[asyncio.Task[None]] = set()
    mistakes: list[Exception] = []
    stopped = asyncio.Event()

    async def one(index: int, start: float) -> None:
        try:
            records[index] = record = await _one(pool, schedule[index], asking, start)
            if asking.keep_on(record):
                return
        except Exception as error:  # of ours: a record that is missing would flatter the server
            mistakes.append(error)
        stopped.set()

    gc.collect()
    gc.disable()  # a collection in the middle would look like a slow server
    try:
        start = time.perf_counter()
        for index, arrival in enumerate(schedule):
            wait = start + arrival.due_s - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if stopped.is_set():
                break
            task = asyncio.create_task(one(index, start))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        answered, stopping = asyncio.gather(*tasks), asyncio.create_task(stopped.wait())
        await asyncio.wait((answered, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(answered, return_exceptions=True)
        if mistakes:
            raise mistakes[0]
        return [record for record in records if record is not None]
    finally:
        gc.enable()
        if own:
            pool.close()


async def _one(pool: Pool, arrival: Arrival, asking: Asking, start: float) -> Record:
    status, code, sent = NO_ANSWER, "", time.perf_counter()
    try:
        payload = asking.payload(arrival)
        async with asyncio.timeout(asking.timeout_s):
            connection = await pool.take()
            try:
                sent = connection.placed_s
                answer = await connection.send(payload)
            finally:
                pool.give(connection)
        status, done = answer.status, answer.done_s
        code = asking.judge(arrival, answer)
    except TimeoutError:
        code, done = "timeout", time.perf_counter()
    except OSError as error:
        code, done = type(error).__name__, time.perf_counter()
    return Record(arrival.due_s, sent - start, done - start, arrival.steps, arrival.images, status, code, arrival.kind)


def write_log(records: Sequence[Record], path: Path) -> None:
    """One CSV line per request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Record)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)
