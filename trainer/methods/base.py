"""What methods share: inputs of a student, its own trajectory, and regression on a frozen student."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.checkpoint import NetworkModule
from fewstep.precond import Denoiser
from trainer.levels.renoise import Drawn, LevelLists
from trainer.run.compute import Compute, runner
from trainer.run.draws import Draws

Generator = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [B, C, H, W], sigma [B], labels [B] -> outputs [B, C, H, W]


@dataclass(frozen=True)
class Fed:
    """Inputs of a student."""

    x: Tensor  # [B, C, H, W], noisy
    drawn: Drawn  # at these levels


def add_noise(images: Tensor, drawn: Drawn, rng: Draws) -> Fed:
    """Real images [B, C, H, W] noised to their levels; pure noise at the top level, where sampling starts."""
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


def simulate_input(student: Generator, lists: LevelLists, like: Tensor, labels: Tensor, rng: Draws) -> Fed:
    """Backward simulation (Yin et al. 2024, DMD2, Section 4.5): the student's own trajectory, stopped at a step.

    At sampling time the input of every step after the first is made of the student's output, not of a real image. The
    whole batch has one list and one step.
    """
    sigmas = rng.shared_choice(lists.list_at)
    stop = rng.shared_choice(lambda u: int(u * len(sigmas)))
    recovered = own_trajectory(student, sigmas[:stop], like, labels, rng)
    sigma, below = (like.new_full((len(like),), level) for level in (*sigmas, lists.floor)[stop : stop + 2])
    position = torch.full((len(like),), stop, device=like.device)
    return Fed(recovered + sigmas[stop] * rng.normal_like(like), Drawn(sigma, below, position))


class Imitation(NamedTuple):
    loss: Tensor  # to descend
    error: Tensor  # mean absolute error, in the units


def imitation_loss(output: Tensor, target: Tensor, unit: Tensor | float, shown: Tensor | None = None) -> Imitation:
    """Regression of outputs [B, C, H, W] on targets, in units [B, 1, 1, 1].

    With a frozen student's outputs as targets, a call is anchored. shown: the images that the error is computed of, if
    they are not the outputs themselves (clipped outputs, for example).
    """
    error = ((output if shown is None else shown).detach() - target) / unit
    return Imitation((error * output).sum() / len(output), error.abs().mean())


def denoiser_of(
    network: NetworkModule, sigma_data: float, classes: int, compute: Compute, *, trained: bool = False
) -> Denoiser:
    """The denoiser of a network as training calls it (trainer.run.compute.runner). trained: by these calls."""
    return Denoiser(runner(network, compute, trained=trained), sigma_data, classes, network.config.conditions)
