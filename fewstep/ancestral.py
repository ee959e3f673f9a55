"""Stochastic samplers whose steps are Gaussian, and the log-ratio of two of them along one trajectory. Numpy or torch.

A chain has states x_0 .. x_n at levels sigma_0 > ... > sigma_n > 0. It starts at x_0 ~ N(0, sigma_0^2 I) and goes on by

    x_{i+1} ~ N((1 - g_i) x_i + g_i D(x_i; sigma_i), v_i I)        g_i: the gain, v_i: the variance of a step

Its image is D(x_n; sigma_n), of the prior's denoiser also for a posterior: so the last map cancels in log-ratios.
An ODE or EDM's churn has no such density; that is why posteriors are trained on this sampler.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from array_api_compat import array_namespace

from fewstep.precond import Array
from fewstep.samplers import BoundDenoiser, Counted, Noise, Sample
from fewstep.schedule import check_levels

VarianceRule = Literal["small", "large", "opt"]


@dataclass(frozen=True)
class Chain:
    """Everything about a chain but its denoiser."""

    sigmas: tuple[float, ...]  # of the states: n + 1 levels
    gains: tuple[float, ...]  # of the steps: n
    variances: tuple[float, ...]  # of the steps: n

    def __post_init__(self) -> None:
        """Raises ValueError unless levels descend and every step has a gain in (0, 1] and a positive variance."""
        check_levels(self.sigmas)
        if not self.steps or not len(self.gains) == len(self.variances) == self.steps:
            raise ValueError(f"{len(self.sigmas)} levels need {self.steps} gains and variances, and at least one")
        if not all(0 < gain <= 1 for gain in self.gains) or not all(0 < v < math.inf for v in self.variances):
            raise ValueError("gains must lie in (0, 1] and variances above 0")

    @property
    def steps(self) -> int:
        """n, the number of transitions; an image costs one network call more."""
        return len(self.sigmas) - 1


def ancestral_chain(
    sigmas: Sequence[float], rule: VarianceRule = "opt", errors: Sequence[float] | None = None
) -> Chain:
    """The ancestral sampler of variance-exploding noise. g_i = 1 - sigma_{i+1}^2 / sigma_i^2, and the variances are

    small: sigma_{i+1}^2 g_i, that of q(x_{i+1} | x_i, x0) (DDPM's lower choice: Ho et al. 2020, section 3.2)
    large: sigma_i^2 g_i (its upper choice)
    opt:   small + g_i^2 e_i, the law of total variance (Bao et al. 2022, Analytic-DPM, Eq. 9). e_i is `errors`[i], the
           mean squared error per element of D at sigma_i, as of `denoising_errors`. Exact for Gaussian data.

    sigmas: n + 1 levels, high to low. Raises ValueError when `errors` are missing or too few.
    """
    gains = tuple(1 - low**2 / high**2 for high, low in pairwise(sigmas))
    small = tuple(low**2 * gain for low, gain in zip(sigmas[1:], gains, strict=True))
    if rule == "small":
        variances = small
    elif rule == "large":
        variances = tuple(high**2 * gain for high, gain in zip(sigmas, gains, strict=False))
    elif errors is None or len(errors) < len(gains):
        raise ValueError(f"the rule 'opt' needs the denoiser's error at {len(gains)} levels; see denoising_errors")
    else:
        variances = tuple(v + gain**2 * e for v, gain, e in zip(small, gains, errors, strict=False))
    return Chain(tuple(sigmas), gains, variances)


def student_chain(sigmas: Sequence[float]) -> Chain:
    """The student's sampler `sample_dpdm` as a chain: it re-noises its whole output, so gains are 1 and variances
    sigma_{i+1}^2; its last call is the last map. sigmas: at least two levels."""
    return Chain(tuple(sigmas), (1.0,) * (len(sigmas) - 1), tuple(low**2 for low in sigmas[1:]))


def denoising_errors(denoiser: BoundDenoiser, images: Array, sigmas: Sequence[float], noise: Noise) -> list[float]:
    """Mean squared error per element of the denoiser at every level, on images [B, C, H, W]; noise(i) for level i."""
    xp, counted = array_namespace(images), Counted(denoiser)
    residuals = (
        counted(images + sigma * noise(i), sigma) - images for i, sigma in enumerate(sigmas)
    )  # one at a time: only its mean is kept
    return [float(xp.mean(residual**2)) for residual in residuals]


def step_mean(chain: Chain, i: int, x: Array, denoised: Array) -> Array:
    """The mean of x_{i+1} given x = x_i and denoised = D(x_i; sigma_i), both [B, ...]."""
    return (1 - chain.gains[i]) * x + chain.gains[i] * denoised


def sample_ancestral(
    denoiser: BoundDenoiser,
    noise: Noise,
    chain: Chain,
    *,
    decoder: BoundDenoiser | None = None,
    log_variance: Sequence[float] | None = None,
) -> Sample:
    """Sample a chain. noise(0) is the initial noise, noise(i + 1) that of step i, all [B, C, H, W].

    decoder: makes the image of the last state; None: the denoiser. For a posterior give the prior's.
    log_variance: n numbers; the variance of step i is v_i exp(log_variance[i]).
    """
    counted = Counted(denoiser)
    x = chain.sigmas[0] * noise(0)
    for i, sigma in enumerate(chain.sigmas[:-1]):
        scale = chain.variances[i] * math.exp(log_variance[i] if log_variance is not None else 0.0)
        x = step_mean(chain, i, x, counted(x, sigma)) + math.sqrt(scale) * noise(i + 1)
    last = Counted(decoder or denoiser)
    return Sample(last(x, chain.sigmas[-1]), counted.nfe + last.nfe)


class WeightedSample(NamedTuple):
    """Images of a posterior's chain with their log importance weights."""

    images: Array  # [B, C, H, W]
    log_weight: Array  # [B]
    nfe: int  # network calls per image, the prior's beside the posterior's


def sample_weighted(
    prior: BoundDenoiser,
    posterior: BoundDenoiser,
    noise: Noise,
    chain: Chain,
    log_reward: Callable[[Array], Array],
    *,
    log_variance: Sequence[float] | None = None,
    beta: float = 1.0,
) -> WeightedSample:
    """`sample_ancestral` of the posterior, its images made by the prior, with the importance weight of every image.

    log_weight = beta log r - the sum of `log_ratio` over the steps: of the density sought over that of the trajectory.
    The mean of the weights estimates Z, and images drawn again in proportion to them have the density p r^beta / Z of
    the prior's chain, up to the number of samples, however good or bad the posterior is. log_reward: images -> [B].
    """
    before, after = Counted(prior), Counted(posterior)
    x = chain.sigmas[0] * noise(0)
    total = 0.0
    for i, sigma in enumerate(chain.sigmas[:-1]):
        logged = 0.0 if log_variance is None else float(log_variance[i])
        clean, tilted = before(x, sigma), after(x, sigma)
        deviation = math.sqrt(chain.variances[i] * math.exp(logged))
        following = step_mean(chain, i, x, tilted) + deviation * noise(i + 1)
        total = total + log_ratio(chain, i, x, following, clean, tilted, logged)
        x = following
    images = before(x, chain.sigmas[-1])
    return WeightedSample(images, beta * log_reward(images) - total, before.nfe + after.nfe)


def log_ratio(
    chain: Chain, i: int, x: Array, x_next: Array, prior: Array, posterior: Array, log_variance: Array | float = 0.0
) -> Array:
    """log p_posterior(x_{i+1} | x_i) - log p_prior(x_{i+1} | x_i) of one step, [B].

    x, x_next: states i and i + 1 [B, ...]; prior, posterior: what the two denoisers return for x, likewise.
    log_variance: log of the posterior's variance over the prior's, a scalar.
    With u = x_{i+1} - mean_posterior, d = mean_posterior - mean_prior and w = log_variance over k elements:
        -k w / 2 + ((1 - e^-w) |u|^2 + 2 <u, d> + |d|^2) / (2 v_i)
    Each factor is small where the two agree; the difference of two log-densities would cancel large terms.
    """
    xp = array_namespace(x)
    moved = chain.gains[i] * (posterior - prior)
    residual = x_next - step_mean(chain, i, x, posterior)
    elements = math.prod(x.shape[1:])
    w = log_variance if hasattr(log_variance, "shape") else xp.asarray(log_variance, dtype=x.dtype, device=x.device)
    terms = -xp.expm1(-w) * residual**2 + 2 * residual * moved + moved**2
    return xp.sum(xp.reshape(terms, (x.shape[0], -1)), axis=1) / (2 * chain.variances[i]) - elements * w / 2


def noised_back(images: Array, chain: Chain, noise: Noise) -> list[Array]:
    """States x_0 .. x_n of a trajectory that ends at images [B, C, H, W] under noise sigma_n, drawn from its end:
    x_i = x_{i+1} + sqrt(sigma_i^2 - sigma_{i+1}^2) eps. noise(i) is that of state i.
    """
    return renoised(images + chain.sigmas[-1] * noise(chain.steps), chain, noise)


def renoised(last: Array, chain: Chain, noise: Noise) -> list[Array]:
    """As `noised_back`, from the last state x_n itself."""
    states = [last]
    for i in reversed(range(chain.steps)):
        spread = math.sqrt(chain.sigmas[i] ** 2 - chain.sigmas[i + 1] ** 2)
        states.append(states[-1] + spread * noise(i))
    return states[::-1]
