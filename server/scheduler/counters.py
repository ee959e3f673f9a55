"""What a worker counts about one model, for the statistics it sends."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from server.processes.messages import ModelStats

Stage = Literal["waiting", "running"]  # where an image was when it was given up


@dataclass
class Counters:
    """Counts since the worker started; belongs to the engine thread."""

    calls: Counter[int] = field(default_factory=Counter)  # by batch size
    fills: Counter[tuple[int, int]] = field(default_factory=Counter)  # by images and batch size
    call_s: dict[int, float] = field(default_factory=dict)
    failed_calls: int = 0
    rows: int = 0
    padded_rows: int = 0
    evicted: Counter[str] = field(default_factory=Counter)  # by stage

    def call(self, active: int, batch: int, seconds: float) -> None:
        """A network call of `batch` rows, `active` of which were images."""
        self.calls[batch] += 1
        self.fills[active, batch] += 1
        self.call_s[batch] = self.call_s.get(batch, 0.0) + seconds
        self.rows += active
        self.padded_rows += batch - active

    def evict(self, stage: Stage, images: int) -> None:
        """Images of a cancelled, failed or expired request."""
        if images:
            self.evicted[stage] += images

    def snapshot(self, active_slots: int, waiting_images: int, capacity: int) -> ModelStats:
        return ModelStats(
            calls_by_bucket=dict(self.calls),
            calls_by_fill=dict(self.fills),
            call_s_by_bucket=dict(self.call_s),
            failed_calls=self.failed_calls,
            rows=self.rows,
            padded_rows=self.padded_rows,
            evicted=dict(self.evicted),
            active_slots=active_slots,
            waiting_images=waiting_images,
            capacity=capacity,
        )


def resident_bytes() -> int:
    """Memory of this process, without importing anything for it; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
