"""The exact NCVSD student of Gaussian data, for tests in several rooms."""

import math

from fewstep.analytic import Gaussian, as_network
from fewstep.precond import Array, Network


def ncvsd_network(data: Gaussian, sigma_data: float) -> Network:
    """F of the student whose output is E[x0 | x] + std[x0 | x] z. It takes z behind x, as a trained one does."""

    def network(x: Array, c_noise: Array, onehot: Array) -> Array:
        channels = x.shape[1] // 2
        image, z = x[:, :channels], x[:, channels:]

        def draw(noisy: Array, sigma: Array) -> Array:
            s = sigma[:, None, None, None]
            return data.teacher(noisy, sigma) + data.std * s / (data.std**2 + s**2) ** 0.5 * z

        return as_network(draw, sigma_data)(image, c_noise, onehot)

    return network


def conditional_std(data: Gaussian, sigma: float) -> float:
    """Of p(x0 | x) when x is x0 and noise of this level."""
    return data.std * sigma / math.hypot(data.std, sigma)
