"""iPNDM, improved pseudo linear multistep (Zhang & Chen 2023). Numpy or torch; the interface is that of `samplers`."""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from fewstep.precond import Array
from fewstep.samplers import BoundDenoiser, Counted, Noise, Sample, check_solver

# Adams-Bashforth weights for 1 .. 4 slopes at equal steps, newest first
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def sample_ipndm(denoiser: BoundDenoiser, noise: Noise, sigmas: Sequence[float], order: int = 4) -> Sample:
    """Adams-Bashforth on the slopes dx / dsigma (Zhang & Chen 2023). N levels and a final 0 cost N calls.

    sigmas: best from `solver_sigmas`. order: 1 to 4; 1 is Euler. The weights are those of equal steps whatever the
    schedule, so the order is reached on equal steps of sigma; on a smooth schedule such as Karras's it is 2 at most.
    The first steps use as many slopes as there are.
    """
    if not 1 <= order <= len(ADAMS_BASHFORTH):
        raise ValueError(f"iPNDM has an order from 1 to {len(ADAMS_BASHFORTH)}, not {order}")
    check_solver(sigmas)
    counted = Counted(denoiser)
    x = sigmas[0] * noise(0)
    past: deque[Array] = deque(maxlen=order)  # slopes, newest first
    for sigma, sigma_next in pairwise(sigmas):
        past.appendleft((x - counted(x, sigma)) / sigma)
        slope = sum(weight * old for weight, old in zip(ADAMS_BASHFORTH[len(past) - 1], past, strict=True))
        x = x + (sigma_next - sigma) * slope
    return Sample(x, counted.nfe)
