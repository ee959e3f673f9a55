"""Precision and recall of generated images in a feature space (Kynkäänniemi et al. 2019). Numpy.

The manifold of a set is the union of balls, one around each of its points, out to the point's k-th nearest neighbour in
the same set. Precision: the share of generated images inside the manifold of the real ones (are they plausible?).
Recall: the share of real images inside the manifold of the generated ones (is anything missing?). Both grow with the
number of images, so they compare only at equal numbers, taken the same on both sides.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.metrics.nearest import Vectors, neighbour_radii, squared_distances

NEIGHBOURS = 3  # the paper's k


class PrecisionRecall(NamedTuple):
    precision: float  # in [0, 1]
    recall: float  # in [0, 1]


def precision_recall(real: Vectors, generated: Vectors, k: int = NEIGHBOURS) -> PrecisionRecall:
    """real [n, d], generated [m, d], n and m greater than k."""
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    return PrecisionRecall(share_inside(generated, real, k), share_inside(real, generated, k))


def share_inside(queries: NDArray[np.float64], points: NDArray[np.float64], k: int, block: int = 1024) -> float:
    """The share of queries [n, d] inside the manifold of points [m, d] (Eq. 1 and 2 of the paper)."""
    radii = neighbour_radii(points, k)
    inside = 0
    for first in range(0, len(queries), block):
        squared = squared_distances(queries[first : first + block], points)
        inside += int((squared <= radii).any(axis=1).sum())
    return inside / len(queries)
