"""What the student is fed during training: an image at one of its levels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.levels.renoise import Drawn, LevelLists
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
def simulated(student: Generator, lists: LevelLists, like: Tensor, labels: Tensor, rng: Draws) -> Fed:
    """Backward simulation (Yin et al. 2024, DMD2, Section 4.5): the student's own trajectory, stopped at a step.

    At sampling time every step after the first sees the student's output, not a real image; this feeds it that. One
    list and one step for the whole batch.
    """
    sigmas = lists.list_at(rng.shared())
    stop = int(rng.shared() * len(sigmas))
    levels = [torch.full((len(like),), sigma, device=like.device) for sigma in (*sigmas, lists.floor)]
    x = levels[0][:, None, None, None] * rng.normal_like(like)
    for step in range(stop):
        x = student(x, levels[step], labels) + levels[step + 1][:, None, None, None] * rng.normal_like(like)
    position = torch.full((len(like),), stop, device=like.device)
    return Fed(x, Drawn(levels[stop], levels[stop + 1], position))
