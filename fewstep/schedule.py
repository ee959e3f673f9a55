"""Noise schedules: tuples of Python floats, high to low. No arrays, no torch."""

import math
from collections.abc import Sequence
from itertools import pairwise

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
MAX_STEPS = 8  # the step counts a student serves are 1 .. MAX_STEPS


def karras_sigmas(
    levels: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 7.0
) -> tuple[float, ...]:
    """`levels` noise levels from sigma_max to sigma_min (Karras et al. 2022, Eq. 5), without the final zero."""
    if levels < 1:
        raise ValueError(f"a schedule needs at least one level, not {levels}")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return tuple((high + i / max(levels - 1, 1) * (low - high)) ** rho for i in range(levels))


def solver_sigmas(
    levels: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 7.0
) -> tuple[float, ...]:
    """What Euler and Heun walk down: `levels` Karras levels, then an exact zero."""
    return (*karras_sigmas(levels, sigma_min, sigma_max, rho), 0.0)


def logsnr_sigmas(levels: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> tuple[float, ...]:
    """What DPM-Solver++ and UniPC walk down: `levels` sigmas in equal steps of lambda = -ln sigma, then an exact zero.

    The log signal-to-noise ratio is 2 lambda (Lu et al. 2022, section 5), so neighbours have a constant ratio.
    """
    if levels < 1:
        raise ValueError(f"a schedule needs at least one level, not {levels}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min must lie between 0 and sigma_max = {sigma_max}, not {sigma_min}")
    ratio = sigma_min / sigma_max
    return (*(sigma_max * ratio ** (i / max(levels - 1, 1)) for i in range(levels)), 0.0)


def student_levels(steps: int, sigma_min: float = 0.05, sigma_max: float = SIGMA_MAX) -> tuple[float, ...]:
    """The levels of a k-step student: the first k of k + 1 Karras levels.

    The last level is dropped because a call at sigma_min changes nothing a viewer can see, and sigma_min is 0.05
    rather than EDM's 0.002 because a student's call is better spent where structure is still open.
    """
    if steps < 1:
        raise ValueError(f"a student takes at least one step, not {steps}")
    return karras_sigmas(steps + 1, sigma_min, sigma_max)[:steps]


def check_levels(sigmas: Sequence[float]) -> None:
    """Raise ValueError unless the levels are positive, finite and strictly descending."""
    descending = all(a > b for a, b in pairwise(sigmas))
    if not sigmas or not all(0 < sigma < math.inf for sigma in sigmas) or not descending:  # nan fails both
        raise ValueError(f"levels must be positive and strictly descending, not {list(sigmas)}")
