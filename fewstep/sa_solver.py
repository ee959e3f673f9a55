"""SA-Solver, a stochastic Adams method (Xue et al. 2023). Numpy or torch; the interface is that of `samplers`."""

import math
from collections.abc import Sequence

from fewstep.multistep import Method, bh1_moments, walk
from fewstep.samplers import BoundDenoiser, Noise, Sample, check_solver


def sample_sa(
    denoiser: BoundDenoiser,
    noise: Noise,
    sigmas: Sequence[float],
    tau: float = 1.0,
    interval: tuple[float, float] | None = None,
    predictor_order: int = 3,
    corrector_order: int = 4,
) -> Sample:
    """SA-Solver (Xue et al. 2023), data prediction, PEC mode. N levels and a final 0 cost N calls.

    tau: stochasticity, 0 or more; 0 is the probability-flow ODE, 1 the reverse SDE. It acts on the steps that start at
    a level inside interval = (low, high), bounds included, and is 0 on the others; None is `middle_interval(sigmas)`.
    Where it acts, the step from level i adds noise(i + 1). predictor_order: 1 to 4. corrector_order: 0 (none) to 4,
    the new point counted. With tau = 0 and orders p and p + 1 this is UniPC's bh1 of order p. The last steps have lower
    orders, and the last of all returns the denoised image.
    """
    if not 0 <= tau < math.inf:
        raise ValueError(f"tau must be 0 or more, and finite, not {tau}")
    if predictor_order not in (1, 2, 3, 4):
        raise ValueError(f"SA-Solver's predictor has an order from 1 to 4, not {predictor_order}")
    if corrector_order not in (0, 1, 2, 3, 4):
        raise ValueError(f"SA-Solver's corrector has an order from 0 (none) to 4, not {corrector_order}")
    check_solver(sigmas)
    low, high = middle_interval(sigmas) if interval is None else interval
    if not low <= high:
        raise ValueError(f"the interval of tau is (low, high) in sigma, not ({low}, {high})")
    taus = [tau if low <= sigma <= high else 0.0 for sigma in sigmas[:-1]]
    return walk(Method(bh1_moments, predictor_order, corrector_order), denoiser, noise, sigmas, taus)


def middle_interval(sigmas: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest sigma of the middle 60 % of the levels: those with 0.2 <= i / (levels - 1) <= 0.8.

    sigmas end in 0. Two levels have no middle: (0, 0), where no level lies. A single level is its own.
    """
    last = len(sigmas) - 2
    middle = [sigma for i, sigma in enumerate(sigmas[:-1]) if last <= 5 * i <= 4 * last]
    return (middle[-1], middle[0]) if middle else (0.0, 0.0)
