"""Consistency models: their multistep sampler and the levels to run it at. Numpy or torch; the interface of `samplers`.

A consistency function takes every point of an ODE trajectory to its end, f(x, sigma) = x0 (Song et al. 2023, Eq. 2).
"""

import math
from collections.abc import Sequence

from fewstep.precond import Array
from fewstep.samplers import BoundDenoiser, Counted, Noise, Sample
from fewstep.schedule import SIGMA_MAX, SIGMA_MIN, check_levels


def sample_consistency(
    denoiser: BoundDenoiser, noise: Noise, sigmas: Sequence[float], sigma_min: float = SIGMA_MIN
) -> Sample:
    """Multistep consistency sampling (Song et al. 2023, Algorithm 1): jump to the end of the ODE, re-noise, repeat.

    sigmas: positive and descending, one network call each. sigma_min: where the ODE ends, 0 or more and below every
    level but the first. The end carries noise of that level already, so re-noising adds sqrt(sigma^2 - sigma_min^2).
    With sigma_min = 0 this is `sample_dpdm`; with 0.002 it differs by 2e-6 of the noise at sigma 1.
    """
    check_levels(sigmas)
    if not 0 <= sigma_min < min(sigmas[1:], default=math.inf):
        raise ValueError(
            f"sigma_min is where the ODE ends: 0 or more, and below every level, not {sigma_min} for {list(sigmas)}"
        )
    counted = Counted(denoiser)
    ended: Array = counted(sigmas[0] * noise(0), sigmas[0])
    for step, sigma in enumerate(sigmas[1:], start=1):
        ended = counted(ended + math.sqrt(sigma**2 - sigma_min**2) * noise(step), sigma)
    return Sample(ended, counted.nfe)


def consistency_levels(steps: int, sigma_data: float = 0.5, sigma_max: float = SIGMA_MAX) -> tuple[float, ...]:
    """The levels of a k-step consistency student: the top, then the middles of k - 1 equal parts of the useful range.

    The range is [sigma_data / 3, 10 sigma_data] on a logarithmic axis. Above it re-noising only repeats the first jump,
    below it a call changes little. Two steps go through 0.91 at sigma_data 0.5, between the published choices for such
    data: 0.82 (Geng et al. 2024, ECT), 1.0 (Lee et al. 2024, TCM), 1.38 (Song et al. 2023, ImageNet-64).
    """
    if steps < 1:
        raise ValueError(f"a student takes at least one step, not {steps}")
    high, low = 10 * sigma_data, sigma_data / 3
    if not 0 < high < sigma_max:
        raise ValueError(f"sigma_data must lie between 0 and a tenth of sigma_max = {sigma_max}, not {sigma_data}")
    parts = steps - 1
    return (sigma_max, *(high * (low / high) ** ((i + 0.5) / parts) for i in range(parts)))
