"""What judges in `benchmarks/posterior_earth.py`: the truths behind the measurements, and a chain's monitors."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.edit_coverage import ANSWERS, crps
from benchmarks.posterior_earth_task import ROWS, Errors, Measured, Measurement, Prior, Told
from fewstep.ancestral import step_mean
from fewstep.metrics.extractors.random_convolutions import RandomConvolutions
from fewstep.pixels import to_pixels
from trainer.methods.rtb import effective_share, given_steps, own_steps, walk
from trainer.run.draws import Draws

LEVELS = 127.5  # of 255, in a difference of images in [-1, 1]


@dataclass(frozen=True)
class Asked:
    """Pictures and one measurement of each: N of them."""

    measurement: Measurement
    truth: Tensor  # [N, C, H, W]
    y: Tensor
    states: list[Tensor] | None = None  # the trajectories that led to the pictures, where the prior made them

    def repeated(self) -> Tensor:
        """y for all answers: ANSWERS of the first picture, then of the second."""
        return self.y.repeat_interleave(ANSWERS, 0)


def judged(asked: Asked, answers: Tensor) -> dict[str, float]:
    """answers [N * ANSWERS, C, H, W], in the order of `Asked.repeated`."""
    log_reward = asked.measurement.log_reward(answers, asked.repeated()).mean()
    made, truth = answers.unflatten(0, (-1, ANSWERS)), asked.truth
    unknown = _unknown(asked.measurement, truth)
    values, known = made.flatten(2)[:, :, unknown].double(), truth.flatten(1)[:, unknown].double()
    by_picture = _inside(known, values).mean(dim=1)
    error = float(by_picture.std()) / math.sqrt(len(truth))
    mean = (made.mean(dim=1) - truth).square().mean(dim=(1, 2, 3))
    return {
        "log_reward": float(log_reward),
        "psnr": _decibel((made - truth[:, None]).square().mean(dim=(1, 2, 3, 4))),
        "psnr_mean": _decibel(mean),
        "crps": scored(asked, answers),
        "off": float((values - known[:, None]).square().mean().sqrt()) * LEVELS,
        "apart": float((2 * values.var(dim=1).mean()).sqrt()) * LEVELS,
        "coverage": float(by_picture.mean()), "coverage_error": error,
        "features": float(_inside(_features(truth), _features(answers).unflatten(0, (-1, ANSWERS))).mean()),
    }  # fmt: skip


def scored(asked: Asked, answers: Tensor) -> float:
    """The CRPS of `judged` for any number of answers to each picture."""
    unknown = _unknown(asked.measurement, asked.truth)
    made = answers.unflatten(0, (len(asked.truth), -1)).flatten(2)[:, :, unknown].double()
    return float(crps(asked.truth.flatten(1)[:, unknown].double().numpy(), made.numpy()).mean()) * LEVELS


def _unknown(measurement: Measurement, images: Tensor) -> Tensor:
    """Of the elements of an image [C H W], those that are not measured one by one."""
    mask = measurement.mask if measurement.factor == 1 else torch.zeros(1, 1, *images.shape[2:])
    return (mask[0] == 0).expand(images.shape[1], -1, -1).flatten()


def _inside(truth: Tensor, answers: Tensor) -> Tensor:
    """Whether truth [N, P] lies between the least and the largest of answers [N, m, P]."""
    return ((truth > answers.amin(dim=1)) & (truth < answers.amax(dim=1))).double()


def _decibel(squares: Tensor) -> float:
    """The mean PSNR of images in [-1, 1] with these mean squared errors."""
    return float((10 * (4 / squares).log10()).mean())


@torch.no_grad()
def _features(images: Tensor) -> Tensor:
    return RandomConvolutions()(torch.from_numpy(to_pixels(images.numpy())))


@torch.no_grad()
def chain_answers(told: Told, asked: Asked, rng: Draws) -> tuple[Tensor, dict[str, float]]:
    """Answers of the posterior's chain; ELBO and effective sample size, means over pictures, and EUBO where pictures
    have trajectories: these are exact draws of the posterior's, given the measurement."""
    problem = Measured.of(told, asked.y)
    y = torch.arange(len(asked.y)).repeat_interleave(ANSWERS)
    images, weights = [], []
    for rows in y.split(ROWS):
        first = problem.start(asked.truth[rows], rng)
        found = walk(problem, rows, first, own_steps(problem, rng))
        images.append(found.images)
        weights.append(-found.residual(1.0))
    log_weights = torch.cat(weights).unflatten(0, (-1, ANSWERS))
    monitors = {
        "elbo": float(log_weights.mean()),
        "residual_std": float(log_weights.std(dim=1).mean()),
        "ess": float(torch.stack([effective_share(each) for each in log_weights]).mean()),
    }
    if asked.states:
        exact = walk(problem, torch.arange(len(asked.y)), asked.states[0], given_steps(asked.states))
        monitors["eubo"] = float(-exact.residual(1.0).mean())
    return torch.cat(images), monitors


