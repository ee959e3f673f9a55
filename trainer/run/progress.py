"""The progress of a run: one line, updated every two seconds from the first update on."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO

EVERY_S = 2.0


@dataclass
class Progress:
    """Writes one line that is replaced on a terminal, and one line after the other elsewhere."""

    label: str  # of the stage
    planned: int | None = None  # images
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    now: Callable[[], float] = time.monotonic
    _shown_s: float | None = None
    _began: tuple[float, float, int] | None = None  # time, share and images at the start
    _width: int = 0

    def begin(self, share: float, images: int) -> None:
        """The share of the run, 0 to 1, and the images, that were done before this process."""
        self._began = (self.now(), share, images)

    def update(self, share: float, images: int, scalars: Callable[[], Mapping[str, float]]) -> None:
        """After an update. scalars: returns the values to show, called only when a line is written."""
        assert self._began is not None, "begin() comes first"
        now = self.now()
        if self._shown_s is not None and now - self._shown_s < EVERY_S and share < 1:
            return
        self._shown_s = now
        started_s, first_share, first_images = self._began
        made = Made(share - first_share, images - first_images, now - started_s)
        self._write(line(self.label, share, images, self.planned, made, scalars()))

    def close(self) -> None:
        if self._width:
            self.stream.write("\n")
            self._width = 0

    def _write(self, text: str) -> None:
        if self.stream.isatty():
            self.stream.write(f"\r{text:<{self._width}}")
            self._width = len(text)
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()


class Made(NamedTuple):
    """The work of this process, from which speed and time left are computed."""

    share: float  # of the run
    images: int
    seconds: float


def line(label: str, share: float, images: int, planned: int | None, made: Made, values: Mapping[str, float]) -> str:
    """`teacher   35 %  12,345 of 35,000 images  102 images/s  3 min left  loss 0.231`."""
    of = f" of {planned:,}" if planned else ""
    speed = made.images / max(made.seconds, 1e-9)
    parts = [f"{label}  {100 * min(share, 1):3.0f} %", f"{images:,}{of} images", f"{speed:.3g} images/s"]
    if made.share > 0 and share < 1:
        parts.append(f"{format_seconds((1 - share) / made.share * made.seconds)} left")
    return "  ".join([*parts, *(f"{name} {value:.3g}" for name, value in values.items())])


def format_seconds(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def format_bytes(count: float) -> str:
    """1.5 GB, 20 MB, 0.4 MB."""
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
