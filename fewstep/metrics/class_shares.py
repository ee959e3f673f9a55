"""Which classes a Fréchet distance comes from: what it would be if the mean of a class were the data's.

The features of one class are moved so that their mean is that of the class's real images, all others stay, and the
distance is taken again. What is left when all classes are moved is in the spread within the classes.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.metrics.frechet import Moments, frechet_distance

Features = NDArray[np.float64]
Labels = NDArray[np.integer]


def class_means(features: NDArray[np.floating], labels: Labels, classes: int) -> Features:
    """features [N, d], labels [N] -> [classes, d]. Every class has an image."""
    return np.stack([features[labels == one].mean(axis=0, dtype=np.float64) for one in range(classes)])


def moved(features: Features, labels: Labels, means: Features, which: Collection[int]) -> Features:
    """A copy of the features [N, d] in which the classes of `which` have these `means` [classes, d]."""
    result = features.copy()
    for one in which:
        rows = labels == one
        result[rows] += means[one] - result[rows].mean(axis=0)
    return result


def shares(features: Features, labels: Labels, means: Features, data: Moments) -> list[dict[str, Any]]:
    """A row per class, the one that gains most first. N images [N, d] against the data's moments and class means.

    off: squared distance of the class's mean from the data's; alone: the distance with this class moved; together:
    with it and all classes above it moved.
    """
    off = np.square(class_means(features, labels, len(means)) - means).sum(axis=1)
    distance = lambda which: frechet_distance(Moments.of(moved(features, labels, means, which)), data)  # noqa: E731
    alone = [distance([one]) for one in range(len(means))]
    order = [int(one) for one in np.argsort(alone, kind="stable")]
    return [
        {"class": one, "off": float(off[one]), "alone": alone[one], "together": distance(order[: place + 1])}
        for place, one in enumerate(order)
    ]
