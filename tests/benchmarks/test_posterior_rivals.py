"""RAM and clipped policy gradients on a Gaussian: what they regress, what the clip holds back, and where they end."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.posterior_ddpo import clipped_policy_gradient, surrogate
from benchmarks.posterior_ram import reinforce_adjoint_matching, reinforced_target
from fewstep.analytic import Gaussian
from fewstep.ancestral import ancestral_chain
from fewstep.schedule import karras_sigmas
from tests.trainer.tiny import draws, normals
from trainer.levels.conditioning import level_features
from trainer.methods.rtb import Problem, own_steps, walk
from trainer.settings import AdamConfig

PRIOR, OBSERVED, NOISE = Gaussian(0.0, 1.0), 1.0, 1.0
MEAN, VARIANCE = 0.5, 0.5  # of the posterior
SIGMAS = karras_sigmas(8, 0.05, 10.0)
CHAIN = ancestral_chain(SIGMAS, "opt", [PRIOR.error(sigma) for sigma in SIGMAS])
LIKE = torch.empty(128, 1, 1, 2)
RATE = AdamConfig(0.03, (0.9, 0.99), decay_from=0.4, final=0.05, clip=1.0)


def log_reward(images: Tensor, y: Tensor) -> Tensor:
    return -((images.flatten(1) - OBSERVED) ** 2).sum(dim=1) / (2 * NOISE**2)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Linear(16, 2)
        nn.init.zeros_(self.factors.weight)
        nn.init.zeros_(self.factors.bias)
        self.log_variance = nn.Parameter(torch.zeros(CHAIN.steps))

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        slope, shift = self.factors(level_features(sigma))[:, :, None, None].unbind(dim=1)
        scaled = x / (1 + sigma[:, None, None, None] ** 2).sqrt()
        return PRIOR.teacher(x, sigma) + slope[..., None] * scaled + shift[..., None]


def trained(train, updates: int = 80, **more) -> tuple[float, float]:
    """Mean of the images and their mean log r."""
    network, rng = Affine(), draws(3)
    problem = Problem(lambda x, sigma, _: PRIOR.teacher(x, sigma), network, CHAIN, log_reward, network.log_variance)
    train(problem, network, LIKE, updates, RATE, rng, **more)
    like, y = torch.empty(4000, 1, 1, 2), torch.zeros(4000, dtype=torch.long)
    found = walk(problem, y, problem.start(like, rng), own_steps(problem, rng))
    return float(found.images.mean()), float(found.log_reward.mean())


EXACT = -((MEAN - OBSERVED) ** 2 + VARIANCE) / NOISE**2  # E[log r] of the posterior: of two elements, halved


def test_the_target_of_ram_is_the_tilt_to_first_order():
    """Its mean given z is D_prior + Cov(log r, x | z), exactly, for the x that z may come from."""
    sigma, z = 0.8, 0.6
    variance = PRIOR.error(sigma)
    current = PRIOR.teacher(torch.full((1, 1, 1, 1), z), torch.tensor([sigma]))
    images = current + variance**0.5 * normals(400_000, 1, 1, 1, seed=1)
    rewards = log_reward(images, torch.zeros(len(images)))
    target = reinforced_target(current, current, images, rewards - rewards.mean()).mean()
    covariance = variance * (OBSERVED - float(current)) / NOISE**2
    assert float(target - current) == pytest.approx(covariance, abs=0.01)


def test_ram_tilts_towards_the_posterior_and_stays_short_of_it():
    mean, rewarded = trained(reinforce_adjoint_matching, sigma_data=1.0)
    assert 0.25 < mean < MEAN and rewarded > -1.5  # the prior: mean 0, E[log r] -2


def test_the_clip_stops_a_step_that_has_gone_far_enough():
    ratio = torch.tensor([0.5, 1.0, 1.5, 0.5, 1.0, 1.5], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    surrogate(ratio, advantage, 0.1).sum().backward()
    assert ratio.grad is not None and ratio.grad.tolist() == [-1, -1, 0, 0, 1, 1]


def test_dpok_ends_near_the_posterior_and_ddpo_leaves_it():
    held, _ = trained(clipped_policy_gradient, alpha=1.0, normalised=False)
    assert held == pytest.approx(MEAN, abs=0.12)
    gone, rewarded = trained(clipped_policy_gradient)
    assert gone > MEAN + 0.2 and rewarded > EXACT + 0.15
