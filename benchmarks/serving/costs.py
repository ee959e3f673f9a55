"""What a network call takes by the images in it, as the server would make it: from a + b B, or from measured times."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.scheduler.calibration import call_time, choose_buckets, knee
from server.scheduler.slots import buckets_for

MAX_CAPACITY = 4096


@dataclass(frozen=True)
class Fit:
    """A call over B images takes about a + b B seconds."""

    a_s: float
    b_s: float
    off: float  # the largest distance from a measured time, as a share of it

    def seconds(self, images: int) -> float:
        return self.a_s + self.b_s * images


def fitted(times: Mapping[int, float]) -> Fit:
    """The a and b from 0 up whose squared distances, as shares of the measured times, have the smallest sum."""
    sizes, seconds = np.array(list(times), np.float64), np.array(list(times.values()))
    share = np.stack([1 / seconds, sizes / seconds])
    best = np.linalg.lstsq(share.T, np.ones(len(sizes)), rcond=None)[0]
    if len(sizes) == 1 or best.min() < 0:  # of the two edges the better one; of one size alone, that each image costs
        edges = [np.eye(2)[axis] * share[axis].sum() / (share[axis] @ share[axis]) for axis in (1, 0)]
        best = min(edges, key=lambda each: float(((each @ share - 1) ** 2).sum()))
    return Fit(float(best[0]), float(best[1]), float(np.abs(best @ share - 1).max()))


def linear(a_s: float, b_s: float, capacity: int) -> list[float]:
    """[capacity + 1] seconds of a call over B images, a + b B: the network takes every size."""
    return [a_s + b_s * images for images in range(capacity + 1)]


def measured(times: Mapping[int, float], capacity: int) -> list[float]:
    """[capacity + 1] seconds of a call over B images, padded to the batch sizes that the server would choose."""
    buckets = choose_buckets(buckets_for(capacity, exact=False), times)
    padded = [next(bucket for bucket in buckets if bucket >= images) for images in range(capacity + 1)]
    return [call_time(times, bucket) for bucket in padded]


def chosen_capacity(times: Mapping[int, float]) -> int:
    """What the server's --capacity 0 would choose."""
    return knee(times)


def read_times(path: Path, variant: str | None = None) -> dict[int, float]:
    """Seconds by batch size, from {"1": ms, "8": ms, ...}, or from a result of benchmarks/engine_speed.py.

    variant: which rows of such a result. Raises ValueError with a sentence.
    """
    try:
        data: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"the times in {path} cannot be read: {error}") from error
    if isinstance(data, dict) and data.get("benchmark") == "engine_speed":
        data = _of_variant(data["rows"], variant, path)
    elif variant is not None:
        raise ValueError(f"--variant chooses rows of a result of engine_speed.py, which {path} is not")
    if not isinstance(data, dict) or not data:
        raise ValueError(f'{path} must hold milliseconds by batch size, such as {{"1": 1.3, "8": 1.4}}')
    times = {}
    for size, ms in data.items():
        number = isinstance(ms, int | float) and not isinstance(ms, bool) and 0 < ms < float("inf")
        if not (str(size).isdecimal() and 1 <= int(size) <= MAX_CAPACITY and number):
            raise ValueError(f"{path}: {size!r}: {ms!r} is no batch size from 1 to {MAX_CAPACITY} with milliseconds")
        times[int(size)] = ms / 1000
    # A batch can be padded, so a size that seems slower than a larger one takes the larger one's time.
    return {size: min(seconds for other, seconds in times.items() if other >= size) for size in sorted(times)}


def _of_variant(rows: list[dict[str, Any]], variant: str | None, path: Path) -> dict[str, float]:
    names = list(dict.fromkeys(row["variant"] for row in rows))
    if variant is None or variant not in names:
        said = "--variant is needed" if variant is None else f"there is no variant {variant!r}"
        raise ValueError(f"{said}: {path} has {', '.join(map(repr, names))}")
    return {str(row["batch"]): row["ms"] for row in rows if row["variant"] == variant}
