"""What one model has done in an engine loop, and what it holds now: counted, sent, added over a worker's processes."""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

EvictedFrom = Literal["waiting", "running"]  # where an image was when its request ended early
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class ModelStats:
    """Counts since the loop began. The gauges at the end are of the moment and are not added over processes."""

    calls_by_fill: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))  # by (images, batch)
    call_s_by_bucket: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # with the step around it
    evicted: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # images, by EvictedFrom
    failed_calls: int = 0  # calls that raised, or that brought no finite row
    active_slots: int = 0
    waiting_images: int = 0
    capacity: int = 0

    def call(self, active: int, batch: int, seconds: float) -> None:
        """Count a network call of `batch` rows, `active` of which were images."""
        self.calls_by_fill[active, batch] += 1
        self.call_s_by_bucket[batch] += seconds

    def evict(self, source: EvictedFrom, images: int) -> None:
        """Count images of a cancelled, failed or expired request."""
        if images:
            self.evicted[source] += images

    @property
    def calls_by_bucket(self) -> dict[int, int]:
        """Network calls by batch size."""
        calls: dict[int, int] = defaultdict(int)
        for (_, batch), count in self.calls_by_fill.items():
            calls[batch] += count
        return calls

    @property
    def rows(self) -> int:
        """Rows of network calls that were images."""
        return sum(active * count for (active, _), count in self.calls_by_fill.items())

    @property
    def padded_rows(self) -> int:
        """Rows of network calls that were padding."""
        return sum((batch - active) * count for (active, batch), count in self.calls_by_fill.items())

    def snapshot(self, active_slots: int, waiting_images: int, capacity: int) -> "ModelStats":
        """A copy with the gauges of now."""
        copies: dict[str, Any] = {name: dict(getattr(self, name)) for name in TABLES}
        return replace(self, active_slots=active_slots, waiting_images=waiting_images, capacity=capacity, **copies)

    def after(self, past: "ModelStats") -> "ModelStats":
        """These counts and those of an earlier process; the gauges are of this one."""
        sums: dict[str, Any] = {name: _sum(getattr(past, name), getattr(self, name)) for name in TABLES}
        return replace(self, failed_calls=past.failed_calls + self.failed_calls, **sums)

    def ended(self) -> "ModelStats":
        """What is left of a process that has ended: its counts; it holds nothing."""
        return self.snapshot(0, 0, 0)


TABLES = ("calls_by_fill", "call_s_by_bucket", "evicted")


def _sum(past: Mapping[Any, float], present: Mapping[Any, float]) -> dict[Any, float]:
    return {key: past.get(key, 0) + present.get(key, 0) for key in {**past, **present}}


@dataclass(frozen=True)
class Stats:
    """Sent after ticks, four times a second at most, and once when the loop has nothing left to do."""

    models: Mapping[str, ModelStats]
    rss_bytes: int  # memory of the process

    def after(self, past: "Stats | None") -> "Stats":
        """With the counts of earlier processes added."""
        models = past.models if past else {}
        summed = {name: stats.after(models[name]) if name in models else stats for name, stats in self.models.items()}
        return Stats(summed, self.rss_bytes)

    def ended(self) -> "Stats":
        return Stats({name: stats.ended() for name, stats in self.models.items()}, 0)


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process; 0 where the system does not say (/proc is Linux)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0