def guided_answers(prior: Prior, asked: Asked, errors: Errors, scale: float, rng: Draws, count: int) -> Tensor:
    """Diffusion posterior sampling (Chung et al. 2023): D + scale sigma^2 grad_x log N(y; A D(x), noise^2 + a e_i).

    The variance is that of pseudoinverse guidance (Song et al. 2023): e_i is the squared error of D in the range of
    A^T. With noise^2 alone, no scale suits both ends of the chain. `count` answers to each picture."""
    measurement, chain = asked.measurement, prior.chain
    made = []
    for y in asked.y.repeat_interleave(count, 0).split(ROWS):
        x = chain.sigmas[0] * rng.normal_like(torch.empty(len(y), *asked.truth.shape[1:]))
        for i, sigma in enumerate(chain.sigmas[:-1]):
            variance = measurement.noise**2 + measurement.unit * errors[i][0]
            noisy = x.detach().requires_grad_()
            clean = prior.clean(noisy, sigma)
            log_density = measurement.log_reward(clean, y) * (measurement.noise**2 / variance)
            gradient = torch.autograd.grad(log_density.sum(), noisy)[0]
            mean = step_mean(chain, i, x, clean.detach() + scale * sigma**2 * gradient)
            x = mean + math.sqrt(chain.variances[i]) * rng.normal_like(mean)
        made.append(prior.image(x.detach()))
    return torch.cat(made)


def best_of(asked: Asked, images: Tensor, among: int, rng: Draws) -> Tensor:
    """For every answer the image with the largest r of `among` of these images of the prior."""
    found = []
    for y in asked.y:
        rows = rng.integers(len(images), ANSWERS * among).view(ANSWERS, among)
        log_rewards = asked.measurement.log_reward(images, y[None])
        found.append(images[rows.gather(1, log_rewards[rows].argmax(dim=1)[:, None])[:, 0]])
    return torch.cat(found)


def weighted(asked: Asked, images: Tensor, rng: Draws) -> tuple[Tensor, dict[str, float]]:
    """The prior's images drawn again in proportion to r, exact for infinitely many; E[log r] and log Z by weights."""
    found: list[Tensor] = []
    facts: dict[str, list[float]] = {"log_reward": [], "log_z": [], "ess": []}
    for y in asked.y:
        log_rewards = asked.measurement.log_reward(images, y[None])
        shares = log_rewards.softmax(dim=0)
        found.append(images[torch.multinomial(shares, ANSWERS, replacement=True, generator=rng.generator)])
        facts["log_reward"].append(float((shares * log_rewards).sum()))
        facts["log_z"].append(float(log_rewards.logsumexp(0)) - math.log(len(images)))
        facts["ess"].append(float(effective_share(log_rewards)))
    return torch.cat(found), {name: float(np.mean(values)) for name, values in facts.items()}


def expected(measurement: Measurement, channels: int) -> dict[str, Any]:
    """What holds for the exact posterior, as the mean over measurements: y is truth plus noise."""
    share = (ANSWERS - 1) / (ANSWERS + 1)
    return {"log_reward": -measurement.elements(channels) / 2, "coverage": share, "features": share}
