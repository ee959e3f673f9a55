"""Samplers as pure functions of (denoiser, noise, sigmas). Numpy or torch; sigmas are host floats.

`denoiser(x, sigma)` takes x [B, C, H, W] and sigma [B]; bind labels with functools.partial before sampling.
`noise(step)` returns unit normals [B, C, H, W]: step 0 is the initial noise, step i what the i-th re-noising adds.
Every sampler returns the images together with the network calls it made, counted one by one.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from array_api_compat import array_namespace

from fewstep.precond import Array
from fewstep.schedule import check_levels

BoundDenoiser = Callable[[Array, Array], Array]
Noise = Callable[[int], Array]


class Sample(NamedTuple):
    images: Array  # [B, C, H, W], nominally in [-1, 1], not clipped
    nfe: int  # network calls per image


class Counted:
    """A denoiser at scalar sigma that counts its calls."""

    def __init__(self, denoiser: BoundDenoiser) -> None:
        self.denoiser = denoiser
        self.nfe = 0

    def __call__(self, x: Array, sigma: float) -> Array:
        self.nfe += 1
        xp = array_namespace(x)
        return self.denoiser(x, xp.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device))


def sample_dpdm(denoiser: BoundDenoiser, noise: Noise, sigmas: Sequence[float]) -> Sample:
    """The student's sampler (DPDM, Algorithm 2): predict the clean image, add less noise, repeat.

    sigmas: the student's levels, positive and descending, one network call each. There is no final noise.
    """
    check_levels(sigmas)
    counted = Counted(denoiser)
    denoised = counted(sigmas[0] * noise(0), sigmas[0])
    for step, sigma in enumerate(sigmas[1:], start=1):
        denoised = counted(denoised + sigma * noise(step), sigma)
    return Sample(denoised, counted.nfe)


def sample_euler(denoiser: BoundDenoiser, noise: Noise, sigmas: Sequence[float]) -> Sample:
    """Euler's method on the probability-flow ODE, which in this parametrisation is DDIM. sigmas end in 0."""
    counted = Counted(denoiser)
    check_solver(sigmas)
    x = sigmas[0] * noise(0)
    for sigma, sigma_next in pairwise(sigmas):
        slope = (x - counted(x, sigma)) / sigma
        x = x + (sigma_next - sigma) * slope
    return Sample(x, counted.nfe)


class Churn(NamedTuple):
    """Stochasticity of EDM's sampler (Karras et al. 2022, Algorithm 2). The default is deterministic."""

    amount: float = 0.0  # S_churn, shared out over the levels
    sigma_min: float = 0.0  # S_min
    sigma_max: float = math.inf  # S_max
    scale: float = 1.0  # S_noise


def sample_heun(denoiser: BoundDenoiser, noise: Noise, sigmas: Sequence[float], churn: Churn = Churn()) -> Sample:
    """EDM's second-order sampler (Karras et al. 2022, Algorithm 2). N levels and a final 0 cost 2N - 1 calls."""
    counted = Counted(denoiser)
    check_solver(sigmas)
    levels = len(sigmas) - 1
    x = sigmas[0] * noise(0)
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas), start=1):
        if churn.amount > 0 and churn.sigma_min <= sigma <= churn.sigma_max:
            raised = sigma * (1 + min(churn.amount / levels, math.sqrt(2) - 1))
            x = x + math.sqrt(raised**2 - sigma**2) * churn.scale * noise(step)
            sigma = raised
        slope = (x - counted(x, sigma)) / sigma
        euler = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = (euler - counted(euler, sigma_next)) / sigma_next
            euler = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = euler
    return Sample(x, counted.nfe)


def check_solver(sigmas: Sequence[float]) -> None:
    """Raise ValueError unless sigmas are positive, strictly descending levels and then an exact 0."""
    check_levels(sigmas[:-1])
    if sigmas[-1] != 0:
        raise ValueError(f"a solver's sigmas end in 0, not {sigmas[-1]}; solver_sigmas() builds such a list")
