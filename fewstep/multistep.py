"""Exponential multistep methods: the quadrature and the loop of DPM-Solver++, UniPC and SA-Solver. Numpy or torch.

Let lambda = -ln sigma. A diffusion of stochasticity tau (Xue et al. 2023; tau = 0 is the probability-flow ODE, tau = 1
the reverse SDE) takes x over a step of length h in lambda to

    exp(-rate h) x + integral_0^h rate exp(-rate (h - u)) D(u) du + sigma_next sqrt(1 - exp(-2 tau^2 h)) eps

with rate = 1 + tau^2, exactly; D(u) is the denoised image at u past the start of the step. A predictor puts the
polynomial through the last denoised images in D's place. A corrector takes the same step again once the next level's
denoised image is known, with that as one more point; that image is not predicted again (PEC), so it costs no call.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

from fewstep.precond import Array
from fewstep.samplers import BoundDenoiser, Counted, Noise, Sample, check_solver

# moments(z, points): what the integral makes of 1, v, .., v^(points - 1), where v = u / h and z = rate h > 0
Moments = Callable[[float, int], tuple[float, ...]]


def exact_moments(z: float, points: int) -> tuple[float, ...]:
    """integral_0^1 z exp(-z (1 - v)) v^m dv for m = 0 .. points - 1, to 14 digits while points <= 4."""
    if z < 1:  # here the recurrence below would cancel; the power series has converged after 18 terms
        return tuple(
            sum((-1) ** j * z ** (j + 1) * math.factorial(m) / math.factorial(m + j + 1) for j in range(18))
            for m in range(points)
        )
    moments = [-math.expm1(-z)]
    for m in range(1, points):
        moments.append(1 - m / z * moments[-1])  # integration by parts
    return tuple(moments)


def bh1_moments(z: float, points: int) -> tuple[float, ...]:
    """Exact, but z / 2 for the slope between two points: UniPC with B(h) = h, and SA-Solver's order 2."""
    return (-math.expm1(-z), z / 2) if points == 2 else exact_moments(z, points)


def bh2_moments(z: float, points: int) -> tuple[float, ...]:
    """Exact, but half the zeroth for the slope between two points: UniPC with B(h) = exp(h) - 1, and 2M."""
    return (-math.expm1(-z), -math.expm1(-z) / 2) if points == 2 else exact_moments(z, points)


def quadrature_weights(nodes: Sequence[float], moments: Sequence[float]) -> tuple[float, ...]:
    """The weight of a function's value at each node, when the polynomial through them is integrated.

    nodes: distinct. moments: what the integral makes of 1, v, v^2, ..; as many as nodes.
    """
    weights = []
    for node in nodes:
        lagrange = [1.0]  # coefficients of the polynomial that is 1 here and 0 at the other nodes, constant first
        for other in nodes:
            if other != node:
                raised, kept = [0.0, *lagrange], [*lagrange, 0.0]
                lagrange = [(r - other * k) / (node - other) for r, k in zip(raised, kept, strict=True)]
        weights.append(sum(c * moment for c, moment in zip(lagrange, moments, strict=True)))
    return tuple(weights)


class _Point(NamedTuple):
    time: float  # lambda
    denoised: Array  # [B, C, H, W]


class _Step(NamedTuple):
    start: float  # lambda
    h: float
    rate: float
    carried: Array  # exp(-rate h) x and the fresh noise: what does not depend on the points

    def end(self, points: Iterable[_Point], moments: Moments) -> Array:
        """x after the step, with the polynomial through `points`."""
        times, images = zip(*points, strict=True)
        nodes = [(time - self.start) / self.h for time in times]
        weights = quadrature_weights(nodes, moments(self.rate * self.h, len(nodes)))
        return self.carried + sum(weight * image for weight, image in zip(weights, images, strict=True))


@dataclass(frozen=True)
class Method:
    """What a step is made of. The first steps use as many points as there are."""

    moments: Moments
    predictor: int  # points under the predictor, 1 or more
    corrector: int = 0  # points under the corrector, the new one included: 0 (no corrector) to 4
    lower_order_final: bool = True  # the last steps predict with 3, 2 and 1 points


def walk(
    method: Method, denoiser: BoundDenoiser, noise: Noise, sigmas: Sequence[float], taus: Sequence[float] = ()
) -> Sample:
    """Walk down `sigmas` (positive, descending, then 0) with one call per level.

    taus: the stochasticity >= 0 of the step that starts at each level; none means 0. Where it is positive, the step
    from level i adds noise(i + 1). The step to 0 returns the denoised image, which is the limit of one point's formula.
    """
    check_solver(sigmas)
    counted = Counted(denoiser)
    levels = len(sigmas) - 1
    x = sigmas[0] * noise(0)
    past: deque[_Point] = deque(maxlen=max(method.predictor, method.corrector))  # newest first
    step, corrector_points = None, 0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        past.appendleft(_Point(-math.log(sigma), counted(x, sigma)))
        if sigma_next == 0:
            break
        if step is not None and corrector_points > 0:
            x = step.end(islice(past, corrector_points), method.moments)
        tau = taus[i] if taus else 0.0
        h, rate = math.log(sigma / sigma_next), 1 + tau**2
        carried = math.exp(-rate * h) * x
        if tau > 0:
            carried = carried + sigma_next * math.sqrt(-math.expm1(-2 * tau**2 * h)) * noise(i + 1)
        step = _Step(past[0].time, h, rate, carried)
        corrector_points = min(method.corrector, i + 2)
        left = levels - i if method.lower_order_final else levels
        x = step.end(islice(past, min(method.predictor, i + 1, left)), method.moments)
    return Sample(past[0].denoised, counted.nfe)
