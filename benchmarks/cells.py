"""A benchmark cut into cells that are kept on disk as they are finished, so that an interrupted run goes on.

A cell is the images of one method, count of network calls and range of seeds. On disk are the moments of their
features, and features and pixels of the first few images. The code of a sampler is in no key: `verify` samples again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.generators import Batch
from fewstep.card import CheckpointError
from fewstep.metrics.cache import Cache, Key
from fewstep.metrics.frechet import Moments
from fewstep.metrics.reference import Reference

VERIFIED = 4  # images that `verify` samples again


@dataclass(frozen=True)
class Task:
    """Images to be made and what they depend on."""

    key: Key  # without "kind"
    batches: Callable[[Sequence[int]], Iterator[Batch]]  # seeds -> their images, in order
    seeds: Sequence[int]
    nfe: int  # network calls per image
    labels: NDArray[np.int64] | None  # the class asked for, per seed

    @property
    def calls(self) -> int:
        return self.nfe * len(self.seeds)


@dataclass(frozen=True)
class Cell:
    """What is kept of a task's images, in the features of one net."""

    moments: Moments
    features: NDArray[np.float32]  # [n, d] of the first n images
    pixels: NDArray[np.uint8]  # [n, H, W, C], the same images
    accuracy: float | None  # how often the net, where it is a classifier, sees the class that was asked for
    seconds: float  # that sampling took


def pixels_key(task: Task) -> Key:
    return {"kind": "pixels", **task.key}


def features_key(task: Task, reference: Reference) -> Key:
    return {"kind": "features", **task.key, "net": reference.identity}


def read_cell(cache: Cache, task: Task, reference: Reference, stored: int) -> Cell | None:
    """None unless everything is there, `stored` images included."""
    pixels, features = cache.read(pixels_key(task)), cache.read(features_key(task, reference))
    wanted = min(stored, len(task.seeds))
    if not pixels or not features or min(len(pixels["pixels"]), len(features["features"])) < wanted:
        return None
    accuracy = float(features["accuracy"])
    return Cell(
        moments=Moments(features["mean"], features["covariance"], int(features["count"])),
        features=features["features"][:wanted],
        pixels=pixels["pixels"][:wanted],
        accuracy=None if np.isnan(accuracy) else accuracy,
        seconds=float(pixels["seconds"]),
    )


def fill(
    cache: Cache,
    task: Task,
    references: Sequence[Reference],
    stored: int,
    tick: Callable[[int], Any] = lambda calls: None,
) -> None:
    """Sample the task's images once, see them through every net, and write what is kept. tick: network calls made."""
    features: list[list[NDArray[np.float32]]] = [[] for _ in references]
    seen: list[list[NDArray[np.int64]]] = [[] for _ in references]
    kept: list[NDArray[np.uint8]] = []
    seconds, started = 0.0, time.perf_counter()
    for pixels, nfe in task.batches(task.seeds):
        if nfe != task.nfe:
            raise RuntimeError(f"{task.key} made {nfe} network calls per image, not {task.nfe}")
        seconds += time.perf_counter() - started
        if sum(map(len, kept)) < stored:
            kept.append(pixels)
        for index, reference in enumerate(references):
            coordinates, classes = reference.features(pixels)
            features[index].append(coordinates)
            if classes is not None:
                seen[index].append(classes)
        tick(nfe * len(pixels))
        started = time.perf_counter()
    cache.write(pixels_key(task), pixels=np.concatenate(kept)[:stored], seconds=seconds)
    for reference, parts, classes in zip(references, features, seen, strict=True):
        values = np.concatenate(parts)
        moments = Moments.of(values)
        accuracy = np.mean(np.concatenate(classes) == task.labels) if classes and task.labels is not None else np.nan
        cache.write(
            features_key(task, reference),
            mean=moments.mean, covariance=moments.covariance, count=moments.count,
            features=values[:stored], accuracy=accuracy,
        )  # fmt: skip


def verify(cache: Cache, task: Task) -> None:
    """Sample the first images again. Raises CheckpointError when they are not the ones the cache keeps."""
    found = cache.read(pixels_key(task))
    count = min(VERIFIED, len(task.seeds))
    if found is None or len(found["pixels"]) < count:
        return
    again = np.concatenate([batch.pixels for batch in task.batches(task.seeds[:count])])
    gap = np.abs(again.astype(np.int16) - found["pixels"][:count])
    if gap.max() > 1:  # one level is what another version of a library may round differently
        raise CheckpointError(
            f"the images kept for {task.key} are not what the code makes now; delete {cache.folder} and begin anew"
        )
