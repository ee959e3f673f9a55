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
def update_average(average: nn.Module, network: nn.Module, batch: int, images_seen: int, halflife: float) -> None:
    """One update after a step of `batch` images.

    halflife is in images, and at most a twentieth of the images seen so far counts, so that the average forgets
    its random start (Karras et al. 2022, Appendix F.2: ramp-up 0.05).
    """
    decay = 0.5 ** (batch / max(min(halflife, 0.05 * images_seen), 1e-8))
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(network.parameters()), None)
    for kept, fresh in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(fresh)
