"""From the records of a run to its figures, under the names of vLLM-Omni's and SGLang's diffusion benchmarks."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.load.open_loop import Record
from benchmarks.load.run_summary import MAX_LAG_S
from benchmarks.serving.mix import Mix

Row = dict[str, Any]
QUOTED_S = 600.0  # seconds that a run has at least whose figures are quoted, as MLPerf's
COLUMNS = {
    "kind": "kind", "requests": "requests", "failed_requests": "failed", "latency_mean_ms": "mean ms",
    "latency_p50_ms": "p50 ms", "latency_p95_ms": "p95 ms", "latency_p99_ms": "p99 ms", "slo_attainment_rate": "SLO",
}  # fmt: skip


def good(record: Record) -> bool:
    """Whether it was answered with what it asked for."""
    return record.status == 200 and not record.code


def over(records: Sequence[Record], bound_s: float) -> int:
    """How many were not answered within the bound, or not at all."""
    return sum(not good(record) or record.latency_s > bound_s for record in records)


def keeps_p99(records: Sequence[Record], bound_s: float) -> bool:
    """Whether 99 % of all requests, the failed ones among them, were answered within the bound."""
    return 100 * over(records, bound_s) <= len(records)


def peers(records: Sequence[Record], slo_s: float | None) -> Row:
    """The keys of the peers. Times in seconds, from the moment a request was due; percentiles of good answers.

    records: at least one. duration: from the first moment a request was due to the last answer.
    """
    answered = [record for record in records if good(record)]
    duration = max(record.done_s for record in records) - min(record.due_s for record in records)
    latencies = np.array([record.latency_s for record in answered])
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99)).tolist() if answered else (None, None, None)
    figures = {
        "duration": duration, "completed_requests": len(answered), "failed_requests": len(records) - len(answered),
        "throughput_qps": len(answered) / duration, "latency_mean": float(latencies.mean()) if answered else None,
        "latency_median": p50, "latency_p50": p50, "latency_p95": p95, "latency_p99": p99,
    }  # fmt: skip
    if slo_s is not None:
        met = len(records) - over(records, slo_s)
        figures |= {"slo_met_success": met, "slo_attainment_rate": met / len(records), "slo_s": slo_s}
    return figures


def own(records: Sequence[Record], mix: Mix) -> Row:
    """What the peers have no words for. records: at least one."""
    answered = [record for record in records if good(record)]
    duration = max(record.done_s for record in records) - min(record.due_s for record in records)
    calls = [mix[record.kind].calls for record in answered]
    lag_s = float(np.percentile([record.lag_s for record in records], 99))
    return {
        "images_per_s": sum(record.images for record in answered) / duration,
        "network_calls": None if None in calls else sum(filter(None, calls)),
        "lag_p99_ms": 1000 * lag_s,
        "on_time": lag_s <= MAX_LAG_S,
        "errors": dict(Counter(record.code or str(record.status) for record in records if not good(record))),
    }


def rows(records: Sequence[Record], mix: Mix, slo_s: float | None) -> list[Row]:
    """A row of each kind of request that came, and one of all. Latencies in milliseconds, as tables have them."""
    by_kind = {kind.name: [r for r in records if r.kind == place] for place, kind in enumerate(mix)}
    groups = {name: some for name, some in by_kind.items() if some}
    if len(groups) > 1:
        groups["all"] = list(records)
    return [{"kind": name, "requests": len(some), **_in_ms(peers(some, slo_s))} for name, some in groups.items()]


def _in_ms(figures: Row) -> Row:
    def named(key: str, value: Any) -> tuple[str, Any]:
        return (f"{key}_ms", value and 1000 * value) if key.startswith("latency_") else (key, value)

    return dict(named(*item) for item in figures.items())
