"""What `benchmarks/posterior.py` compares with trajectory balance: functions of a trainer.methods.rtb.Problem."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.ancestral import step_mean
from trainer.methods.rtb import LogReward, Problem, accumulate, own_steps, walk
from trainer.run.draws import Draws
from trainer.run.optimizer import learning_rate
from trainer.settings import AdamConfig


class Reference(NamedTuple):
    """The prior's chain and its exact posterior, by rejection. Exact where r <= 1."""

    proposals: Tensor  # [n, C, H, W], of the prior's chain
    log_rewards: Tensor  # [n]
    accepted: Tensor  # [m, C, H, W]
    log_z: float  # log of the mean of r over the proposals

    @property
    def acceptance(self) -> float:
        return len(self.accepted) / len(self.proposals)

    @property
    def log_reward(self) -> float:
        """E[log r] of the posterior, by weights r: of all proposals, so more exact than of those accepted."""
        return float((self.log_rewards.softmax(0) * self.log_rewards).sum())


@torch.no_grad()
def prior_images(problem: Problem, like: Tensor, count: int, rng: Draws) -> tuple[Tensor, Tensor]:
    """Images [count, ...] of the prior's chain and their log r."""
    images, y = [], torch.zeros(len(like), dtype=torch.long)
    for _ in range(-(-count // len(like))):
        x = problem.start(like, rng)
        for i, sigma in enumerate(problem.chain.sigmas[:-1]):
            clean = problem.prior(x, x.new_full((len(x),), sigma), y)
            x = step_mean(problem.chain, i, x, clean) + math.sqrt(problem.chain.variances[i]) * rng.normal_like(x)
        images.append(problem.image(x, y))
    made = torch.cat(images)[:count]
    return made, problem.log_reward(made, torch.zeros(count, dtype=torch.long))


def rejection(problem: Problem, like: Tensor, count: int, rng: Draws) -> Reference:
    """Accept each of `count` images of the prior with probability r <= 1."""
    proposals, log_rewards = prior_images(problem, like, count, rng)
    if float(log_rewards.max()) > 1e-6:
        raise ValueError("rejection needs r <= 1")
    accepted = proposals[rng.uniform(count).log() < log_rewards]
    return Reference(proposals, log_rewards, accepted, float(log_rewards.logsumexp(0)) - math.log(count))


def dps(problem: Problem, like: Tensor, log_reward: LogReward, scale: float, rng: Draws) -> Tensor:
    """Diffusion posterior sampling (Chung et al. 2023) on the same chain: images shaped like `like`.

    D + scale sigma^2 grad_x log r(D(x)) in place of D. It replaces E[r(x0) | x] by r(E[x0 | x]); scale 1 is Bayes'
    rule with that, other scales are the step size that is tuned. log_reward must have a gradient.
    """
    y, x = torch.zeros(len(like), dtype=torch.long), problem.start(like, rng)
    for i, sigma in enumerate(problem.chain.sigmas[:-1]):
        noisy = x.detach().requires_grad_()
        clean = problem.prior(noisy, x.new_full((len(x),), sigma), y)
        gradient = torch.autograd.grad(log_reward(clean, y).sum(), noisy)[0]
        guided = clean.detach() + scale * sigma**2 * gradient
        x = step_mean(problem.chain, i, x, guided) + math.sqrt(problem.chain.variances[i]) * rng.normal_like(x)
    with torch.no_grad():
        return problem.image(x, y)


def best_of(problem: Problem, like: Tensor, among: int, rng: Draws) -> Tensor:
    """For every row of `like` the image with the largest r of `among` images of the prior."""
    images, log_rewards = prior_images(problem, like, among * len(like), rng)
    best = log_rewards.view(among, -1).argmax(dim=0)
    return images.view(among, len(like), *like.shape[1:])[best, torch.arange(len(like))]


def policy_gradient(
    problem: Problem, trained: nn.Module, like: Tensor, updates: int, adam: AdamConfig, rng: Draws, beta: float = 1.0,
    said: Callable[[int], None] = lambda update: None,
) -> None:  # fmt: skip
    """KL-regularised REINFORCE with the reward whose optimum is the posterior: log r, and the advantage

        beta log r - log-ratio, less its mean over the batch.

    The baseline of the paper had r in place of log r and the square of the log-ratio as its penalty, whose optimum is
    another one. On-policy, this gradient is that of trajectory balance with VarGrad (Deleu et al. 2025).
    """
    optimizer = torch.optim.Adam([w for w in trained.parameters() if w.requires_grad], adam.lr, adam.betas)
    y = torch.zeros(len(like), dtype=torch.long)
    for update in range(updates):
        found = walk(problem, y, problem.start(like, rng), own_steps(problem, rng))
        advantage = beta * found.log_reward - found.log_ratio
        accumulate(problem, found, advantage.mean() - advantage, list(range(problem.chain.steps)))
        optimizer.param_groups[0]["lr"] = learning_rate(adam, update / updates)
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], adam.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        said(update + 1)


@torch.no_grad()
def own_images(problem: Problem, like: Tensor, rng: Draws) -> Tensor:
    """Images of the posterior, shaped like `like`."""
    y = torch.zeros(len(like), dtype=torch.long)
    return walk(problem, y, problem.start(like, rng), own_steps(problem, rng)).images
