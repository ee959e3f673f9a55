"""Adapters of several kinds in one call: every row of a batch has the low-rank weights of its own adapter.

A layer with the weight W computes, for a row of adapter a,

    W x + up[a] (down[a] x)                                          (LoRA: Hu et al. 2022, Eq. 3, with alpha = r)

The factors of all adapters are stacked and gathered by row; those of index 0 are zeros, so that such a row is the
backbone's. down of a convolution of k x k taps is computed tap by tap, r k k products of a pixel that are then shifted
and summed: `benchmarks/adapters.py` compares that with products of the unfolded map, of C k k values a pixel.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrize

from fewstep.adapters import adaptable

LOW_RANK = "fewstep::LowRank"  # the node of an adapted layer while it is traced; export.grouped_onnx spells it out


class GroupedNetwork(nn.Module):
    """F(x, c_noise, onehot, adapter, factors...): F with adapter [B] int64, from 0, and the stacked factors of each of
    `layers` in turn: down [N, r, taps, in] and up [N, out, r]. N and r are the same for all layers.

    network: F whose adapted layers are grouped; `grouped_network` makes it. layers: their paths in it.
    """

    def __init__(self, network: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.layers = layers

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor, adapter: Tensor, *factors: Tensor) -> Tensor:
        names = [f"{layer}.{part}" for layer in self.layers for part in ("down", "up")]
        brought = dict(zip(names, factors, strict=True)) | {f"{layer}.adapter": adapter for layer in self.layers}
        return functional_call(self.network, brought, (x, c_noise, onehot))

    @property
    def names(self) -> tuple[str, ...]:
        """What the checkpoint of the backbone calls the weight of each layer."""
        inner = [getattr(self.network.get_submodule(path), "enlarged", False) for path in self.layers]
        return tuple(
            f"{path}.conv.weight" if each else f"{path}.weight" for path, each in zip(self.layers, inner, strict=True)
        )


class _Grouped(nn.Module):
    """A layer with what a call brings along for it: adapter [B], down [N, r, taps, in] and up [N, out, r]."""

    adapter: Tensor
    down: Tensor
    up: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        for name in ("adapter", "down", "up"):
            self.register_buffer(name, torch.zeros(1), persistent=False)

    def _traced(self, x: Tensor, like: Tensor, **attributes: Any) -> Tensor:
        """One node of an ONNX file. torch.export takes minutes for its operators, whose shapes it reasons about."""
        inputs = (x, self.adapter, self.down, self.up)
        return torch.onnx.ops.symbolic(LOW_RANK, inputs, attributes, dtype=x.dtype, shape=like.shape, version=1)


class GroupedLinear(_Grouped):
    def forward(self, x: Tensor) -> Tensor:
        """x [B, in] -> [B, out]."""
        out = self.layer(x)
        if torch.onnx.is_in_onnx_export():
            return out + self._traced(x, out)
        low = self.down[self.adapter].flatten(1, 2) @ x[:, :, None]
        return out + (self.up[self.adapter] @ low)[:, :, 0]


class GroupedConv(_Grouped):
    """factor: what the layer's weight is multiplied with by a parametrization (`export.residuals`). A transposed
    convolution is the one of `export.upsampling`: of 3x3 taps on a map that is first enlarged by two."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, factor: float = 1.0) -> None:
        super().__init__(layer)
        self.factor = factor
        self.enlarged = isinstance(layer, nn.ConvTranspose2d)
        own = layer.kernel_size[0], layer.stride[0], cast(tuple[int, int], layer.padding)[0]
        self.kernel, self.stride, self.padding = (3, 1, 1) if self.enlarged else own

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H', W']."""
        out = self.layer(x)
        if torch.onnx.is_in_onnx_export():
            return out + self._traced(
                x, out, kernel=self.kernel, stride=self.stride, padding=self.padding, enlarged=int(self.enlarged),
                factor=self.factor, side=x.shape[2], width=x.shape[1],
            )  # fmt: skip
        taps = (self.down[self.adapter].flatten(1, 2) @ x.flatten(2)).unflatten(2, x.shape[2:])  # [B, r taps, H, W]
        if self.enlarged:  # products of single pixels are the same before and after
            taps = functional.interpolate(taps, scale_factor=2.0)
        low = shifted_sum(taps, self.kernel, self.padding)[:, :, :: self.stride, :: self.stride]
        return out + (self.factor * self.up[self.adapter] @ low.flatten(2)).reshape(-1, *out.shape[1:])


def shifted_sum(taps: Tensor, kernel: int, padding: int) -> Tensor:
    """What a convolution of stride one adds up: taps [B, r k k, H, W], the products of every pixel with each tap, the
    taps of one sum behind each other from the last to the first, -> [B, r, H', W']."""
    if kernel == 1 and not padding:
        return taps
    size = taps.shape[2] + 2 * padding - kernel + 1, taps.shape[3] + 2 * padding - kernel + 1
    # `fold` adds up where a pixel's products go to, a convolution where they come from: the taps in reverse.
    return functional.fold(taps.flatten(2), size, kernel, padding=kernel - 1 - padding)


def grouped_network(network: nn.Module) -> GroupedNetwork:
    """F with grouped layers, of a network that may have the forms of `export.residuals` and `export.upsampling`.

    Changes `network`. Raises ValueError for a convolution in groups, with dilation or of taps that are no square.
    """
    layers: list[str] = []
    for path, module in list(network.named_modules()):
        if (layer := _grouped(module)) is not None:
            network.set_submodule(path, layer)
            layers.append(path)
    return GroupedNetwork(network, tuple(layers))


def _grouped(layer: nn.Module) -> GroupedLinear | GroupedConv | None:
    if isinstance(layer, nn.Linear):
        return GroupedLinear(layer)
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return None
    if layer.groups != 1 or set(layer.dilation) != {1} or len(set(layer.kernel_size)) != 1:
        raise ValueError(f"adapters by row need plain convolutions of square kernels, not {layer}")
    factor = 1.0
    if parametrize.is_parametrized(layer, "weight"):
        factor = cast(nn.ModuleList, cast(nn.ModuleDict, layer.parametrizations)["weight"])[0].factor
    return GroupedConv(layer, cast(float, factor))


def adapted_layers(network: nn.Module) -> dict[str, tuple[int, int, int]]:
    """Layer -> (out, in, taps) of the weights that adapters change, by their names in the backbone's checkpoint, in the
    order in which a grouped network takes their factors."""
    shapes = {name: weight.shape for name, weight in adaptable(network).items()}
    return {name: (shape[0], shape[1], math.prod(shape[2:])) for name, shape in shapes.items()}


def layer_down(down: Tensor, weight: Tensor) -> Tensor:
    """An adapter's down [r, in k k] of a layer with this weight, [out, in] or [out, in, k, k], as [r, taps, in]."""
    width = weight.shape[1]
    return down.reshape(len(down), width, -1).flip(2).transpose(1, 2).contiguous()
