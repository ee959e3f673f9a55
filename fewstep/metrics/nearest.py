"""Nearest neighbours by brute force, in blocks, so that no distance matrix has to fit into memory. Numpy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating]


class Nearest(NamedTuple):
    """The nearest reference of every query."""

    distance: NDArray[np.float64]  # [n], Euclidean
    row: NDArray[np.int64]  # [n], which reference


def squared_distances(a: Vectors, b: Vectors) -> Vectors:
    """|a_i - b_j|^2 [n, m] of a [n, d] and b [m, d], as |a|^2 + |b|^2 - 2 ab and never negative.

    Rounding is relative to the norms, not to the distance: take float64 where small distances matter.
    """
    squared = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None, :] - 2 * (a @ b.T)
    return np.maximum(squared, 0, out=squared)


def nearest(queries: NDArray, references: NDArray, block: int = 4096) -> Nearest:
    """queries [n, d] and references [m, d] of any real type, for example memory-mapped uint8.

    The search is in float32; the distances of the neighbours it finds are then taken exactly, so a copy is at zero.
    """
    points = queries.astype(np.float32)
    best = np.full(len(points), np.inf, np.float32)
    index = np.zeros(len(points), np.int64)
    for first in range(0, len(references), block):
        squared = squared_distances(points, references[first : first + block].astype(np.float32))
        column = squared.argmin(axis=1)
        found = squared[np.arange(len(points)), column]
        closer = found < best
        best[closer], index[closer] = found[closer], first + column[closer]
    gaps = queries.astype(np.float64) - references[index].astype(np.float64)
    return Nearest(np.linalg.norm(gaps, axis=1), index)


def neighbour_radii(points: Vectors, k: int, block: int = 1024) -> NDArray[np.float64]:
    """Squared distance [n] from every point [n, d] to its k-th nearest other point."""
    if not 0 < k < len(points):
        raise ValueError(f"the {k}-th nearest of {len(points)} points does not exist; take more images")
    values = points.astype(np.float64)
    parts = []
    for first in range(0, len(values), block):
        squared = squared_distances(values[first : first + block], values)
        rows = np.arange(len(squared))
        squared[rows, first + rows] = 0  # itself, the smallest of its row: rank 0
        parts.append(np.partition(squared, k, axis=1)[:, k])
    return np.concatenate(parts)
