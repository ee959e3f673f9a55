"""From a run's records to the figures of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.load.open_loop import Record

MAX_LAG_S = 0.010  # a generator whose 99th percentile is later than this did not offer what it says
SUSTAINED = 0.97  # answered over offered, below which a backlog grows


@dataclass(frozen=True)
class RunSummary:
    """One open-loop run between its warm-up and the end of its schedule. Percentiles are of answers with 200."""

    requests: int  # due in the window
    offered_per_s: float  # images
    images_per_s: float  # answered with 200 in the window, whenever they were due
    goodput_per_s: float  # images due in the window and answered with 200 within the limit
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    rejects: int  # 429
    reject_p99_ms: float | None
    errors: int  # neither 200 nor 429
    lag_p99_ms: float
    valid: bool  # the generator kept up
    sustained: bool  # no rejects, no errors, no growing backlog


def summarise(records: Sequence[Record], warmup_s: float, duration_s: float, limit_s: float) -> RunSummary:
    """limit_s: the latency up to which an answer counts as goodput. Raises ValueError when nothing was due."""
    due = [record for record in records if warmup_s <= record.due_s < duration_s]
    if not due:
        raise ValueError(f"no request was due between {warmup_s:g} and {duration_s:g} s; run longer")
    window_s = duration_s - warmup_s
    good = [record for record in due if record.status == 200]
    rejects = [record.latency_s for record in due if record.status == 429]
    latencies = [record.latency_s for record in good]
    done = sum(r.images for r in records if r.status == 200 and warmup_s <= r.done_s < duration_s)
    offered = sum(record.images for record in due)
    lag = float(np.percentile([record.lag_s for record in due], 99))
    errors = len(due) - len(good) - len(rejects)
    return RunSummary(
        requests=len(due),
        offered_per_s=offered / window_s,
        images_per_s=done / window_s,
        goodput_per_s=sum(record.images for record in good if record.latency_s <= limit_s) / window_s,
        p50_ms=_percentile_ms(latencies, 50),
        p90_ms=_percentile_ms(latencies, 90),
        p99_ms=_percentile_ms(latencies, 99),
        max_ms=_percentile_ms(latencies, 100),
        rejects=len(rejects),
        reject_p99_ms=_percentile_ms(rejects, 99),
        errors=errors,
        lag_p99_ms=lag * 1000,
        valid=lag <= MAX_LAG_S,
        sustained=not rejects and not errors and done >= SUSTAINED * offered,
    )


def _percentile_ms(seconds: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(seconds, percent)) * 1000 if len(seconds) else None
