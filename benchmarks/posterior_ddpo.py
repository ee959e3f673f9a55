"""Policy gradients whose steps are clipped by importance (DDPO: Black et al. 2024, Eq. 4, with PPO's clip; DPOK: Fan et
al. 2023, Eq. 11). For trajectories of the policy before the update, "old", every step i descends

    -min(w_i A, clip(w_i, 1 - c, 1 + c) A) + alpha KL(p(. | x_i) || p_prior(. | x_i)),   w_i = p(x_{i+1} | x_i) / p_old

DDPO: A = (log r - mean) / std and alpha 0: nothing holds it to the prior, so it goes on to the largest r.
DPOK: A = log r - mean and alpha 1, of which the gradient is that of E[log r] - KL, but for what a step does to the
KL of later ones.
"""

import torch
from torch import Tensor, nn

from fewstep.ancestral import step_mean
from trainer.methods.rtb import Problem, Trajectories, own_steps, walk
from trainer.run.draws import Draws
from trainer.run.optimizer import learning_rate
from trainer.settings import AdamConfig


def clipped_policy_gradient(
    problem: Problem, trained: nn.Module, like: Tensor, updates: int, adam: AdamConfig, rng: Draws,
    *, alpha: float = 0.0, normalised: bool = True, clip: float = 0.1, passes: int = 2, beta: float = 1.0,
) -> None:  # fmt: skip
    """Train in place, one group; the variances of steps stay the prior's. An update draws trajectories once, and every
    one of its `passes` is a step of Adam over all of the chain."""
    problem.log_variance.requires_grad_(False)
    optimizer = torch.optim.Adam([w for w in trained.parameters() if w.requires_grad], adam.lr, adam.betas)
    y = torch.zeros(len(like), dtype=torch.long, device=like.device)
    for update in range(updates):
        found = walk(problem, y, problem.start(like, rng), own_steps(problem, rng))
        advantage = beta * (found.log_reward - found.log_reward.mean())
        if normalised:
            advantage = (advantage / advantage.std().clamp(min=1e-6)).clamp(-5, 5)
        before: list[Tensor] = []
        for turn in range(passes):
            for i in range(problem.chain.steps):
                ratio = _step(problem, found, i, y)
                if turn == 0:
                    before.append(ratio.detach())
                loss = surrogate((ratio - before[i]).exp(), advantage, clip).mean()
                if alpha:
                    loss = loss + alpha * _divergence(problem, found, i, y).mean()
                loss.backward()
            optimizer.param_groups[0]["lr"] = learning_rate(adam, update / updates)
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], adam.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """What is descended [B]: no gradient where the ratio [B] has gone far enough in the direction of the advantage."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def _step(problem: Problem, found: Trajectories, i: int, y: Tensor) -> Tensor:
    """log p - log p_prior of step i [B]; the prior's part cancels in w_i."""
    return problem.step_ratio(i, found.states[i], found.states[i + 1], found.prior[i], y)


def _divergence(problem: Problem, found: Trajectories, i: int, y: Tensor) -> Tensor:
    """KL of step i [B]: of two Gaussians of one variance."""
    x, chain = found.states[i], problem.chain
    posterior = problem.posterior(x, x.new_full((len(x),), chain.sigmas[i]), y)
    moved = step_mean(chain, i, x, posterior) - step_mean(chain, i, x, found.prior[i])
    return moved.flatten(1).square().sum(dim=1) / (2 * chain.variances[i])
