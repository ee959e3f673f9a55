"""One run: a schedule of arrivals, played against a server, with a line of progress every two seconds."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.load.arrivals import Arrival
from benchmarks.load.http_client import Answer
from benchmarks.load.open_loop import Asking, Record, play
from benchmarks.serving.arrivals import first, times
from benchmarks.serving.figures import good
from benchmarks.serving.mix import Mix, draw_kinds
from benchmarks.serving.target import Target
from benchmarks.serving.told import Told
from benchmarks.serving.units import shown

PROGRESS_S = 2.0
SEEDS = 2**30  # where images' seeds begin is drawn below it: they fit 32 bits, which some servers want


class ServeError(Exception):
    """Why there is nothing to measure; one sentence."""


@dataclass(frozen=True)
class Load:
    """What is offered. Either count or duration_s says how long."""

    rate: float  # requests/s
    duration_s: float
    count: int | None = None
    warmup_s: float = 2.0
    seed: int = 0

    @property
    def length_s(self) -> float:
        return self.count / self.rate if self.count else self.duration_s


@dataclass
class Watch:
    """Counts answers while a run goes on, for the line that is printed every PROGRESS_S."""

    asking: Target
    limit: Callable[[Record], bool] = lambda record: True
    answered: int = 0
    failed: int = 0
    recent_s: list[float] = field(default_factory=list)  # latencies since the last line
    counted_from_s: float = 0.0  # what was due before is of the warm-up
    told: Told = field(default_factory=Told)

    def judge(self, arrival: Arrival, answer: Answer) -> str:
        wrong = self.asking.judge(arrival, answer)
        if not wrong and arrival.due_s >= self.counted_from_s:
            self.told.note(answer)
        return wrong

    def keep_on(self, record: Record) -> bool:
        if good(record):
            self.answered += 1
            self.recent_s.append(record.latency_s)
        else:
            self.failed += 1
        return self.limit(record)

    def line(self, passed_s: float, whole_s: float) -> str:
        """And begin with the latencies of the next one."""
        p99 = f", lately p99 {shown(float(np.percentile(self.recent_s, 99)))}" if self.recent_s else ""
        self.recent_s.clear()
        return f"serve  {passed_s:.0f} of {whole_s:.0f} s: {self.answered} answered, {self.failed} failed{p99}"


def schedule(load: Load, mix: Mix) -> tuple[Arrival, ...]:
    """Poisson arrivals; those of the warm-up are due before 0. Image seeds are distinct. Raises ValueError if empty."""
    warm_rng, due_rng, kind_rng, seed_rng = np.random.default_rng(load.seed).spawn(4)
    warm = times("poisson", load.rate, load.warmup_s, warm_rng) - load.warmup_s if load.warmup_s else np.empty(0)
    due = first(load.rate, load.count, due_rng) if load.count else times("poisson", load.rate, load.duration_s, due_rng)
    if not len(due):
        raise ValueError(f"{load.rate:g} requests/s for {shown(load.duration_s)} made no request; run longer")
    at = np.concatenate([warm, due])
    kinds = draw_kinds(mix, len(at), kind_rng)
    images = np.array([kind.images for kind in mix])[kinds]
    seeds = seed_rng.integers(SEEDS) + np.concatenate([[0], np.cumsum(images)[:-1]])
    return tuple(
        Arrival(float(due_s), mix[kind].steps or 0, mix[kind].images, int(seed), int(kind))
        for due_s, kind, seed in zip(at, kinds, seeds, strict=True)
    )


async def offer(target: Target, load: Load, watch: Watch, timeout_s: float) -> list[Record]:
    """One run; the records of what was due after the warm-up. watch.limit may end it early."""
    arrivals = [replace(each, due_s=each.due_s + load.warmup_s) for each in schedule(load, target.mix)]
    began, whole_s = time.perf_counter(), load.warmup_s + load.length_s
    watch.counted_from_s = load.warmup_s
    asking = Asking(target.post, watch.judge, watch.keep_on, timeout_s)
    ticker = asyncio.create_task(_tell(lambda: watch.line(time.perf_counter() - began, whole_s)))
    try:
        records = await play(target.base_url, arrivals, asking)
    finally:
        ticker.cancel()
    counted = [record for record in records if record.due_s >= load.warmup_s]
    return [
        replace(r, due_s=r.due_s - load.warmup_s, sent_s=r.sent_s - load.warmup_s, done_s=r.done_s - load.warmup_s)
        for r in counted
    ]


async def _tell(line: Callable[[], str]) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        print(line(), file=sys.stderr, flush=True)
