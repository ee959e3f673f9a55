"""Fréchet distance between feature sets, and the statistics it is computed from. Numpy, float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d, d] of N feature vectors."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int

    @staticmethod
    def of(features: NDArray[np.floating]) -> "Moments":
        """features [N, d], N >= 2."""
        values = features.astype(np.float64)
        return Moments(values.mean(axis=0), np.cov(values, rowvar=False), len(values))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) (Dowson & Landau 1982; Heusel et al. 2017).

    Symmetric eigenvalues throughout: real, never slightly negative, and zero for equal sets.
    """
    root = _square_root(a.covariance)
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    return float(np.square(a.mean - b.mean).sum() + max(spread, 0.0))


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
