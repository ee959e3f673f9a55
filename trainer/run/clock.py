"""How far a run is, and how fast."""

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch


@dataclass
class Clock:
    """How far the run is. Schedules depend on nothing else."""

    images: int = 0
    elapsed_s: float = 0.0
    planned: int = 1  # images of the whole run
    images_per_s: float = 0.0  # of this process: the median over its first updates, without warm-up

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        return min(self.images / self.planned, 1.0)


class Speed:
    """Images per second of a process: the median over its first updates without two, which compile and warm up."""

    TIMED = 32  # updates; on a GPU the process waits for each of them to end

    def __init__(self, batch: int, device: torch.device) -> None:
        self.batch, self.device = batch, device
        self.times, self.per_s = [time.monotonic()], 0.0

    def after_update(self) -> float:
        if len(self.times) <= self.TIMED:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.times.append(time.monotonic())
            durations = [late - early for early, late in pairwise(self.times)]
            self.per_s = self.batch / max(median(durations[2:] or durations), 1e-9)
        return self.per_s
