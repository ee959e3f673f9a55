"""The figures of one cell: distance, precision and recall, nearest training images. Kept on disk beside the cell."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.cells import Cell, Task, features_key, pixels_key
from fewstep.metrics.cache import Cache, Key
from fewstep.metrics.frechet import frechet_distance
from fewstep.metrics.nearest import Nearest, nearest
from fewstep.metrics.precision_recall import precision_recall
from fewstep.metrics.reference import Reference, shuffled
from trainer.data.format import ImageSet


@dataclass(frozen=True)
class Scores:
    """One cell in the features of one net."""

    distance: float  # Fréchet, all images of the cell to all training images
    precision: float  # of the stored images and as many training images
    recall: float
    accuracy: float | None


def score(cache: Cache, task: Task, cell: Cell, reference: Reference) -> Scores:
    """Precision and recall take the stored images and as many training images."""
    key = {**features_key(task, reference), "kind": "scores", "data": reference.data, "stored": len(cell.features)}
    found = cache.read(key)
    if found is None:
        found = {
            "distance": np.array(frechet_distance(cell.moments, reference.moments)),
            "precision_recall": np.array(precision_recall(reference.train[: len(cell.features)], cell.features)),
        }
        cache.write(key, **found)
    precision, recall = map(float, found["precision_recall"])
    return Scores(float(found["distance"]), precision, recall, cell.accuracy)


def score_held_out(reference: Reference, count: int, stored: int) -> dict[str, object]:
    """The same figures for real held-out images: what a perfect generator would reach at this N."""
    distances = reference.floor(count)
    real = reference.held_out[:stored]
    precision, recall = precision_recall(reference.train[: len(real)], real)
    return {
        "distances": distances,
        "distance": float(np.mean(distances)) if distances else None,
        "precision": precision,
        "recall": recall,
        "accuracy": reference.held_out_accuracy,
        "images": count,
        "stored": len(real),
    }


@dataclass(frozen=True)
class Neighbours:
    """Looks up nearest training images in pixels or in the features of one net; rows are those of the image set."""

    cache: Cache
    train: ImageSet
    held_out: ImageSet
    reference: Reference

    def of_cell(self, task: Task, cell: Cell, space: str) -> Nearest:
        """space: "pixels" (root mean square, in grey levels of 255) or "features" (Euclidean)."""
        key = features_key(task, self.reference) if space == "features" else pixels_key(task)
        return self._look_up(key, cell.features if space == "features" else cell.pixels, space)

    def of_held_out(self, count: int, space: str) -> Nearest:
        """The same for the first `count` held-out images in random order."""
        pixels = self.held_out.images[shuffled(self.held_out)[:count]]
        key = {"held_out": True, "net": self.reference.identity}
        return self._look_up(key, self.reference.held_out[:count] if space == "features" else pixels, space)

    def _look_up(self, key: Key, queries: NDArray, space: str) -> Nearest:
        key = {**key, "kind": "nearest", "space": space, "data": self.reference.data, "stored": len(queries)}
        found = self.cache.read(key)
        if found is None:
            distance, row = self._in_features(queries) if space == "features" else self._in_pixels(queries)
            self.cache.write(key, distance=distance, row=row)
            return Nearest(distance, row)
        return Nearest(found["distance"], found["row"])

    def _in_features(self, features: NDArray[np.float32]) -> Nearest:
        distance, row = nearest(features, self.reference.train)
        return Nearest(distance, shuffled(self.train)[row])

    def _in_pixels(self, pixels: NDArray[np.uint8]) -> Nearest:
        train = self.train.images.reshape(len(self.train.images), -1)
        distance, row = nearest(pixels.reshape(len(pixels), -1), train)
        return Nearest(distance / np.sqrt(train.shape[1]), row)
