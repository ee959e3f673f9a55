"""Reinforce adjoint matching (RAM: Bergmeister et al. 2026, Eq. 17), in x0-prediction.

An image x is drawn from the current posterior by any sampler and scored once; it is noised as in pretraining,
z = x + sigma e, and the denoiser D regresses

    stop(D_prior(z) + beta (log r(x) - b) (x - D(z))),      b: the mean of log r over the batch

No gradient of r and none through sampling. As E[x - D(z) | z] = 0, the mean of the target is
D_prior(z) + beta Cov(log r(x), x | z), which is the exact tilt to first order: the cost of the path is left out, as in
the paper's main method. So what it converges to is tilted too little where r decides much; a test measures it.
"""

import torch
from torch import Tensor, nn

from trainer.methods.rtb import Problem, own_steps, walk
from trainer.run.draws import Draws
from trainer.run.optimizer import descend
from trainer.settings import AdamConfig

REUSED = 4  # levels that an image is noised to
LARGEST = 5.0  # of |log r - b|: a target far outside the images teaches nothing (clipped as in DDPO)


def reinforced_target(prior: Tensor, current: Tensor, images: Tensor, advantage: Tensor) -> Tensor:
    """The target [B, C, H, W]. prior, current: D_prior(z) and D(z); advantage [B]: beta (log r - b)."""
    return prior + advantage[:, None, None, None] * (images - current)


def reinforce_adjoint_matching(
    problem: Problem, trained: nn.Module, like: Tensor, updates: int, adam: AdamConfig, rng: Draws,
    *, sigma_data: float, beta: float = 1.0, largest: float = LARGEST,
) -> None:  # fmt: skip
    """Train in place, one group. like [B, C, H, W]: images drawn in an update; levels are log-uniform."""
    optimizer = torch.optim.Adam([w for w in trained.parameters() if w.requires_grad], adam.lr, adam.betas)
    y = torch.zeros(len(like), dtype=torch.long, device=like.device)
    low, high = (torch.tensor(problem.chain.sigmas[end]).log() for end in (-1, 0))
    for update in range(updates):
        found = walk(problem, y, problem.start(like, rng), own_steps(problem, rng))
        advantage = (beta * (found.log_reward - found.log_reward.mean())).clamp(-largest, largest)
        losses = []
        for _ in range(REUSED):
            sigma = (low + (high - low) * rng.uniform(len(like))).exp()
            noisy = found.images + sigma[:, None, None, None] * rng.normal_like(like)
            current = problem.posterior(noisy, sigma, y)
            with torch.no_grad():
                target = reinforced_target(problem.prior(noisy, sigma, y), current, found.images, advantage)
            weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2  # EDM's
            losses.append((weight * (current - target).square().mean(dim=(1, 2, 3))).mean())
        descend(optimizer, torch.stack(losses).mean(), adam, update / updates)
