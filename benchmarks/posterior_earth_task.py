"""What `benchmarks/posterior_earth.py` asks: measurements of photographs, a prior's chain, and a posterior told y.

All measurements are means of squares, some of which are left out: A A^T = a I with a = 1 / factor^2. So an image has a
part in the range of A^T, P x = A^+ A x with A^+ = A^T / a, and a part of which the measurement says nothing.

The posterior's denoiser is the prior's network with an adapter, told the measurement y at two places. At step i

    x' = x + k_i A^+ (y - A x),  c = D_adapted(x'; sigma_i),  D(x; sigma_i, y) = c + g_i A^+ (y - A c)

k_i begins at 0, and g_i at the gain of Bayes' rule for an error of the prior's D that is the same in all directions of
P, as measured. The variance of a step has one factor in the range of A^T and one beside it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.adapters import Adapter, adapted
from fewstep.ancestral import Chain, ancestral_chain, step_mean
from fewstep.checkpoint import NetworkModule
from fewstep.precond import Denoiser
from fewstep.schedule import karras_sigmas
from trainer.methods.rtb import Problem
from trainer.run.draws import Draws, seeded

RANK = 4
SIGMA_MIN, SIGMA_MAX = 0.1, 80.0
ROWS = 32  # images of a network call
Denoise = Callable[[Tensor, Tensor], Tensor]  # x [B, C, H, W], sigma [B] -> clean images
Shape = tuple[int, ...]
Errors = list[tuple[float, float]]  # of every step: mean squared error per direction, in the range of A^T and beside it


@dataclass(frozen=True)
class Measurement:
    """y = A x + noise n: means of factor x factor pixels, without those where mask [1, 1, H / factor, W / factor] is
    0, with Gaussian noise of deviation `noise`."""

    name: str
    factor: int
    mask: Tensor
    noise: float

    def of(self, images: Tensor) -> Tensor:
        """A x: [B, C, H / factor, W / factor], 0 where nothing is measured."""
        return (functional.avg_pool2d(images, self.factor) if self.factor > 1 else images) * self.mask

    def spread(self, y: Tensor) -> Tensor:
        """A^+ y: [B, C, H, W]."""
        measured = y * self.mask
        return measured.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)

    def part(self, images: Tensor) -> Tensor:
        """P x."""
        return self.spread(self.of(images))

    @property
    def unit(self) -> float:
        """a of A A^T = a I."""
        return self.factor**-2

    def elements(self, channels: int) -> int:
        return channels * int(self.mask.sum())

    def drawn(self, images: Tensor, rng: Draws) -> Tensor:
        """A measurement of each image, with its noise."""
        exact = self.of(images)
        return exact + self.noise * rng.normal_like(exact) * self.mask

    def log_reward(self, images: Tensor, y: Tensor) -> Tensor:
        """log N(y; A x, noise^2 I) without its constant, [B]; at most 0."""
        return -(self.of(images) - y).flatten(1).square().sum(dim=1) / (2 * self.noise**2)


def measurements(side: int) -> dict[str, Measurement]:
    """inpainting: a square of half the side is unknown; x4: means of 4x4 pixels; quarters: the four mean colours."""
    hole = torch.ones(1, 1, side, side)
    hole[..., side // 4 : side * 3 // 4, side // 4 : side * 3 // 4] = 0
    found = (
        Measurement("inpainting", 1, hole, 0.1),
        Measurement("x4", 4, torch.ones(1, 1, side // 4, side // 4), 0.1),
        Measurement("quarters", side // 2, torch.ones(1, 1, 2, 2), 0.2),
    )
    return {each.name: each for each in found}


@dataclass(frozen=True)
class Prior:
    """A teacher that is told one class, in a Gaussian chain."""

    denoiser: Denoiser
    label: int
    chain: Chain

    @staticmethod
    def of(denoiser: Denoiser, label: int, levels: int, images: Tensor) -> "Prior":
        """images [N, C, H, W] of the class: they say how wrong the denoiser is at every level (the rule 'opt')."""
        sigmas = karras_sigmas(levels, SIGMA_MIN, SIGMA_MAX)
        silent = Prior(denoiser, label, ancestral_chain(sigmas, "small"))
        with torch.no_grad():
            found = [
                float((silent.clean(noisy(images, sigma, i), sigma) - images).square().mean())
                for i, sigma in enumerate(sigmas)
            ]
        return Prior(denoiser, label, ancestral_chain(sigmas, "opt", found))

    @property
    def network(self) -> NetworkModule:
        assert isinstance(self.denoiser.network, NetworkModule)
        return self.denoiser.network

    def labels(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.label)

    def clean(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        levels = torch.full((len(x),), sigma) if isinstance(sigma, float) else sigma
        return self.denoiser(x, levels, self.labels(x))

    @torch.no_grad()
    def states(self, like: Tensor, rng: Draws) -> list[Tensor]:
        """A trajectory x_0 .. x_n of each row of `like`."""
        chain, states = self.chain, [self.chain.sigmas[0] * rng.normal_like(like)]
        for i, sigma in enumerate(chain.sigmas[:-1]):
            mean = step_mean(chain, i, states[-1], self.clean(states[-1], sigma))
            states.append(mean + math.sqrt(chain.variances[i]) * rng.normal_like(mean))
        return states

    @torch.no_grad()
    def image(self, last: Tensor) -> Tensor:
        """Of the last state, for the prior and for every posterior."""
        return self.clean(last, self.chain.sigmas[-1])

    def images(self, count: int, shape: Shape, rng: Draws) -> Tensor:
        """At least `count` images of the chain."""
        batches = range(-(-count // ROWS))
        return torch.cat([self.image(self.states(torch.empty(ROWS, *shape), rng)[-1]) for _ in batches])


def noisy(images: Tensor, sigma: float, seed: int) -> Tensor:
    return images + sigma * seeded(seed).normal_like(images)


class Told(nn.Module):
    """The posterior's denoiser and variances. y: a measurement of every row."""

    def __init__(self, prior: Prior, measurement: Measurement, errors: Errors, shape: Shape, seed: int) -> None:
        """errors: of the prior's denoiser (`errors_of`). shape: of an image, (C, H, W)."""
        super().__init__()
        self.prior, self.measurement, self.shape, self.channels = prior, measurement, shape, shape[0]
        self.adapter = Adapter(prior.network, RANK, 0, torch.Generator().manual_seed(seed))
        network = adapted(prior.network, self.adapter)
        self.denoiser = Denoiser(network, prior.denoiser.sigma_data, prior.denoiser.classes)
        a, s = measurement.unit, measurement.noise**2
        gains = [inside * a / (inside * a + s) for inside, _ in errors]
        self.begin, self.pulls = torch.tensor(gains), nn.Parameter(torch.zeros(len(gains)))
        self.moved, self.units = nn.Parameter(torch.zeros(len(gains))), self._units(errors)
        self.narrowed = nn.Parameter(torch.zeros(len(gains), 2))
        self.set_variance([(inside * (1 - g), beside) for (inside, beside), g in zip(errors, gains, strict=True)])

    @property
    def gains(self) -> Tensor:
        return self.begin + self.moved * self.units

    @property
    def log_variance(self) -> Tensor:
        """[steps, 2]. One unit of `narrowed` changes the log-ratio of a step by about one, however many elements."""
        return self.narrowed * (2 / self._elements()).sqrt()

    def _elements(self) -> Tensor:
        inside, whole = self.measurement.elements(self.channels), math.prod(self.shape)
        return torch.tensor([float(inside), float(whole - inside)])

    def _units(self, errors: Errors) -> Tensor:
        """A change of each gain that changes the log-ratio of its step by about one; at most 1."""
        chain, inside = self.prior.chain, self.measurement.elements(self.channels)
        missing = [inside * (self.measurement.noise**2 / self.measurement.unit + error) for error, _ in errors]
        moves = zip(chain.variances, chain.gains, missing, strict=True)
        return torch.tensor([min(math.sqrt(2 * v / m) / gain, 1.0) for v, gain, m in moves])

    def set_variance(self, errors: Errors) -> None:
        """The rule 'opt' in the range of A^T and beside it: errors are those of this denoiser. No variance is above the
        prior's: what is known of an image narrows a step."""
        chain = self.prior.chain
        for i, both in enumerate(errors):
            for part, error in enumerate(both):
                variance = chain.sigmas[i + 1] ** 2 * chain.gains[i] + chain.gains[i] ** 2 * error
                narrower = min(math.log(variance / chain.variances[i]), 0.0)
                self.narrowed.data[i, part] = narrower * (self._elements()[part] / 2).sqrt()

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        levels = torch.tensor(self.prior.chain.sigmas[:-1])
        i = (sigma[:, None] / levels).log().abs().argmin(dim=1)
        gain, pull = (each[i][:, None, None, None] for each in (self.gains, self.pulls))
        spread, of = self.measurement.spread, self.measurement.of
        clean = self.denoiser(x + pull * spread(y - of(x)), sigma, self.prior.labels(x))
        return clean + gain * spread(y - of(clean))


