"""Exponential moving average of the weights: what is sampled from, saved and served."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Module = TypeVar("Module", bound=nn.Module)


def average_of(network: Module) -> Module:
    """A frozen copy to hold the average."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_average(
    average: nn.Module, network: nn.Module, batch: int, images_seen: int, halflife: float, ramp: float = 0.05
) -> None:
    """One update after a step of `batch` images.

    halflife is in images, and at most the share `ramp` of the images seen so far counts, so that the average forgets
    its start (Karras et al. 2022, Appendix F.2: 0.05). Below `halflife` this is the power function average of Karras
    et al. 2024, Section 3.2, with gamma + 1 = ln 2 / ramp.
    """
    decay = 0.5 ** (batch / max(min(halflife, ramp * images_seen), 1e-8))
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(network.parameters()), None)
    for kept, fresh in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(fresh)
