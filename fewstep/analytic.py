"""Gaussian data has a closed-form teacher and student: exact answers for samplers, exporters, servers, benchmarks.

Data x0 ~ N(mean, std^2), every element alone. Then x = x0 + sigma * eps ~ N(mean, std^2 + sigma^2).
Numpy or torch. Both functions are denoisers: x [B, C, H, W], sigma [B] -> [B, C, H, W].
"""

from collections.abc import Callable
from dataclasses import dataclass

from array_api_compat import array_namespace

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


def as_network(denoise: Callable[[Array, Array], Array], sigma_data: float) -> Network:
    """The F that EDM preconditioning turns back into `denoise`; it takes no notice of classes."""

    def network(x: Array, c_noise: Array, onehot: Array) -> Array:
        sigma = array_namespace(c_noise).exp(4 * c_noise)
        c_skip, c_out, c_in = (factor[:, None, None, None] for factor in edm_scalings(sigma, sigma_data)[:3])
        noisy = x / c_in
        return (denoise(noisy, sigma) - c_skip * noisy) / c_out

    return network
