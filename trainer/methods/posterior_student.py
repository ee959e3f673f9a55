"""A posterior in few steps, by adapters beside frozen networks.

Two stages from a posterior's chain (`trainer.methods.rtb`), whose denoiser is trained at the chain's levels alone, and
as the drift of finitely many steps, which is not a conditional mean:

1. It becomes a teacher of all levels. With images x of the chain, sigma of any level and unit normals e,
       min_D E |D(x + sigma e; sigma) - x|^2    has the solution    D(z; sigma) = E[x | x + sigma e = z],
   the denoiser of the law of these images (Vincent 2011). If they are drawn again in proportion to exp(-residual),
   the law is p r^beta / Z itself. This is `trainer.methods.tilted.tilted_regression` on a `posterior_pool`.
2. DPDM with that teacher (`trainer.methods.dpdm`). Student and auxiliary are adapters beside it, or beside a student of
   the prior and the prior's network.

One stage instead, where r has a gradient: DPDM with a teacher that is tilted at every level without training,

    D(z; sigma) + beta sigma^2 grad_z log E[r(x) | z]                                             (Bayes and Tweedie)

with the expectation over N(D(z; sigma), e_sigma I), e_sigma the prior's mean squared error per element: exact for a
Gaussian prior of equal variances and many samples (Song et al. 2023, LGD, with one sample DPS's approximation).

A few-step student is a chain itself, so trajectory balance also tilts it directly (`fewstep.ancestral.student_chain`).
Its last map, D(x_n; sigma_n), has no noise and no density, and is the prior's; `imitation_loss_of_chain` makes one
network of both, which is what the server calls.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.adapters import Adapter, adapted
from fewstep.checkpoint import NetworkModule
from fewstep.precond import Denoiser
from trainer.levels.conditioning import LEVEL_FEATURES, widen
from trainer.methods.dpdm import Denoise, Parts
from trainer.methods.rtb import LogReward, Problem, own_steps, walk
from trainer.methods.tilted import group_weights
from trainer.run.draws import Draws
from trainer.run.optimizer import descend
from trainer.settings import AdamConfig

Pool = tuple[Tensor, Tensor, Tensor]  # images [N, C, H, W], log weights [N] and y [N]


class FewStepPrior(NamedTuple):
    """The prior in few steps, from which a posterior's student may begin."""

    student: NetworkModule
    network: NetworkModule  # of the prior itself, at all levels


def adapter_parts(
    teacher: NetworkModule,
    rank: int,
    sigma_data: float,
    classes: int,
    generator: torch.Generator,
    begin: FewStepPrior | None = None,
    *,
    sees_level: bool = True,  # whether the auxiliary is told the level of the student's input
) -> Parts:
    """Student and auxiliary as adapters, 0 at first, beside frozen networks. teacher: the posterior's, of all levels.

    The student begins as `begin.student`, or else as the teacher. The auxiliary has to denoise the student's images, so
    it begins as the network of their distribution: the prior's, or else the teacher. Beside the teacher, an auxiliary
    of the prior's student would begin at its own target, where the gradient says nothing (docs/log.md).
    """
    frozen = teacher.eval().requires_grad_(False)
    begun, denoises = begin or FewStepPrior(frozen, frozen)
    begun.eval().requires_grad_(False)
    wide = widen(denoises, features=LEVEL_FEATURES if sees_level else 0).eval().requires_grad_(False)
    student, auxiliary = (Adapter(network, rank, 0, generator) for network in (begun, wide))
    as_denoiser = lambda network: Denoiser(network, sigma_data, classes)  # noqa: E731
    return Parts(
        as_denoiser(frozen), as_denoiser(adapted(begun, student)), as_denoiser(adapted(wide, auxiliary)),
        {"student": student, "auxiliary": auxiliary},
    )  # fmt: skip


