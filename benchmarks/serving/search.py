"""The highest rate whose 99th percentile is within a bound, by doubling and bisection."""

import math
import sys
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.load.open_loop import Record
from benchmarks.load.run_summary import MAX_LAG_S
from benchmarks.serving.figures import keeps_p99, over
from benchmarks.serving.offering import Load, ServeError, Watch, offer, schedule
from benchmarks.serving.target import Target
from benchmarks.serving.told import Told
from benchmarks.serving.units import shown

FACTOR = 1.05  # the rate that is too high over the one that is kept, at the end
MAX_RATE = 100_000.0


@dataclass(frozen=True)
class Trial:
    """One rate of a search. on_time: the generator kept up; without it, `kept` says nothing of the server."""

    rate: float
    kept: bool
    on_time: bool
    records: list[Record] = field(repr=False)
    told: Told = field(repr=False)


async def search(target: Target, load: Load, bound_s: float, start: float, timeout_s: float) -> list[Trial]:
    """Trials of rates, by doubling or halving and then bisection; the highest kept is within FACTOR of the limit.

    A trial ends as soon as too many requests are late for the rest to make up. Raises ServeError when the generator
    cannot offer what the server would take.
    """
    trials: list[Trial] = []

    async def kept(rate: float) -> bool:
        trial = await attempt(target, replace(load, rate=rate, seed=load.seed + len(trials)), bound_s, timeout_s)
        trials.append(trial)
        _tell(trial, bound_s)
        if not trial.on_time and not trial.kept:
            best = max((each.rate for each in trials if each.kept), default=None)
            said = f"{best:.4g} requests/s are within {shown(bound_s)}; " if best else ""
            raise ServeError(f"{said}this generator cannot offer {rate:.4g} on time; run it on a machine of its own")
        return trial.kept

    low, high = 0.0, math.inf
    rate = start
    while not (low and high < math.inf):
        low, high = (rate, high) if await kept(rate) else (low, rate)
        rate = rate * 2 if high == math.inf else rate / 2
        if not 1e-3 <= rate <= MAX_RATE:
            raise ServeError(f"no rate from 0.001 to {MAX_RATE:g} requests/s is the limit; is --p99 right?")
    while high / low > FACTOR:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if await kept(middle) else (low, middle)
    return trials


async def confirm(target: Target, load: Load, bound_s: float, timeout_s: float) -> list[Trial]:
    """Trials of load.rate, each lower than the last one by FACTOR, until one is kept for the whole of load.duration_s.

    A rate that was kept for ten seconds need not be kept for ten minutes. Raises ServeError below half of the rate.
    """
    trials: list[Trial] = []
    rate = load.rate
    while rate > load.rate / 2:
        trials.append(await attempt(target, replace(load, rate=rate, seed=load.seed + len(trials)), bound_s, timeout_s))
        _tell(trials[-1], bound_s)
        if trials[-1].kept:
            return trials
        rate /= FACTOR
    raise ServeError(
        f"{load.rate:.4g} requests/s were within {shown(bound_s)} for a short while, and half of them are not for "
        f"{shown(load.length_s)}: the machine is busy, or the search's --duration is too short"
    )


def _tell(trial: Trial, bound_s: float) -> None:
    late = "" if trial.on_time else "; the generator was late"
    said = "within" if trial.kept else "beyond"
    print(f"serve  {trial.rate:.4g} requests/s: {said} {shown(bound_s)}{late}", file=sys.stderr, flush=True)


async def attempt(target: Target, load: Load, bound_s: float, timeout_s: float) -> Trial:
    """One rate. It is kept when 99 % of what was due was answered within the bound."""
    due = sum(arrival.due_s >= 0 for arrival in schedule(load, target.mix))
    late = 0

    def limit(record: Record) -> bool:
        nonlocal late
        late += record.due_s >= load.warmup_s and over([record], bound_s)
        return 100 * late <= due

    watch = Watch(target, limit)
    records = await offer(target, load, watch, timeout_s)
    lag_s = float(np.percentile([record.lag_s for record in records], 99)) if records else 0.0
    kept = len(records) == due and keeps_p99(records, bound_s)
    return Trial(load.rate, kept, lag_s <= MAX_LAG_S, records, watch.told)
