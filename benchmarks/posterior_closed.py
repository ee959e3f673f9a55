"""The posteriors of `benchmarks/posterior.py` in closed form: two dimensions and a linear measurement of them.

gaussian: one Gaussian. mixture: 25 modes, of which the posterior is a mixture, too. Trajectory balance beside DPS.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.posterior_results import said, summary
from benchmarks.posterior_rivals import dps, prior_images
from fewstep.analytic import Mixture
from fewstep.ancestral import Chain, ancestral_chain, denoising_errors
from fewstep.schedule import karras_sigmas
from trainer.levels.conditioning import LEVEL_FEATURES, level_features
from trainer.methods.rtb import Problem, TrajectoryBalance, evaluate, own_steps, walk
from trainer.run.draws import Draws, seeded
from trainer.settings import BehaviourMix, PosteriorConfig

SIGMA_MIN = 0.05  # of the chains
MIXED = BehaviourMix(0.6, explore=0.1, replay=0.1, prior=0.2)


class Correction(nn.Module):
    """A perceptron of x and sigma beside the exact prior denoiser: what the posterior adds to it, 0 at first."""

    def __init__(self, prior: Mixture, steps: int) -> None:
        super().__init__()
        self.prior = prior
        last = nn.Linear(128, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Linear(2 + LEVEL_FEATURES, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), last)
        self.log_variance = nn.Parameter(torch.zeros(steps))

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        unit = x.flatten(1) / (1 + sigma[:, None] ** 2).sqrt()
        moved = self.body(torch.cat([unit, level_features(sigma)], dim=1))
        return self.prior.denoiser(x, sigma) + moved.view_as(x)


@dataclass(frozen=True)
class Closed:
    """A posterior in closed form."""

    name: str
    prior: Mixture
    posterior: Mixture
    log_z: float
    log_reward: Callable[[Tensor, Tensor], Tensor]
    chain: Chain


def closed_tasks(levels: dict[str, int]) -> list[Closed]:
    tight = Mixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    modes = np.array([[x, y] for x in range(-10, 11, 5) for y in range(-10, 11, 5)], float)
    many = Mixture(np.full(25, 1 / 25), modes, np.repeat(0.3 * np.eye(2)[None], 25, axis=0))
    return [
        _measured("gaussian", tight, np.array([[1.0, 0.5]]), 1.5, 0.5, 20.0, levels["gaussian"]),
        _measured("mixture", many, np.array([[1.0, 1.0]]) / math.sqrt(2), 3.0, 2.0, 80.0, levels["mixture"]),
    ]


def _measured(
    name: str, prior: Mixture, matrix: np.ndarray, y: float, std: float, sigma_max: float, levels: int
) -> Closed:
    posterior, log_z = prior.observed(matrix, np.array([y]), np.array([[std**2]]))
    row = torch.from_numpy(matrix[0]).float()
    constant = 0.5 * math.log(2 * math.pi * std**2)
    log_reward = lambda images, _: -((images.flatten(1) @ row - y) ** 2) / (2 * std**2) - constant  # noqa: E731
    sigmas = karras_sigmas(levels, SIGMA_MIN, sigma_max)
    rng = np.random.default_rng(0)
    data = torch.from_numpy(prior.sample(20_000, rng)).float().view(-1, 1, 1, 2)
    errors = denoising_errors(prior.denoiser, data, sigmas, lambda i: seeded(i).normal_like(data))
    return Closed(name, prior, posterior, log_z, log_reward, ancestral_chain(sigmas, "opt", errors))


def closed_problem(task: Closed, network: Correction) -> Problem:
    prior = lambda x, sigma, _: task.prior.denoiser(x, sigma)  # noqa: E731
    return Problem(prior, network, task.chain, task.log_reward, network.log_variance)


def closed_rows(task: Closed, args: argparse.Namespace, began: float) -> list[dict[str, Any]]:
    like = torch.empty(args.closed_images, 1, 1, 2)
    config = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=4e-3))
    trained = {"RTB": config}
    if len(task.prior.weights) == 1:  # a mixture takes its time
        trained["RTB, mixed behaviours"] = replace(config, mix=MIXED)
        trained["RTB, fixed variance"] = replace(config, learn_variance=False)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        for name, chosen in trained.items():
            torch.manual_seed(seed)
            network, rng = Correction(task.prior, task.chain.steps), seeded(100 + seed)
            problem = closed_problem(task, network)
            data = (
                torch.from_numpy(task.prior.sample(args.batch, np.random.default_rng(seed))).float().view(-1, 1, 1, 2)
            )
            method, y = TrajectoryBalance(problem, network, chosen, like[0]), torch.zeros(args.batch, dtype=torch.long)
            for update in range(args.closed_updates):
                method.update(data, y, update / args.closed_updates, rng)
            many = torch.zeros(len(like), dtype=torch.long)
            numbers = evaluate(problem, like, many, 1.0, rng)
            weighted, images = _weighted_images(problem, like, rng)
            found.setdefault(name, []).append({
                **_closed_errors(task, images, weighted),
                "log_z_error": abs(numbers["log_z"] - task.log_z), "gap": task.log_z - numbers["elbo"],
                "ess": numbers["ess"],
            })  # fmt: skip
        network, rng = Correction(task.prior, task.chain.steps), seeded(200 + seed)
        problem = closed_problem(task, network)
        found.setdefault("DPS, scale 1", []).append(_closed_errors(task, dps(problem, like, task.log_reward, 1.0, rng)))
        found.setdefault("prior", []).append(_closed_errors(task, prior_images(problem, like, len(like), rng)[0]))
        said(f"{task.name}, seed {seed}", began)
    return [{"task": task.name, "method": name, **summary(runs)} for name, runs in found.items()]


def _weighted_images(problem: Problem, like: Tensor, rng: Draws) -> tuple[Tensor, Tensor]:
    """Importance weights [B] of the posterior's trajectories, that sum to 1, and their images."""
    own = walk(problem, torch.zeros(len(like), dtype=torch.long), problem.start(like, rng), own_steps(problem, rng))
    return (-own.residual(1.0)).softmax(dim=0), own.images


def _closed_errors(task: Closed, images: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """Of the mean and covariance, largest entries; of the mass of modes, if there are some, total variation, and again
    with importance weights."""
    exact_mean = task.posterior.weights @ task.posterior.means
    gaps = task.posterior.means - exact_mean
    spread = task.posterior.covariances + gaps[:, :, None] * gaps[:, None, :]
    exact_cov = np.einsum("k,kij->ij", task.posterior.weights, spread)
    values = images.flatten(1).double().numpy()
    errors = {
        "mean_error": float(np.abs(values.mean(axis=0) - exact_mean).max()),
        "cov_error": float(np.abs(np.cov(values, rowvar=False) - exact_cov).max()),
    }
    if len(task.prior.weights) == 1:
        return errors
    even = torch.full((len(images),), 1 / len(images))
    errors["mode_tv"] = _mode_tv(task, images, even)
    return errors if weights is None else {**errors, "weighted_tv": _mode_tv(task, images, weights)}


def _mode_tv(task: Closed, images: Tensor, weights: Tensor) -> float:
    """Total variation between the weights of the posterior's modes and the mass of images nearest to them."""
    modes = torch.from_numpy(task.posterior.means).float()
    nearest = torch.cdist(images.flatten(1), modes).argmin(dim=1)
    mass = torch.zeros(len(modes)).index_add_(0, nearest, weights.float())
    return float((mass - torch.from_numpy(task.posterior.weights).float()).abs().sum() / 2)
