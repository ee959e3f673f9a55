"""The preconditionings of VP, VE and iDDPM as Karras et al. 2022 state them (Table 1): the network F out of theirs.

Their denoiser is D = x + c_out * U(c_in * x, c_noise), with c_skip = 1. Ours is D = c_skip * x + c_out * F: solved for
F, a network of theirs answers to the contract of F, and D is theirs at every sigma.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.unet_config import Precond

BETA_D, BETA_MIN, STEPS = 19.9, 0.1, 1000  # of VP; iDDPM has as many steps
C_1, C_2 = 0.001, 0.008  # of iDDPM's cosine schedule


class NetworkInput(NamedTuple):
    """The inputs of U."""

    image: Tensor  # c_in * x, [B, C, H, W]
    c_noise: Tensor  # [B]


def network_input(precond: Precond, x: Tensor, c_noise: Tensor, sigma_data: float) -> NetworkInput:
    """The inputs of U, of the inputs of F: x [B, C, H, W] of unit variance and c_noise = ln(sigma) / 4 [B]."""
    sigma = (4 * c_noise).exp()
    s = sigma[:, None, None, None]
    noisy = x * (s**2 + sigma_data**2).sqrt()
    image = noisy if precond == "ve" else noisy / (1 + s**2).sqrt()
    return NetworkInput(image, _c_noise(precond, sigma))


def raw_output(precond: Precond, predicted: Tensor, x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """F [B, C, H, W] from the output `predicted` of U: D = x - sigma * U, or + for VE. No large terms cancel."""
    noise = -predicted if precond == "ve" else predicted
    norm = (sigma**2 + sigma_data**2).sqrt()
    return (sigma * (x - noise) - sigma_data**2 / (sigma + norm) * noise) / sigma_data


def _c_noise(precond: Precond, sigma: Tensor) -> Tensor:
    if precond == "ve":
        return (sigma / 2).log()
    if precond == "vp":
        time = ((BETA_MIN**2 + 2 * BETA_D * (1 + sigma**2).log()).sqrt() - BETA_MIN) / BETA_D
        return (STEPS - 1) * time
    levels = torch.tensor(iddpm_levels(), dtype=sigma.dtype, device=sigma.device)
    nearest = (sigma[:, None] - levels[None, :]).abs().argmin(dim=1)
    return (STEPS - 1 - nearest).to(sigma.dtype)


def iddpm_levels() -> list[float]:
    """u_0 .. u_M, high to low (Karras et al. 2022, Table 1 and Appendix C.3.4)."""
    alpha_bar = lambda j: math.sin(math.pi / 2 * j / STEPS / (C_2 + 1)) ** 2  # noqa: E731
    levels = [0.0]
    for j in range(STEPS, 0, -1):
        ratio = max(alpha_bar(j - 1) / alpha_bar(j), C_1)
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    return levels[::-1]
