"""How `benchmarks/posterior_earth.py` trains a posterior that is told its measurement, for so many CPU seconds.

Every update has new measurements of images of the prior's chain, each with its noise. Such an image, and the trajectory
that led to it, are one exact draw of the posterior given this measurement.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.posterior_earth_task import ROWS, Measured, Told, errors_of
from fewstep.precond import edm_scalings
from trainer.methods.rtb import Trajectories, accumulate, deviations, given_steps, own_steps, walk
from trainer.run.draws import Draws
from trainer.settings import PosteriorConfig

CONFIG = PosteriorConfig()
GAINS, PULLS = 0.1, 0.01  # rates of denoising
SCALARS = 0.1  # the rate of trajectory balance for gains and variances


@dataclass(frozen=True)
class Budget:
    """Of a training: CPU seconds, or so many updates if that is less."""

    seconds: float
    updates: int

    def steps(self) -> Iterator[float]:
        """The progress in [0, 1) before every update."""
        since = time.process_time()
        for update in range(self.updates):
            progress = max((time.process_time() - since) / self.seconds, update / self.updates)
            if progress >= 1:
                return
            yield progress


def optimizer_of(told: Told, rate: float, others: dict[nn.Parameter, float]) -> torch.optim.Optimizer:
    """Adam on the adapter, and with rates of their own on other parameters."""
    groups = [{"params": [each], "lr": lr} for each, lr in others.items()]
    return torch.optim.Adam([{"params": list(told.adapter.parameters()), "lr": rate}, *groups], betas=CONFIG.adam.betas)


def descend(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """One step of Adam, after a clip of the gradient of each group, and its rate falling to 0 over the last 40 %."""
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_([each for each in group["params"] if each.grad is not None], CONFIG.adam.clip)
        group.setdefault("full", group["lr"])
        group["lr"] = group["full"] * min(1.0, (1 - progress) / 0.4)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def denoising(told: Told, images: Tensor, budget: Budget, rate: float, batch: int, rng: Draws) -> int:
    """E |D(x + sigma e; sigma, y) - x|^2 over images x of the prior and their measurements: D becomes E[x | ., y].
    The variances follow by the rule 'opt'. Returns the number of updates."""
    optimizer, updates = optimizer_of(told, rate, {told.moved: GAINS, told.pulls: PULLS}), 0
    sigmas = torch.tensor(told.prior.chain.sigmas[:-1])
    for progress in budget.steps():
        clean = images[rng.integers(len(images), batch)]
        sigma = sigmas[rng.integers(len(sigmas), batch)]
        x = clean + sigma[:, None, None, None] * rng.normal_like(clean)
        weight = edm_scalings(sigma, told.prior.denoiser.sigma_data).c_out ** -2
        wrong = told(x, sigma, told.measurement.drawn(clean, rng)) - clean
        (weight * wrong.square().flatten(1).mean(dim=1)).mean().backward()
        descend(optimizer, progress)
        updates += 1
    some = images[:ROWS]
    y = told.measurement.drawn(some, rng)
    told.set_variance(errors_of(told.measurement, lambda x, s: told(x, s, y), told.prior.chain, some))
    return updates


@dataclass(frozen=True)
class Batch:
    """Of trajectory balance."""

    measurements: int
    own: int  # trajectories of the posterior for each measurement
    given: bool  # and that of the image which was measured
    levels: int  # steps whose gradient is taken


def balance(told: Told, states: list[Tensor], budget: Budget, rate: float, batch: Batch, rng: Draws) -> int:
    """Trajectory balance with a log Z for every measurement (VarGrad). states: x_0 .. x_n of the prior, [N, ...] each.
    Without the given trajectories the gradient is that of the corrected KL-regularised policy gradient. Returns the
    number of updates."""
    like = torch.empty(1, *states[0].shape[1:])
    table = torch.zeros_like(told.measurement.of(like)).repeat(batch.measurements, 1, 1, 1)
    told.pulls.requires_grad_(False)
    problem, optimizer, updates = (
        Measured.of(told, table),
        optimizer_of(told, rate, {told.moved: SCALARS, told.narrowed: SCALARS}),
        0,
    )
    each = torch.arange(batch.measurements)
    for progress in budget.steps():
        rows = rng.integers(len(states[0]), batch.measurements)
        known = [state[rows] for state in states]
        table.copy_(told.measurement.drawn(told.prior.image(known[-1]), rng))
        y = each.repeat(batch.own)
        first = problem.start(like.expand(len(y), -1, -1, -1), rng)
        found = walk(problem, y, first, own_steps(problem, rng))
        if batch.given:
            found = joined(found, walk(problem, each, known[0], given_steps(known)))
        away = deviations(found.residual(1.0), found.y, None, CONFIG, problem.groups)
        steps = torch.randperm(problem.steps, generator=rng.generator)[: batch.levels].tolist()
        accumulate(problem, found, away, steps)
        descend(optimizer, progress)
        updates += 1
    return updates


def joined(one: Trajectories, other: Trajectories) -> Trajectories:
    pairs = lambda a, b: [torch.cat(both) for both in zip(a, b, strict=True)]  # noqa: E731
    rest = (torch.cat(both) for both in zip(one[2:], other[2:], strict=True))
    return Trajectories(pairs(one.states, other.states), pairs(one.prior, other.prior), *rest)
