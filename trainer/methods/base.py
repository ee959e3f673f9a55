"""What methods share: what a student is fed, its own trajectory, and regression on a frozen student."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.precond import Denoiser
from trainer.levels.renoise import Drawn, LevelLists
from trainer.run.compute import Compute, runner
from trainer.run.draws import Draws

Generator = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [B, C, H, W], sigma [B], labels [B] -> outputs [B, C, H, W]


@dataclass(frozen=True)
class Fed:
    x: Tensor  # [B, C, H, W], noisy
    drawn: Drawn  # at these levels


def noised(images: Tensor, drawn: Drawn, rng: Draws) -> Fed:
    """Real images [B, C, H, W] noised to their levels; pure noise at the top, where sampling starts from just that."""
    noise = drawn.sigma[:, None, None, None] * rng.normal_like(images)
    return Fed(torch.where((drawn.position == 0)[:, None, None, None], noise, images + noise), drawn)


@torch.no_grad()
def own_trajectory(student: Generator, levels: Sequence[float], like: Tensor, labels: Tensor, rng: Draws) -> Tensor:
    """The student's outputs [B, C, H, W] after its calls at these levels, from pure noise; zeros after no call."""
    recovered = torch.zeros_like(like)
    for level in levels:
        x = recovered + level * rng.normal_like(like)
        recovered = student(x, like.new_full((len(like),), level), labels)
    return recovered


def simulated(student: Generator, lists: LevelLists, like: Tensor, labels: Tensor, rng: Draws) -> Fed:
    """Backward simulation (Yin et al. 2024, DMD2, Section 4.5): the student's own trajectory, stopped at a step.

    At sampling time every step after the first sees the student's output, not a real image; this feeds it that. One
    list and one step for the whole batch.
    """
    sigmas = lists.list_at(rng.shared())
    stop = int(rng.shared() * len(sigmas))
    recovered = own_trajectory(student, sigmas[:stop], like, labels, rng)
    sigma, below = (like.new_full((len(like),), level) for level in (*sigmas, lists.floor)[stop : stop + 2])
    position = torch.full((len(like),), stop, device=like.device)
    return Fed(recovered + sigmas[stop] * rng.normal_like(like), Drawn(sigma, below, position))


class Imitation(NamedTuple):
    loss: Tensor  # to descend
    error: Tensor  # mean absolute error, in the units


def imitation_loss(output: Tensor, target: Tensor, unit: Tensor | float, shown: Tensor | None = None) -> Imitation:
    """Regression of outputs [B, C, H, W] on targets, in units [B, 1, 1, 1].

    With a frozen student's outputs as the target, a call stays as it is. shown: what the error is taken of, where it is
    not the output itself (a clipped one, say).
    """
    error = ((output if shown is None else shown).detach() - target) / unit
    return Imitation((error * output).sum() / len(output), error.abs().mean())


def denoiser_of(network: nn.Module, sigma_data: float, classes: int, compute: Compute) -> Denoiser:
    """The network as training calls it: channels-last, compiled and in bfloat16 where `compute` says so."""
    return Denoiser(runner(network, compute), sigma_data, classes)
