"""Gaussian data has a closed-form teacher and student: exact answers for samplers, exporters, servers, benchmarks.

Data x0 ~ N(mean, std^2), every element alone. Then x = x0 + sigma * eps ~ N(mean, std^2 + sigma^2).
Numpy or torch. Both functions are denoisers: x [B, C, H, W], sigma [B] -> [B, C, H, W].
A `Mixture` of Gaussians has them too, and stays one under a linear measurement.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from fewstep.ancestral import Chain
from fewstep.precond import Array, Network, edm_scalings


@dataclass(frozen=True)
class Gaussian:
    mean: float = 0.0
    std: float = 0.5

    def teacher(self, x: Array, sigma: Array) -> Array:
        """The conditional mean E[x0 | x]: what a perfectly trained EDM denoiser returns."""
        s = sigma[:, None, None, None]
        return self.mean + self.std**2 / (self.std**2 + s**2) * (x - self.mean)

    def student(self, x: Array, sigma: Array) -> Array:
        """A perfect student: its output has the data's distribution at every level, not just the right mean."""
        xp = array_namespace(x)
        s = sigma[:, None, None, None]
        return self.mean + self.std / xp.sqrt(self.std**2 + s**2) * (x - self.mean)

    def flow(self, x: Array, sigma: float) -> Array:
        """Where the probability-flow ODE takes x at `sigma` once it reaches zero noise."""
        return self.mean + self.std / (self.std**2 + sigma**2) ** 0.5 * (x - self.mean)

    def through(self, chain: Chain) -> "Gaussian":
        """The law of the images of a chain with `teacher` as its denoiser: what a sampler of few steps really makes."""
        mean, variance = 0.0, chain.sigmas[0] ** 2
        for sigma, gain, v in zip(chain.sigmas, chain.gains, chain.variances, strict=False):
            slope, constant = self._affine(sigma)
            mean = (1 - gain + gain * slope) * mean + gain * constant
            variance = (1 - gain + gain * slope) ** 2 * variance + v
        slope, constant = self._affine(chain.sigmas[-1])
        return Gaussian(slope * mean + constant, slope * math.sqrt(variance))

    def error(self, sigma: float) -> float:
        """The mean squared error of `teacher`, that of the rule 'opt' in `fewstep.ancestral`."""
        return self.std**2 * sigma**2 / (self.std**2 + sigma**2)

    def _affine(self, sigma: float) -> tuple[float, float]:
        """`teacher` as slope and constant."""
        slope = self.std**2 / (self.std**2 + sigma**2)
        return slope, (1 - slope) * self.mean


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data x0 ~ sum_k weights[k] N(means[k], covariances[k]) in d dimensions; images are read as vectors of d."""

    weights: NDArray[np.float64]  # [K], sum 1
    means: NDArray[np.float64]  # [K, d]
    covariances: NDArray[np.float64]  # [K, d, d]

    @cached_property
    def _axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues [K, d] and eigenvectors [K, d, d] of the covariances."""
        values, vectors = np.linalg.eigh(self.covariances)
        return values, vectors

    def denoiser(self, x: Array, sigma: Array) -> Array:
        """E[x0 | x] for x [B, ...] with d elements a row, sigma [B]."""
        xp = array_namespace(x)
        values, vectors = (xp.asarray(part, dtype=x.dtype, device=x.device) for part in self._axes)
        means = xp.asarray(self.means, dtype=x.dtype, device=x.device)
        along, spread = self._along(x, sigma)  # [B, K, d]
        log_share = self._log_terms(along, spread)
        log_share = log_share - xp.max(log_share, axis=1, keepdims=True)
        share = xp.exp(log_share)
        share = share / xp.sum(share, axis=1, keepdims=True)
        shrunk = values[None] / spread * along
        clean = means[None] + xp.sum(vectors[None] * shrunk[:, :, None, :], axis=3)
        return xp.reshape(xp.sum(share[:, :, None] * clean, axis=1), x.shape)

    def log_density(self, x: Array, sigma: Array) -> Array:
        """log of the density of x0 + sigma eps at x [B, ...], sigma [B]: [B]."""
        xp = array_namespace(x)
        terms = self._log_terms(*self._along(x, sigma))
        highest = xp.max(terms, axis=1, keepdims=True)
        return highest[:, 0] + xp.log(xp.sum(xp.exp(terms - highest), axis=1))

    def sample(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """[count, d]."""
        component = rng.choice(len(self.weights), count, p=self.weights)
        values, vectors = self._axes
        normals = rng.normal(size=(count, self.means.shape[1])) * np.sqrt(values[component])
        return self.means[component] + np.einsum("bij,bj->bi", vectors[component], normals)

    def observed(
        self, matrix: NDArray[np.float64], y: NDArray[np.float64], noise: NDArray[np.float64]
    ) -> tuple["Mixture", float]:
        """Given y = matrix x0 + N(0, noise), with matrix [m, d], y [m], noise [m, m]: the posterior and log p(y)."""
        gap = y - self.means @ matrix.T  # [K, m]
        spread = matrix @ self.covariances @ matrix.T + noise  # [K, m, m]
        solved = np.linalg.solve(spread, gap[:, :, None])[:, :, 0]
        terms = np.log(self.weights) - 0.5 * (
            (gap * solved).sum(axis=1) + np.linalg.slogdet(spread)[1] + len(y) * math.log(2 * math.pi)
        )
        gain = self.covariances @ matrix.T @ np.linalg.inv(spread)  # [K, d, m]
        log_evidence = float(np.logaddexp.reduce(terms))
        means = self.means + np.einsum("kdm,km->kd", gain, gap)
        covariances = self.covariances - gain @ matrix @ self.covariances
        return Mixture(
            np.exp(terms - log_evidence), means, (covariances + covariances.swapaxes(1, 2)) / 2
        ), log_evidence

    def _along(self, x: Array, sigma: Array) -> tuple[Array, Array]:
        """x - mean of every component along its axes [B, K, d], and the variance of that under noise, likewise."""
        xp = array_namespace(x)
        values, vectors = (xp.asarray(part, dtype=x.dtype, device=x.device) for part in self._axes)
        means = xp.asarray(self.means, dtype=x.dtype, device=x.device)
        gap = xp.reshape(x, (x.shape[0], 1, -1)) - means[None]
        along = xp.sum(vectors[None] * gap[..., None], axis=2)
        return along, values[None] + sigma[:, None, None] ** 2

    def _log_terms(self, along: Array, spread: Array) -> Array:
        """log weights[k] N(x; ...) of every component, [B, K]."""
        xp = array_namespace(along)
        log_weights = xp.asarray(np.log(self.weights), dtype=along.dtype, device=along.device)
        return log_weights[None] - 0.5 * xp.sum(along**2 / spread + xp.log(2 * math.pi * spread), axis=2)


def as_network(denoise: Callable[[Array, Array], Array], sigma_data: float) -> Network:
    """The F that EDM preconditioning turns back into `denoise`; it takes no notice of classes."""

    def network(x: Array, c_noise: Array, onehot: Array) -> Array:
        sigma = array_namespace(c_noise).exp(4 * c_noise)
        c_skip, c_out, c_in = (factor[:, None, None, None] for factor in edm_scalings(sigma, sigma_data)[:3])
        noisy = x / c_in
        return (denoise(noisy, sigma) - c_skip * noisy) / c_out

    return network
