"""Adapters of several kinds in one call: every row of a batch has the low-rank weights of its own adapter.

A layer with the weight W computes, for a row of adapter a,

    W x + up[a] (down[a] x)                                          (LoRA: Hu et al. 2022, Eq. 3, with alpha = r)

The factors of all adapters are stacked, [N, ...], and gathered by row; those of index 0 are zeros, so that such a row
is the backbone's. down of a convolution is computed tap by tap, r k k products per pixel that are then shifted and
summed: products of r rows instead of an unfolded map of C k k. `benchmarks/adapters.py` measures both ways.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrize


class GroupedNetwork(nn.Module):
    """F(x, c_noise, onehot, adapter, factors...): as F, with adapter [B] int64 and for each layer of `layers` in turn
    its factors, down [N, r k k, in] and up [N, out, r]. r may differ from layer to layer.

    network: a copy of F whose adapted layers are grouped; `grouped_network` makes it.
    """

    def __init__(self, network: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.layers = layers

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor, adapter: Tensor, *factors: Tensor) -> Tensor:
        names = [f"{layer}.{part}" for layer in self.layers for part in ("down", "up")]
        rows = {name: factor[adapter] for name, factor in zip(names, factors, strict=True)}
        return functional_call(self.network, rows, (x, c_noise, onehot))


class Grouped(nn.Module):
    """A linear or convolutional layer with rows' own down [B, r k k, in] and up [B, out, r] beside its weights."""

    down: Tensor
    up: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("down", torch.empty(0), persistent=False)
        self.register_buffer("up", torch.empty(0), persistent=False)


class GroupedLinear(Grouped):
    def forward(self, x: Tensor) -> Tensor:
        """x [B, in] -> [B, out]."""
        return self.layer(x) + (self.up @ (self.down @ x[:, :, None]))[:, :, 0]


class GroupedConv(Grouped):
    """factor: what a parametrization multiplies the layer's weight with. enlarged: the layer is the transposed
    convolution that stands for a nearest-neighbour enlargement by two and a 3x3 convolution (`export.upsampling`)."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, factor: float = 1.0) -> None:
        super().__init__(layer)
        self.factor = factor
        self.enlarged = isinstance(layer, nn.ConvTranspose2d)
        self.kernel, self.stride, self.padding = (
            (3, 1, 1) if self.enlarged else (layer.kernel_size[0], layer.stride[0], cast(int, layer.padding[0]))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, out, H', W']."""
        out = self.layer(x)
        taps = self.down @ x.flatten(2)  # [B, r k k, H W]
        low = summed(self._on_map(taps, x), self.kernel, self.padding)[:, :, :: self.stride, :: self.stride]
        up = self.up if self.factor == 1 else self.up * self.factor
        return out + (up @ low.flatten(2)).reshape(out.shape)

    def _on_map(self, taps: Tensor, x: Tensor) -> Tensor:
        taps = taps.unflatten(2, x.shape[2:])
        return functional.interpolate(taps, scale_factor=2.0) if self.enlarged else taps


def summed(taps: Tensor, kernel: int, padding: int) -> Tensor:
    """What a convolution of stride one sums: taps [B, r k k, H, W], the products of every pixel with each tap, in the
    order (r, k, k), -> [B, r, H', W']."""
    if kernel == 1 and not padding:
        return taps
    size = [side + 2 * padding - kernel + 1 for side in taps.shape[2:]]
    # `fold` adds what comes from a pixel at an offset of the kernel; a convolution's offsets are the opposite ones.
    return functional.fold(taps.flatten(2), size, kernel, padding=kernel - 1 - padding)
