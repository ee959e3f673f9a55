"""Matching a student to the conditional distribution p(x0 | x_t) instead of the marginal p(x0).

Noise-conditional variational score distillation (NCVSD, Peng et al. 2025): the student turns a noisy image x_t and a
latent into a draw from p(x0 | x_t). Its output, noised to sigma, is a second observation of the same image beside x_t
at level t. Two Gaussian observations combine into one by their precisions, so the frozen teacher gives the score of
p(x0 | x_t) at the combined level, and no further network is needed for the data.
"""

from typing import NamedTuple

from torch import Tensor


class Observation(NamedTuple):
    x: Tensor  # [B, C, H, W]
    sigma: Tensor  # [B]


def combine(first: Observation, second: Observation) -> Observation:
    """The observation of x0 equivalent to both: 1 / sigma^2 = 1 / sigma_1^2 + 1 / sigma_2^2, x weighted likewise."""
    sigma = (first.sigma**-2 + second.sigma**-2) ** -0.5
    share = (sigma / first.sigma).square()[:, None, None, None]
    return Observation(share * first.x + (1 - share) * second.x, sigma)
