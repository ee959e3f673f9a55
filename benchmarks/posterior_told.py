"""Posteriors that are told what they are given, a measurement or a state, and trained on new ones in every update.

What is given is a table [M, m]; y of a trajectory is the number of its row. So every row has a Z of its own, estimated
from the trajectories of that row, and one network learns all of them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.ancestral import Chain
from trainer.methods.rtb import LogReward, Problem, TrajectoryBalance
from trainer.run.draws import Draws
from trainer.settings import PosteriorConfig

Given = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [B, 1, 1, d], sigma [B], given [B, m] -> clean, like x
Prior = Callable[[Tensor, float, Tensor], Tensor]  # x [B, d], sigma, given [B, m] -> clean [B, d]


class Told(nn.Module):
    """A prior's denoiser plus an affine map of x and of what is given, for every level of the chain: 0 at first."""

    def __init__(self, prior: Prior, chain: Chain, d: int, m: int) -> None:
        super().__init__()
        self.prior, self.chain = prior, chain
        self.maps = nn.Parameter(torch.zeros(chain.steps, d + m, d))
        self.log_variance = nn.Parameter(torch.zeros(chain.steps))

    def forward(self, x: Tensor, sigma: Tensor, given: Tensor) -> Tensor:
        level, flat = float(sigma[0]), x.flatten(1)
        i = min(range(self.chain.steps), key=lambda k: abs(self.chain.sigmas[k] - level))
        inputs = torch.cat([flat / math.sqrt(1 + level**2), given], dim=1)
        return (self.prior(flat, level, given) + inputs @ self.maps[i]).view_as(x)


def gaussian_denoiser(covariance: Tensor, mean: Tensor, x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] for x0 ~ N(mean, covariance [d, d]); x, mean [B, d]."""
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance)))
    return mean + (x - mean) @ gain.T


def gaussian_error(covariance: Tensor, sigma: float) -> float:
    """Its mean squared error per element, that of the rule 'opt' in `fewstep.ancestral`."""
    values = torch.linalg.eigvalsh(covariance)
    return float((values * sigma**2 / (values + sigma**2)).mean())


def told_problem(
    prior: Given, posterior: Given, chain: Chain, log_reward: LogReward, log_variance: Tensor, table: Tensor
) -> Problem:
    """log_reward takes images and what they are given [B, m]. The table [M, m] may be written to between updates."""
    return Problem(
        lambda x, sigma, y: prior(x, sigma, table[y]),
        lambda x, sigma, y: posterior(x, sigma, table[y]),
        chain,
        lambda images, y: log_reward(images, table[y]),
        log_variance,
        len(table),
    )


def train_told(
    problem_of: Callable[[Tensor], Problem], trained: nn.Module, draw: Callable[[int, Draws], Tensor],
    config: PosteriorConfig, updates: int, rng: Draws, *, d: int, m: int, rows: int = 16, each: int = 8,
) -> None:  # fmt: skip
    """Trajectory balance in place. An update has `rows` new rows of `draw` [rows, m], with `each` trajectories of d
    elements."""
    table = torch.zeros(rows, m)
    method = TrajectoryBalance(problem_of(table), trained, config, torch.empty(1, 1, d))
    like, y = torch.empty(rows * each, 1, 1, d), torch.arange(rows * each) % rows
    for update in range(updates):
        table.copy_(draw(rows, rng))
        method.update(like, y, update / updates, rng)
