"""Principal axes of a reference set: fewer, uncorrelated features, and with them a smaller bias. Numpy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
        _, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))  # ascending
        return Axes(mean.astype(np.float32), np.ascontiguousarray(vectors[:, ::-1][:, :count], np.float32))

    def project(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """features [N, d] -> coordinates [N, k]."""
        return np.asarray((features - self.mean) @ self.basis, np.float32)
