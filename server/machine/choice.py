"""How many workers, threads and slots, and which backend: a pure function of measured times."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.scheduler.calibration import CallTimes, call_time, slots

STEPS = 4  # network calls of the image that the figures are about
PATIENCE = 1.5  # a lone image may take this many times as long as where it is fastest, for the sake of throughput
CLOSE = 0.97  # this share of the best throughput is as good; the layout with the faster lone image is taken
FASTER = 1.1  # another backend takes the place of the engine's where it is this many times as fast, and not for less


@dataclass(frozen=True)
class Layout:
    """What is measured: so many processes at the same time, each with a backend of so many threads."""

    backend: str
    workers: int
    threads: int  # of each process; 0: the backend's choice

    def __str__(self) -> str:
        threads = "threads as the backend likes" if self.threads == 0 else _count(self.threads, "thread")
        return f"{self.backend}, {_count(self.workers, 'worker')} of {threads}"


@dataclass(frozen=True)
class Fit:
    """A layout with its slots, and what it gives for images of STEPS calls."""

    layout: Layout
    capacity: int  # slots of each worker
    alone_s: float  # an image that has the server to itself
    images_per_s: float  # with every slot in use

    def __str__(self) -> str:
        return (
            f"{self.layout}, {self.capacity} slots each: {STEPS} steps alone {1e3 * self.alone_s:.1f} ms, "
            f"{self.images_per_s:.0f} images/s when full"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def layouts(cores: int, backends: Sequence[str], threads: int, most: int) -> list[Layout]:
    """What is worth measuring on so many cores: threads that double, and as many workers as then fit, `most` at most.

    threads: of a worker, where they are given; else 0.
    """
    doubled = [1 << power for power in range(cores.bit_length()) if 1 << power < cores]
    counts = [threads] if threads else [*doubled, cores]
    pairs = [(max(1, cores // each), each) for each in counts]
    fitting = [pair for pair in pairs if pair[0] <= most] or [(most, pairs[0][1])]
    return [Layout(backend, workers, each) for backend in backends for workers, each in fitting]


def fit(layout: Layout, calls: CallTimes, capacity: int) -> Fit:
    """calls: of the slowest of the workers, all running at once. capacity: where it is given; 0: chosen."""
    capacity = capacity or slots(calls)
    full_s = call_time(calls, capacity)
    return Fit(layout, capacity, STEPS * call_time(calls, 1), layout.workers * capacity / (STEPS * full_s))


def best_layout(fits: Iterable[Fit]) -> Fit:
    """The most images a second among those whose lone image is within PATIENCE; nearly as many count as many."""
    fits = list(fits)
    soonest_s = min(each.alone_s for each in fits)
    patient = [each for each in fits if each.alone_s <= PATIENCE * soonest_s]
    most = max(each.images_per_s for each in patient)
    good = [each for each in patient if each.images_per_s >= CLOSE * most]
    return min(good, key=lambda each: (each.alone_s, each.layout.workers))


def choose(measured: Mapping[Layout, CallTimes], own: str, capacity: int) -> Fit:
    """The layout to serve with. own: the engine's backend, which others must beat by FASTER, alone and full.

    Where nothing of the engine's own backend was measured, any other will do. Raises ValueError without measurements.
    """
    by_backend: dict[str, list[Fit]] = {}
    for layout, calls in measured.items():
        by_backend.setdefault(layout.backend, []).append(fit(layout, calls, capacity))
    if not by_backend:
        raise ValueError("nothing was measured")
    bests = {backend: best_layout(fits) for backend, fits in by_backend.items()}
    kept = bests.pop(own, None)
    rivals = sorted(bests.values(), key=lambda each: -each.images_per_s)
    if kept is None:
        return rivals[0]
    return next((each for each in rivals if gain(kept, each) >= FASTER), kept)


def gain(own: Fit, other: Fit) -> float:
    """How many times as fast the other is: the smaller of its ratios with a lone image and with a full server."""
    return min(own.alone_s / other.alone_s, other.images_per_s / own.images_per_s)
