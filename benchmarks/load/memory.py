"""Memory of a server's processes over time, and whether it grows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import psutil

SETTLING = 0.3  # the first share of a process's samples, in which caches and pools fill


class Sample(NamedTuple):
    """One process at one moment."""

    at_s: float
    role: str  # "parent", "http" or "worker"
    pid: int
    rss_mb: float
    pss_mb: float  # shared pages counted in parts


@dataclass(frozen=True)
class Growth:
    """A straight line through one process's samples after its settling."""

    role: str
    pid: int
    samples: int
    first_mb: float
    last_mb: float
    peak_mb: float
    mb_per_hour: float
    grown_mb: float  # what the line rises by over the samples it was fitted to


def sample(at_s: float, roles: dict[str, list[psutil.Process]]) -> list[Sample]:
    """All processes that still run."""
    found = []
    for role, processes in roles.items():
        for process in processes:
            try:
                memory = process.memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if memory.rss:  # a zombie has none
                found.append(Sample(at_s, role, process.pid, memory.rss / 2**20, memory.pss / 2**20))
    return found


def growth(samples: Sequence[Sample]) -> list[Growth]:
    """Of every process with enough samples to draw a line through, by RSS.

    PSS counts a shared page once over all processes, but it moves when another process takes or drops such a page.
    """
    found = []
    for role, pid in dict.fromkeys((s.role, s.pid) for s in samples):
        mine = [s for s in samples if s.pid == pid]
        line = mine[int(len(mine) * SETTLING) :]
        if len(line) < 3:
            continue
        times, sizes = np.array([[s.at_s, s.rss_mb] for s in line]).T
        slope = float(np.polyfit(times - times[0], sizes, 1)[0])
        found.append(
            Growth(
                role=role,
                pid=pid,
                samples=len(line),
                first_mb=mine[0].rss_mb,
                last_mb=mine[-1].rss_mb,
                peak_mb=max(s.rss_mb for s in mine),
                mb_per_hour=slope * 3600,
                grown_mb=slope * float(times[-1] - times[0]),
            )
        )
    return found
