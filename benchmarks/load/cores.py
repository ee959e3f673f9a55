"""Which cores the network gets and which the rest, so that the load generator takes no time from what it measures."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Layout:
    """`engine` is for the process that runs the network, `rest` for HTTP processes and the generator."""

    engine: tuple[int, ...]
    rest: tuple[int, ...]

    @property
    def shared(self) -> bool:
        """True when there is only one core: figures against the back-to-back limit then mean little."""
        return self.engine == self.rest


def layout(cores: Iterable[int]) -> Layout:
    """The first half for the network, the other half for the rest; a single core is for both."""
    ordered = tuple(sorted(cores))
    half = len(ordered) // 2
    return Layout(ordered[:half], ordered[half:]) if half else Layout(ordered, ordered)


def available() -> Layout:
    """The layout of the cores this process may use."""
    return layout(os.sched_getaffinity(0))


def pin(process: psutil.Process, cores: Sequence[int]) -> None:
    """Every thread a process has, and those it will start."""
    for thread in process.threads():
        try:
            os.sched_setaffinity(thread.id, cores)
        except ProcessLookupError:  # it has ended meanwhile
            continue
