"""Kernel distance between feature sets: the unbiased squared MMD of a cubic kernel (Binkowski et al. 2018). Numpy.

Unlike a Fréchet distance it has no bias that depends on the number of images: between two draws from one distribution
its expectation is 0, and single values are negative as often as positive. It sees moments up to the third.
"""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]


def kid(a: Features, b: Features) -> float:
    """Squared MMD of a [n, d] and b [m, d], n and m from 2 up: Eq. 4 of the paper, over all images, no subsets."""
    return mean_within(a) + mean_within(b) - 2 * mean_between(a, b)


def mean_within(a: Features, block: int = 1024) -> float:
    """The kernel's mean over all pairs of different rows of a [n, d]. Raises ValueError for fewer than two rows."""
    if len(a) < 2:
        raise ValueError(f"a kernel distance takes two images or more, not {len(a)}")
    diagonal = float(_cubic(np.square(a.astype(np.float64)).sum(axis=1) / a.shape[1]).sum())
    return (_total(a, a, block) - diagonal) / (len(a) * (len(a) - 1))


def mean_between(a: Features, b: Features, block: int = 1024) -> float:
    """The kernel's mean over all pairs of a row of a [n, d] and a row of b [m, d]."""
    return _total(a, b, block) / (len(a) * len(b))


def _total(a: Features, b: Features, block: int) -> float:
    """Sum of k(x, y) = (x . y / d + 1)^3 over all pairs. In float64, or what is subtracted above would cancel."""
    b = b.astype(np.float64)
    parts = (a[first : first + block].astype(np.float64) for first in range(0, len(a), block))
    return float(sum(_cubic(part @ b.T / a.shape[1]).sum() for part in parts))


def _cubic(product: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = product + 1
    return raised * raised * raised  # a power of arrays is ten times slower
