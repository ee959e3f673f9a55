"""Tilted denoising regression: a posterior's denoiser from weighted samples of the prior, without rollouts.

Samples of the prior drawn again in proportion to r^beta have the posterior's law, so a denoiser trained on them is the
posterior's (as in DEFT, Denker et al. 2024, and other importance-weighted fine-tuning). Good where Z is not small: the
number of samples that count is the effective sample size of the weights. A start for `trainer.methods.rtb` elsewhere.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fewstep.precond import Denoiser
from trainer.methods.edm import denoising_loss
from trainer.methods.rtb import Following, Problem, Trajectories, own_steps, prior_steps, walk
from trainer.run.draws import Draws
from trainer.run.optimizer import descend
from trainer.settings import AdamConfig

TILTED = AdamConfig(2e-3, (0.9, 0.99), warmup=0.05, decay_from=0.5, final=0.02, clip=1.0)


def prior_pool(problem: Problem, like: Tensor, y: Tensor, count: int, rng: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """At least `count` images of the prior's chain, in batches of `like` and y: images, log r and y."""
    return _pool(problem, like, y, count, prior_steps(problem, rng), lambda found: found.log_reward, rng)


def posterior_pool(
    problem: Problem, like: Tensor, y: Tensor, count: int, rng: Draws, beta: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """As `prior_pool`, of the posterior's chain, with the log of the importance weights in place of log r."""
    return _pool(problem, like, y, count, own_steps(problem, rng), lambda found: -found.residual(beta), rng)


@torch.no_grad()
def _pool(
    problem: Problem, like: Tensor, y: Tensor, count: int, following: Following,
    score: Callable[[Trajectories], Tensor], rng: Draws,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    parts = []
    while sum(len(part[1]) for part in parts) < count:
        found = walk(problem, y, problem.start(like, rng), following)
        parts.append((found.images, score(found), y))
    images, scores, groups = (torch.cat(part) for part in zip(*parts, strict=True))
    return images, scores, groups


def group_weights(log_rewards: Tensor, y: Tensor, beta: float) -> Tensor:
    """Weights [count] in proportion to r^beta, that sum to 1 in every group."""
    weights = torch.zeros_like(log_rewards)
    for group in y.unique():
        rows = y == group
        weights[rows] = (beta * log_rewards[rows]).softmax(dim=0)
    return weights


def tilted_regression(
    posterior: Denoiser,
    trained: nn.Module,
    pool: tuple[Tensor, Tensor, Tensor],  # as of prior_pool
    sigmas: tuple[float, float],  # lowest and highest level; log-uniform between them
    updates: int,
    rng: Draws,
    *,
    beta: float = 1.0,
    batch: int = 128,
    adam: AdamConfig = TILTED,
    told: bool = False,  # the posterior is told y
    said: Callable[[int, float], None] = lambda update, loss: None,
) -> None:
    """Train in place, `updates` steps of Adam on EDM's denoising loss."""
    images, log_rewards, y = pool
    weights = group_weights(log_rewards, y, beta)
    optimizer = torch.optim.Adam([w for w in trained.parameters() if w.requires_grad], adam.lr, adam.betas)
    for update, rows in enumerate(_drawn(weights, batch, updates, rng)):
        clean = images[rows]
        low, high = (torch.tensor(sigma, device=clean.device).log() for sigma in sigmas)
        sigma = (low + (high - low) * rng.uniform(batch)).exp()
        labels = y[rows] if told else None
        loss = denoising_loss(posterior, clean, labels, sigma, rng.normal_like(clean)).mean()
        descend(optimizer, loss, adam, update / updates)
        said(update + 1, float(loss.detach()))


def _drawn(weights: Tensor, batch: int, updates: int, rng: Draws) -> Iterator[Tensor]:
    for _ in range(updates):
        rows = torch.multinomial(weights.cpu(), batch, replacement=True, generator=rng.generator)
        yield rows.to(weights.device)
