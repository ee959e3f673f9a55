"""The level to which a student's output is noised before teacher and auxiliary denoise it.

The paper's Eq. 3.4 reads as a single integral, over the level of the student's input (tied). Related methods use other
levels, and no other setting matters as much (docs/adr/0003). `position` is the index of the student's level in its
list; the list's last level is followed by `floor`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.schedule import SIGMA_MAX
from trainer.run.draws import Draws
from trainer.settings import NoiseDistribution, Rule


@dataclass(frozen=True)
class LevelLists:
    """The level lists of every served step count, as tensors to draw from."""

    sigmas: Tensor  # [lists, longest + 1]: each list, then its floor
    lengths: Tensor  # [lists]
    floor: float
    on_host: tuple[tuple[float, ...], ...]  # the same numbers, for `list_at`, which must not wait for a device

    @staticmethod
    def of(lists: Sequence[Sequence[float]], floor: float, device: torch.device | str = "cpu") -> "LevelLists":
        longest = max(map(len, lists))
        rows = [[*levels, *[floor] * (longest + 1 - len(levels))] for levels in lists]
        lengths = torch.tensor([len(levels) for levels in lists], device=device)
        on_host = tuple(tuple(np.asarray(levels, np.float32).tolist()) for levels in lists)
        return LevelLists(torch.tensor(rows, device=device), lengths, floor, on_host)

    def list_at(self, u: float) -> tuple[float, ...]:
        """One of the lists, chosen by u in [0, 1)."""
        return self.on_host[int(u * len(self.on_host))]

    def draw(self, count: int, top: float, rng: Draws) -> "Drawn":
        """`count` student levels: a list at random, then its top level with probability `top`, else any other."""
        which = rng.integers(len(self.lengths), count)
        lengths = self.lengths[which]
        u = rng.uniform(count)
        below = 1 + ((u - top) / (1 - top) * (lengths - 1)).floor().clamp(min=0).long()
        position = torch.where((u < top) | (lengths == 1), 0, torch.minimum(below, lengths - 1))
        rows = self.sigmas[which]
        take = lambda index: rows.gather(1, index[:, None])[:, 0]  # noqa: E731
        return Drawn(take(position), take(position + 1), position)


@dataclass(frozen=True)
class Drawn:
    """Levels of the student's inputs in one batch."""

    sigma: Tensor  # [B] level of the student's input
    below: Tensor  # [B] the next level of its list, or the floor
    position: Tensor  # [B] index in the list; 0 is the top


def renoise_levels(
    rule: Rule, drawn: Drawn, floor: float, rng: Draws, lognormal: NoiseDistribution = NoiseDistribution()
) -> Tensor:
    """Levels [B] to which the student's outputs are noised.

    tied         the student's own level (the paper's Eq. 3.4)
    independent  anywhere in [floor, 80], independent of the student's level (DMD, DMD2)
    lognormal    as in EDM's training, independent of the student's level (Diff-Instruct)
    subinterval  between the student's level and the next of its list (moment matching)
    hybrid       subinterval, but mostly lognormal for outputs of the top level, which can be wrong at every scale
    """
    sigma, below = drawn.sigma, drawn.below
    if rule == "tied":
        return sigma
    if rule == "independent":
        return _karras_uniform(torch.full_like(sigma, floor), torch.full_like(sigma, SIGMA_MAX), rng)
    inside = _karras_uniform(below, sigma, rng).clamp(min=floor)
    if rule == "subinterval":
        return inside
    anywhere = lognormal_levels(lognormal, len(sigma), rng).clamp(min=floor)
    if rule == "lognormal":
        return anywhere
    use_lognormal = rng.uniform(len(sigma)) < 0.6
    return torch.where((drawn.position == 0) & use_lognormal, anywhere, inside)


def _karras_uniform(low: Tensor, high: Tensor, rng: Draws) -> Tensor:
    """Levels [B] uniform in sigma^(1/rho)."""
    return _karras(rng.uniform(len(low)), low, high)


def _karras(u: Tensor, start: Tensor, end: Tensor, rho: float = 7.0) -> Tensor:
    """From start at u = 0 to end at u = 1 in the spacing of Karras et al. 2022, Eq. 5."""
    return (start ** (1 / rho) + u * (end ** (1 / rho) - start ** (1 / rho))) ** rho


def lognormal_levels(noise: NoiseDistribution, count: int, rng: Draws) -> Tensor:
    """sigma [count], as EDM's training draws it."""
    return (rng.normal(count) * noise.std + noise.mean).exp()
