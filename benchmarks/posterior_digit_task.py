"""The digits of `benchmarks/posterior.py` as a task: prior, reward, chain, exact reference, and what judges images."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.posterior_digits import WIDTH, Digits, make_digits
from benchmarks.posterior_results import said
from benchmarks.posterior_rivals import Reference, rejection
from fewstep.adapters import Adapter, adapted
from fewstep.ancestral import ancestral_chain, denoising_errors
from fewstep.precond import Denoiser
from fewstep.schedule import karras_sigmas
from trainer.methods.rtb import Problem
from trainer.rewards.classes import class_reward
from trainer.run.draws import seeded

SIGMA_MIN, SIGMA_MAX = 0.05, 10.0  # of the digits' chain
RANK = 4
EVALUATED = 256  # rows of a batch where nothing is trained


@dataclass(frozen=True)
class DigitTask:
    digits: Digits
    digit: int
    problem: Callable[[Adapter], Problem]
    posterior: Callable[[Adapter], Denoiser]
    new_adapter: Callable[[int], Adapter]
    reference: Reference
    like: Tensor  # [images, 1, 8, 8]: how many a row is judged by
    split: float  # distance of the reference's halves

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        accepted = self.reference.accepted
        return accepted[: len(self.like)], accepted[len(self.like) : 2 * len(self.like)]


def digit_task(args: argparse.Namespace, began: float, width: int = WIDTH, rank: int = RANK) -> DigitTask:
    """width: of the prior; rank: of the adapters."""
    digits = make_digits(args.prior_updates, 1500, width)
    said(f"prior and classifiers; accuracy of classifier and judge {digits.accuracy}", began)
    denoiser = Denoiser(digits.prior, digits.sigma_data)
    sigmas = karras_sigmas(args.levels, SIGMA_MIN, SIGMA_MAX)
    errors = denoising_errors(denoiser, digits.images, sigmas, lambda i: seeded(i).normal_like(digits.images))
    chain = ancestral_chain(sigmas, "opt", errors)
    reward = class_reward(digits.classifier, [args.digit])
    no_label = lambda x, sigma, _: denoiser(x, sigma)  # noqa: E731
    posterior = lambda adapter: Denoiser(adapted(digits.prior, adapter), digits.sigma_data)  # noqa: E731

    def problem(adapter: Adapter) -> Problem:
        told = posterior(adapter)
        return Problem(no_label, lambda x, sigma, _: told(x, sigma), chain, clipped, adapter.log_variance)

    def clipped(images: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return reward(images, y).clamp(min=-20)

    new = lambda seed: Adapter(digits.prior, rank, chain.steps, torch.Generator().manual_seed(seed))  # noqa: E731
    like = torch.empty(EVALUATED, 1, 8, 8)
    reference = rejection(problem(new(0)), like, args.proposals, seeded(1))
    count = min(args.images, len(reference.accepted) // 2)
    said(f"{len(reference.accepted)} of {args.proposals} proposals accepted, log Z {reference.log_z:.3f}", began)
    split = digits.distance(reference.accepted[:count], reference.accepted[count : 2 * count])
    return DigitTask(digits, args.digit, problem, posterior, new, reference, torch.empty(count, 1, 8, 8), split)


def judged(task: DigitTask, images: Tensor) -> dict[str, float]:
    """What images alone say."""
    digits, chosen = task.digits, task.problem(task.new_adapter(0))
    log_reward = chosen.log_reward(images, torch.zeros(len(images), dtype=torch.long))
    right = [
        float((net(images).argmax(dim=1) == task.digit).float().mean()) for net in (digits.classifier, digits.judge)
    ]
    flat = images[:1000].flatten(1)
    return {
        "log_reward": float(log_reward.mean()), "accuracy": right[0], "judged": right[1],
        "distance": digits.distance(images, task.halves[0]),
        "pairwise": float(torch.pdist(flat).mean()),
    }  # fmt: skip
