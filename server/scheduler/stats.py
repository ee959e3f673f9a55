"""Adding up a worker's statistics over its lives, so that a counter never falls when a worker is replaced."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from server.processes.messages import ModelStats, Stats

Key = TypeVar("Key", int, str, tuple[int, int])
Number = TypeVar("Number", int, float)


def together(past: Stats | None, present: Stats) -> Stats:
    """The counts of both, and of the rest what the present life says."""
    if past is None:
        return present
    models = {
        name: _with_past(past.models[name], model) if name in past.models else model
        for name, model in present.models.items()
    }
    return replace(present, models=models)


def gone(last: Stats) -> Stats:
    """What is left of a worker that has died: its counts; it holds nothing any more."""
    empty = {name: replace(model, active_slots=0, waiting_images=0, capacity=0) for name, model in last.models.items()}
    return Stats(empty, rss_bytes=0)


def _with_past(past: ModelStats, present: ModelStats) -> ModelStats:
    return replace(
        present,
        calls_by_bucket=_sum(past.calls_by_bucket, present.calls_by_bucket),
        calls_by_fill=_sum(past.calls_by_fill, present.calls_by_fill),
        call_s_by_bucket=_sum(past.call_s_by_bucket, present.call_s_by_bucket),
        failed_calls=past.failed_calls + present.failed_calls,
        rows=past.rows + present.rows,
        padded_rows=past.padded_rows + present.padded_rows,
        evicted=_sum(past.evicted, present.evicted),
    )


def _sum(a: Mapping[Key, Number], b: Mapping[Key, Number]) -> dict[Key, Number]:
    total = dict(a)
    for key, count in b.items():
        total[key] = total[key] + count if key in total else count
    return total