def errors_of(measurement: Measurement, denoise: Denoise, chain: Chain, images: Tensor) -> Errors:
    """Of denoise(x, sigma [B]) at the level of every step, on images [N, C, H, W]."""
    inside, found = measurement.elements(images.shape[1]), []
    beside = images[0].numel() - inside
    for i, sigma in enumerate(chain.sigmas[:-1]):
        with torch.no_grad():
            wrong = denoise(noisy(images, sigma, 50 + i), torch.full((len(images),), sigma)) - images
        within = float(measurement.part(wrong).square().sum()) / len(images)
        found.append((within / inside, (float(wrong.square().sum()) / len(images) - within) / beside))
    return found


@dataclass(frozen=True)
class Measured:
    """trainer.methods.rtb.Chains whose steps have two variances. y of a trajectory is a row of the table."""

    base: Problem
    told: Told
    table: Tensor  # [groups, ...], measurements; may be written to between updates

    @staticmethod
    def of(told: Told, table: Tensor) -> "Measured":
        prior = lambda x, sigma, y: told.prior.clean(x, sigma)  # noqa: E731
        reward = lambda images, y: told.measurement.log_reward(images, table[y])  # noqa: E731
        posterior = lambda x, sigma, y: told(x, sigma, table[y])  # noqa: E731
        base = Problem(prior, posterior, told.prior.chain, reward, told.narrowed, len(table))
        return Measured(base, told, table)

    @property
    def steps(self) -> int:
        return self.base.steps

    @property
    def groups(self) -> int:
        return len(self.table)

    @property
    def log_variance(self) -> Tensor:
        return self.told.log_variance

    def log_reward(self, images: Tensor, y: Tensor) -> Tensor:
        return self.base.log_reward(images, y)

    def start(self, like: Tensor, rng: Draws) -> Tensor:
        return self.base.start(like, rng)

    def clean(self, i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.clean(i, x, y)

    def prior_step(self, i: int, x: Tensor, prior: Tensor, rng: Draws) -> Tensor:
        return self.base.prior_step(i, x, prior, rng)

    def own_step(self, i: int, x: Tensor, posterior: Tensor, rng: Draws, widened: float) -> Tensor:
        noise, factors = rng.normal_like(x), (self.log_variance[i] / 2).exp()
        inside = self.told.measurement.part(noise)
        spread = math.sqrt(self.base.chain.variances[i]) * (factors[0] * inside + factors[1] * (noise - inside))
        return step_mean(self.base.chain, i, x, posterior) + widened * spread

    def ratio(self, i: int, x: Tensor, following: Tensor, prior: Tensor, posterior: Tensor) -> Tensor:
        """l_i [B]: `fewstep.ancestral.log_ratio` in two subspaces, each with its own log variance."""
        chain, measurement = self.base.chain, self.told.measurement
        residual = following - step_mean(chain, i, x, posterior)
        moved = chain.gains[i] * (posterior - prior)
        inside = measurement.part(residual).flatten(1).square().sum(dim=1)
        squares = inside, residual.flatten(1).square().sum(dim=1) - inside
        count = measurement.elements(x.shape[1])
        total = (2 * residual * moved + moved**2).flatten(1).sum(dim=1) / (2 * chain.variances[i])
        for square, elements, w in zip(
            squares, (count, x[0].numel() - count), self.log_variance[i].unbind(), strict=True
        ):
            total = total - torch.expm1(-w) * square / (2 * chain.variances[i]) - elements * w / 2
        return total

    def step_ratio(self, i: int, x: Tensor, following: Tensor, prior: Tensor, y: Tensor) -> Tensor:
        sigma = x.new_full((len(x),), self.base.chain.sigmas[i])
        return self.ratio(i, x, following, prior, self.base.posterior(x, sigma, y))

    def image(self, last: Tensor, y: Tensor) -> Tensor:
        return self.told.prior.image(last)

    def noised_back(self, images: Tensor, rng: Draws) -> list[Tensor]:
        return self.base.noised_back(images, rng)

    def renoised(self, last: Tensor, rng: Draws) -> list[Tensor]:
        return self.base.renoised(last, rng)
