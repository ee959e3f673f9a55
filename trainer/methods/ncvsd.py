"""Judging a student against the denoising posterior p(x0 | x_t) instead of the marginal p(x0).

Noise-conditional variational score distillation (Peng et al. 2025): the student turns a noisy image and fresh noise
into a draw from the posterior. Its outputs, noised to sigma, are a second observation of the same image beside x_t
at level t. Two Gaussian observations combine into one, by precision, so the frozen teacher judges them at the
combined level, and no other network is needed on the data's side.
"""

from typing import NamedTuple

from torch import Tensor


class Observation(NamedTuple):
    x: Tensor  # [B, C, H, W]
    sigma: Tensor  # [B]


def combined(first: Observation, second: Observation) -> Observation:
    """What both say about x0: 1 / sigma^2 = 1 / sigma_1^2 + 1 / sigma_2^2, and the mean weighted alike."""
    sigma = (first.sigma**-2 + second.sigma**-2) ** -0.5
    share = (sigma / first.sigma).square()[:, None, None, None]
    return Observation(share * first.x + (1 - share) * second.x, sigma)
