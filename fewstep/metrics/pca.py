"""Principal axes of a reference set: fewer, uncorrelated features, and with them a smaller bias. Numpy and scipy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDE = 4096  # features; the covariance of more is not written down, for all of its eigenvectors would take hours


@dataclass(frozen=True)
class Axes:
    """The leading principal axes of a set of features. Frozen with the set: a distance depends on them."""

    mean: NDArray[np.float32]  # [d]
    basis: NDArray[np.float32]  # [d, k], orthonormal columns, largest variance first

    @staticmethod
    def of(features: NDArray[np.floating], count: int) -> "Axes":
        """The first `count` axes of features [N, d]."""
        mean = features.mean(axis=0, dtype=np.float64)
        centred = features - mean.astype(features.dtype)
        if centred.shape[1] > WIDE and count < min(centred.shape):
            vectors = _leading(centred, count)
        else:
            _, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))  # ascending
        return Axes(mean.astype(np.float32), np.ascontiguousarray(vectors[:, ::-1][:, :count], np.float32))

    def project(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """features [N, d] -> coordinates [N, k]."""
        return np.asarray((features - self.mean) @ self.basis, np.float32)


def _leading(centred: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    """The `count` leading eigenvectors [d, count] of the covariance of centred features [N, d], ascending (Lanczos)."""
    from scipy.sparse.linalg import LinearOperator, eigsh  # slow to load

    width = centred.shape[1]

    def times_covariance(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        product = centred.T @ (centred @ vector.astype(centred.dtype))
        return product.astype(np.float64)

    covariance = LinearOperator((width, width), matvec=times_covariance, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).normal(size=width)  # the same axes every time
    _, vectors = eigsh(covariance, count, v0=start, tol=1e-5)  # pyright: ignore[reportArgumentType]
    return vectors
