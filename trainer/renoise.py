"""Which level a student's output is noised to before teacher and auxiliary judge it.

The paper's Eq. 3.4 reads as a single integral: judge at the level the student was fed (tied). Related methods
judge elsewhere, and the choice matters more than any other (docs/adr/0003). `position` is the index of the
student's level in its list; the list's last level is followed by `floor`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fewstep.schedule import SIGMA_MAX, student_levels

Rule = Literal["tied", "independent", "subinterval", "hybrid"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class LevelLists:
    """The level lists of every served step count, as tensors to draw from."""

    sigmas: Tensor  # [lists, longest + 1]: each list, then its floor
    lengths: Tensor  # [lists]

    @staticmethod
    def of(lists: Sequence[Sequence[float]], floor: float, device: torch.device | str = "cpu") -> "LevelLists":
        longest = max(map(len, lists))
        rows = [[*levels, *[floor] * (longest + 1 - len(levels))] for levels in lists]
        lengths = torch.tensor([len(levels) for levels in lists], device=device)
        return LevelLists(torch.tensor(rows, device=device), lengths)

    def draw(self, count: int, top: float, rng: torch.Generator) -> "Drawn":
        """`count` student levels: a list at random, then its top level with probability `top`, else any other."""
        device = self.lengths.device
        which = torch.randint(len(self.lengths), (count,), generator=rng, device=device)
        lengths = self.lengths[which]
        u = torch.rand(count, generator=rng, device=device)
        below = 1 + ((u - top) / (1 - top) * (lengths - 1)).floor().clamp(min=0).long()
        position = torch.where((u < top) | (lengths == 1), 0, torch.minimum(below, lengths - 1))
        rows = self.sigmas[which]
        take = lambda index: rows.gather(1, index[:, None])[:, 0]  # noqa: E731
        return Drawn(take(position), take(position + 1), position)


@dataclass(frozen=True)
class Drawn:
    """Student levels of one batch."""

    sigma: Tensor  # [B] level the student is fed
    below: Tensor  # [B] the next level of its list, or the floor
    position: Tensor  # [B] index in the list; 0 is the top


def served_lists(steps: Sequence[int], sigma_min: float) -> tuple[tuple[float, ...], ...]:
    return tuple(student_levels(k, sigma_min) for k in steps)


def renoise_levels(rule: Rule, drawn: Drawn, floor: float, rng: torch.Generator) -> Tensor:
    """Levels [B] at which the student's outputs are judged.

    tied         the student's own level (the paper's Eq. 3.4)
    independent  anywhere in [floor, 80], whatever the student was fed (Diff-Instruct, DMD2)
    subinterval  between the student's level and the next of its list (moment matching)
    hybrid       subinterval, but outputs of the top level mostly anywhere: they need judging at every scale
    """
    sigma, below = drawn.sigma, drawn.below
    if rule == "tied":
        return sigma
    everywhere = _karras_uniform(torch.full_like(sigma, floor), torch.full_like(sigma, SIGMA_MAX), rng)
    if rule == "independent":
        return everywhere
    inside = _karras_uniform(below, sigma, rng)
    if rule == "subinterval":
        return inside
    roam = torch.rand(sigma.shape, generator=rng, device=sigma.device) < 0.6
    return torch.where((drawn.position == 0) & roam, everywhere, inside)


def _karras_uniform(low: Tensor, high: Tensor, rng: torch.Generator, rho: float = 7.0) -> Tensor:
    """Levels [B] uniform in sigma^(1/rho), the spacing of Karras et al. 2022, Eq. 5."""
    u = torch.rand(low.shape, generator=rng, device=low.device)
    return (low ** (1 / rho) + u * (high ** (1 / rho) - low ** (1 / rho))) ** rho
