"""Plays a schedule against a server: every request leaves when it is due, whether or not the last one is back.

A closed loop slows down with the server it measures; this one does not, and a request that leaves late still counts
from the moment it was due. How late they left is the generator's own lag, measured in every run.
"""

import asyncio
import csv
import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.load.arrivals import Arrival
from benchmarks.load.http_client import Pool, error_code, generate

NO_ANSWER = 0  # status of a request that got none: the time was up, or the connection broke


@dataclass(frozen=True)
class Record:
    """What became of one request; times in seconds since the start of the run."""

    due_s: float
    sent_s: float
    done_s: float
    steps: int
    images: int
    status: int  # HTTP status, or NO_ANSWER
    code: str = ""  # the error's code, or why there was no answer

    @property
    def latency_s(self) -> float:
        """From the moment it was due, so that a late generator cannot flatter the server."""
        return self.done_s - self.due_s

    @property
    def lag_s(self) -> float:
        """How late it left."""
        return self.sent_s - self.due_s


async def play(url: str, schedule: Sequence[Arrival], *, timeout_s: float = 60.0) -> list[Record]:
    """Send the schedule; returns when every request has its answer or its timeout. Records in order of the schedule."""
    pool = Pool(url)
    payloads = [generate({"steps": a.steps, "n": a.images, "seed": a.seed}) for a in schedule]
    tasks: list[asyncio.Task[Record]] = []
    gc.collect()
    gc.disable()  # a collection in the middle would look like a slow server
    try:
        start = time.perf_counter()
        for arrival, payload in zip(schedule, payloads, strict=True):
            wait = start + arrival.due_s - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(_one(pool, arrival, payload, start, timeout_s)))
        return await asyncio.gather(*tasks)
    finally:
        gc.enable()
        pool.close()


async def _one(pool: Pool, arrival: Arrival, payload: bytes, start: float, timeout_s: float) -> Record:
    status, code, sent = NO_ANSWER, "", time.perf_counter()
    try:
        connection = await pool.take()
        try:
            sent = time.perf_counter()
            answer = await asyncio.wait_for(connection.send(payload), timeout_s)
        finally:
            pool.give(connection)
        status, done = answer.status, answer.done_s
        code = error_code(answer) if status >= 400 else ""
    except TimeoutError:
        code, done = "timeout", time.perf_counter()
    except OSError as error:
        code, done = type(error).__name__, time.perf_counter()
    return Record(arrival.due_s, sent - start, done - start, arrival.steps, arrival.images, status, code)


def write_log(records: Sequence[Record], path: Path) -> None:
    """One CSV line per request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Record)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)