def pool_batches(pool: Pool, batch: int, seed: int, weighted: bool, seen: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of images and y, by weights or evenly. A batch depends on the seed and its number alone, so a run
    that goes on after `seen` images sees what an uninterrupted one does."""
    images, log_weights, y = pool
    weights = group_weights(log_weights if weighted else torch.zeros_like(log_weights), y, 1.0).cpu()
    number = seen // batch
    while True:
        generator = torch.Generator().manual_seed(((seed + 1) * 1_000_003 + number) % 2**63)
        rows = torch.multinomial(weights, batch, replacement=True, generator=generator).to(images.device)
        yield images[rows], y[rows]
        number += 1


def tilted_teacher(
    prior: Denoise,
    log_reward: LogReward,
    error: Callable[[Tensor], Tensor],  # sigma [B] -> e_sigma [B]
    rng: Draws,
    *,
    samples: int = 8,
    beta: float = 1.0,
) -> Denoise:
    """The teacher of the one-stage route. log_reward must have a gradient. `samples` images in every row's expectation:
    the log of their mean is too small, and its gradient too large, where r varies much among few."""

    def run(z: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        y = labels if labels is not None else torch.zeros(len(z), dtype=torch.long, device=z.device)
        with torch.enable_grad():
            noisy = z.detach().requires_grad_()
            clean = prior(noisy, sigma, labels)
            spread = error(sigma).sqrt()[:, None, None, None]
            many = clean.repeat(samples, 1, 1, 1)
            guesses = many + spread.repeat(samples, 1, 1, 1) * rng.normal_like(many)
            rewards = beta * log_reward(guesses, y.repeat(samples)).view(samples, -1)
            expected = torch.logsumexp(rewards, dim=0) - math.log(samples)
            gradient = torch.autograd.grad(expected.sum(), noisy)[0]
        return clean.detach() + sigma[:, None, None, None] ** 2 * gradient

    return run


def interpolated(sigmas: Sequence[float], errors: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Errors of levels (`fewstep.ancestral.denoising_errors`) as a function of sigma: linear between logarithms."""
    order = sorted(zip(sigmas, errors, strict=True))
    levels, values = (torch.tensor(column).log() for column in zip(*order, strict=True))

    def run(sigma: Tensor) -> Tensor:
        knots, heights = levels.to(sigma), values.to(sigma)
        right = torch.bucketize(sigma.log().contiguous(), knots).clamp(1, len(knots) - 1)
        share = ((sigma.log() - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
        return (heights[right - 1] + share * (heights[right] - heights[right - 1])).exp()

    return run


def imitation_loss_of_chain(problem: Problem, imitator: Denoise, like: Tensor, y: Tensor, rng: Draws) -> Tensor:
    """Mean squared error of one denoiser to the calls of a posterior's chain along its own trajectories: the
    posterior's at all levels but the last, the prior's there. like [B, C, H, W], y [B]; a scalar."""
    found, sigmas = walk(problem, y, problem.start(like, rng), own_steps(problem, rng)), problem.chain.sigmas
    losses = []
    for i, (x, sigma) in enumerate(zip(found.states, sigmas, strict=True)):
        level = x.new_full((len(x),), sigma)
        with torch.no_grad():
            target = found.images if i == problem.chain.steps else problem.posterior(x, level, y)
        losses.append((imitator(x, level, y) - target).square().mean())
    return torch.stack(losses).mean()


def imitate(
    problem: Problem, imitator: Denoise, trained: nn.Module, like: Tensor, y: Tensor, updates: int, adam: AdamConfig,
    rng: Draws, said: Callable[[int, float], None] = lambda update, loss: None,
) -> None:  # fmt: skip
    """Train in place on `imitation_loss_of_chain`."""
    optimizer = torch.optim.Adam([w for w in trained.parameters() if w.requires_grad], adam.lr, adam.betas)
    for update in range(updates):
        loss = imitation_loss_of_chain(problem, imitator, like, y, rng)
        descend(optimizer, loss, adam, update / updates)
        said(update + 1, float(loss.detach()))
