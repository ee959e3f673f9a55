"""Measure the call times of a layout: its processes, each with an engine of its own, all at the same time."""

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

import msgspec

from fewstep.cache_folder import cache_folder
from fewstep.card import CheckpointError
from server.machine.choice import Layout
from server.scheduler.calibration import doubling
from server.scheduler.loading import LoadOptions, measure_ticks, own_cores, slot_table

SIZES = doubling(32)  # a CPU's knee lies below; a backend of fixed shapes compiles each
TIMEOUT_S = 120.0  # for a layout: seconds of loading, and less than one of measuring
Report = dict[int, float] | str  # seconds of a call by batch size; or why there are none
GO = b"go"


@dataclass(frozen=True)
class LayoutError(Exception):
    """A layout that does not run here, and why, in a sentence."""

    why: str
    lasting: bool = False  # the backend or the engine refuses; else the next start tries again


def measure_layout(folder: Path, layout: Layout, timeout_s: float = TIMEOUT_S) -> dict[int, float]:
    """Seconds of a network call with the step around it, by batch size: of the slowest process. Raises LayoutError.

    Call it in a process of one thread, which it forks: none of the engine's libraries is loaded here.
    """
    context = multiprocessing.get_context("fork")
    links: list[Connection] = []
    processes: list[ForkProcess] = []
    try:
        for number in range(layout.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_measure, args=(folder, layout, number, theirs, [*links, ours]))
            process.start()
            theirs.close()
            links.append(ours)
            processes.append(process)
        until_s = time.monotonic() + timeout_s
        _answers(links, until_s)  # each has loaded its engine
        for link in links:
            link.send_bytes(GO)
        times = _answers(links, until_s)
    except OSError as error:
        raise LayoutError(f"{layout} cannot be measured: {error.strerror or error}") from error
    finally:
        for link in links:
            link.close()
        for process in processes:
            process.kill()
            process.join()
    shared = set.intersection(*(set(each) for each in times))
    return {size: max(each[size] for each in times) for size in sorted(shared)}


def _answers(links: Sequence[Connection], until_s: float) -> list[dict[int, float]]:
    """What each process sends next. Raises LayoutError where one cannot go on, sends nothing in time, or has ended."""
    reports: dict[Connection, dict[int, float]] = {}
    while len(reports) < len(links):
        ready = wait([link for link in links if link not in reports], max(0.0, until_s - time.monotonic()))
        if not ready:
            raise LayoutError("it sent nothing in time")
        for link in ready:
            assert isinstance(link, Connection)
            try:
                answer = msgspec.json.decode(link.recv_bytes(), type=Report)
            except (EOFError, ConnectionError):
                raise LayoutError("a process that measured has ended") from None
            if isinstance(answer, str):
                raise LayoutError(answer, lasting=True)
            reports[link] = answer
    return [reports[link] for link in links]


def _send(link: Connection, report: Report) -> None:
    link.send_bytes(msgspec.json.encode(report))


def _measure(folder: Path, layout: Layout, number: int, link: Connection, others: Sequence[Connection]) -> None:
    """The whole of a process: reports that it has loaded, waits for the others, then reports the times."""
    for other in others:
        other.close()  # or the end of the parent would not be seen
    try:
        _send(link, _times(folder, layout, number, link))
    except CheckpointError as error:
        _send(link, str(error))
    except (EOFError, ConnectionError):  # the parent has given up
        pass
    except Exception as error:  # of a library; another layout may run
        _send(link, f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    os._exit(0)  # a library's own clean-up has nothing to keep


def _times(folder: Path, layout: Layout, number: int, link: Connection) -> dict[int, float]:
    from export.engine import load_engine

    options = LoadOptions(layout.backend, threads=layout.threads, processes=layout.workers, process=number)
    with own_cores(options, layout.backend) as fixed:
        engine = load_engine(
            folder, backend=layout.backend, threads=fixed.threads, buckets=SIZES, compiled=cache_folder("compiled")
        )  # what is compiled here, the server's workers read
        if engine.device != "cpu":
            raise CheckpointError(f"{layout.backend} runs on a GPU here, where layouts of cores say nothing")
        table = slot_table(engine, SIZES)
        measure_ticks(table, SIZES[:1])
        _send(link, {})
        link.recv_bytes()
        return measure_ticks(table, SIZES)
