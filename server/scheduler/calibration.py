"""How long a tick takes by batch size, and what follows: the number of slots and the batch sizes to use.

The knee and the buckets are pure functions of measured times. Measuring takes a fraction of a second, because only
sizes that double are measured and the rest is interpolated.
"""

import fcntl
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import inf
from types import MappingProxyType

CallTimes = Mapping[int, float]  # batch size -> seconds of one network call, with the step around it
EMPTY: Mapping[str, CallTimes] = MappingProxyType({})  # no model's

KNEE = 0.9  # share of the best throughput that is enough; more slots buy little and cost latency
# The 99th percentile at load 0.8 is within its bound (benchmarks/load/capacity.py) with 24 slots, at 4 + 3.1 B ms a
# call as at 20 + 1.25 B; 16 exceed it by a quarter, 8 by two fifths.
MIN_SLOTS = 24
SHORT_S = 1.0  # an image that arrives waits for the call that runs
EXACT_SLOTS = 8  # in exact mode, where a lone image takes as long as a full batch, and bytes may not depend on a clock
WORTH = 0.03  # a bucket that saves less than this share of the call it would be padded to is left out
MAX_KNEE = 128  # larger batches are not tried on a network that takes any size
BUDGET_S = 0.3  # no larger size is tried once timed calls have taken this long together
REPEATS = 4  # at most; the fastest counts
SHARED_BYTES = 2**20  # of all measured times: a thousand models; pages that are not used take no memory
AGREE = 0.1  # calls of one size are not repeated once the two fastest differ by less than this share


def measure(
    call: Callable[[int], object],
    sizes: Iterable[int],
    clock: Callable[[], float] = time.perf_counter,
    enough: float = inf,
) -> dict[int, float]:
    """Seconds of `call(size)` for ascending sizes, until the budget is spent; always at least the first size.

    enough: from this size on, larger ones are tried only while the last one raised the best throughput to 1 / KNEE.

    The first call of a size may allocate or compile, so it is repeated at least once and is not taken from the
    budget. A size that seems slower than a larger one is given the larger one's time: the batch could be padded, and
    noise only ever adds.
    """
    times: dict[int, float] = {}
    spent_s = 0.0
    for size in sizes:
        taken: list[float] = []
        while len(taken) < 2 or (len(taken) < REPEATS and taken[1] > (1 + AGREE) * taken[0]):
            before_s = clock()
            call(size)
            elapsed_s = clock() - before_s
            spent_s += elapsed_s if taken else 0.0
            taken = sorted([*taken, elapsed_s])
            if spent_s > BUDGET_S:
                break
        best = max((other / seconds for other, seconds in times.items()), default=0.0)
        times[size] = taken[0]
        if spent_s > BUDGET_S or (size >= enough and KNEE * size <= best * taken[0]):
            break
    return {size: min(seconds for other, seconds in times.items() if other >= size) for size in times}


def doubling(limit: int) -> tuple[int, ...]:
    """1, 2, 4, ... below the limit, and the limit."""
    return (*(2**power for power in range((limit - 1).bit_length())), limit)


def call_time(times: CallTimes, size: int) -> float:
    """t(size) in seconds: linear between measured sizes and beyond the last two, constant below the first."""
    sizes = sorted(times)
    if size in times:
        return times[size]
    if size < sizes[0]:
        return times[sizes[0]]
    if len(sizes) == 1:
        return times[sizes[0]] * size / sizes[0]
    low, high = next(((a, b) for a, b in pairwise(sizes) if size < b), (sizes[-2], sizes[-1]))
    slope = (times[high] - times[low]) / (high - low)
    return times[low] + slope * (size - low)


def knee(times: CallTimes) -> int:
    """The smallest batch size B whose throughput B / t(B) is KNEE of the best one measured.

    Every size up to the largest one measured is considered, not only the measured ones.
    """
    best = max(size / seconds for size, seconds in times.items())
    return next(
        size for size in range(min(times), max(times) + 1) if size / call_time(times, size) >= KNEE * best - 1e-9
    )


def slots(times: CallTimes) -> int:
    """How many slots call times ask for: up to the knee, and MIN_SLOTS at least where a call over them is short."""
    least = next((size for size in range(MIN_SLOTS, 1, -1) if call_time(times, size) <= SHORT_S), 1)
    return max(least, knee(times))


def choose_buckets(candidates: Sequence[int], times: CallTimes) -> tuple[int, ...]:
    """Of ascending batch sizes, those worth having; the last one always is.

    Going down, a size is kept when a call of it is shorter by WORTH than one of the next size kept. Where
    t(B) is flat, few are left; where every row costs, nearly all.
    """
    kept = [candidates[-1]]
    for size in reversed(candidates[:-1]):
        if call_time(times, size) <= (1 - WORTH) * call_time(times, kept[0]):
            kept.insert(0, size)
    return tuple(kept)


class SharedTimes:
    """Measured times of each model, shared by all workers of a server, and by those that replace them.

    The first worker to ask for a model measures it while the others wait, so that all choose the same number of
    slots, which exact mode needs. Memory that forked processes share; the file in memory is empty and serves as a lock,
    which the system releases when its holder dies. A limit on the size of files (ulimit -f) concerns neither.
    """

    def __init__(
        self,
        known: Mapping[str, CallTimes] = EMPTY,
        keep: Callable[[str, CallTimes], object] = lambda model, times: None,
    ) -> None:
        """known: times by model that need not be measured. keep: called with a model and its times by the worker that
        has measured them."""
        self.keep = keep
        self.memory = mmap.mmap(-1, SHARED_BYTES)
        self.lock = os.memfd_create("measured times")
        self._write({name: dict(times) for name, times in known.items()})

    def close(self) -> None:
        """Give both back. A server keeps them for as long as it runs."""
        self.memory.close()
        os.close(self.lock)

    def get(self, model: str, measured: Callable[[], CallTimes]) -> dict[int, float]:
        """The times of a model; `measured` is called when no worker has measured them yet."""
        fcntl.lockf(self.lock, fcntl.LOCK_EX)
        try:
            known = json.loads(self.memory[:].rstrip(b"\0"))
            if model not in known:
                known[model] = dict(measured())
                self._write(known)
                self.keep(model, known[model])
            return {int(batch): seconds for batch, seconds in known[model].items()}
        finally:
            fcntl.lockf(self.lock, fcntl.LOCK_UN)

    def _write(self, known: Mapping[str, CallTimes]) -> None:
        text = json.dumps(known).encode()  # never shorter than before
        self.memory[: len(text)] = text
