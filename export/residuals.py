"""DDPM++'s residual factors inside the weights: the same function without a product behind every block.

A block returns (h + skip) * sqrt(1/2), a pass over the map for a constant. Instead every map is stored divided by a
constant `scale` of its own, and the convolutions that write it make up for that. A group norm undoes the scale of
what it reads, provided that its epsilon is divided by the scale's square.
"""

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fewstep.network import Block, Conv, UNet


def residuals_folded(network: UNet) -> UNet:
    """A copy of a DDPM++ with its residual factors in the weights; other networks of the family come back as they are.

    One product remains: behind the middle blocks, whose map the decoder reads beside one that did not run through them.
    The weights stay what they were, with a product behind them that a runtime computes when it loads the file.
    """
    if network.config.style != "song" or network.config.encoder != "standard":
        return network
    network = copy.deepcopy(network)
    scale = 1.0
    skips = [scale]
    for block in network.encoder:
        scale = _fold(block, scale)
        skips.append(scale)
    for block in network.middle:
        scale = _fold(block, scale)
    _block(network.middle[-1]).residual_scale = scale / skips[-1]
    scale = skips[-1]
    for index, block in enumerate(network.decoder):
        if not _block(block).resample:
            skips.pop()  # read beside the map before: of the same scale, for that one was told which to write
        last = index == len(network.decoder) - 1
        scale = _fold(block, scale, wanted=1.0 if last else skips[-1])
    return network


def _fold(module: nn.Module, scale: float, wanted: float = 1.0) -> float:
    """Fold the factor of a block that reads a map of this scale; returns the scale of the map it writes.

    That is `wanted` if the block projects its input, since a projection can write any, else the factor times `scale`.
    """
    block = _block(module)
    factor, block.residual_scale = block.residual_scale, 1.0
    block.norm0.eps /= scale**2
    written = factor * scale
    if block.skip is not None and block.skip.conv is not None:
        written = wanted / factor if block.attention else wanted
        _scale(block.skip, factor * scale / written, factor / written)
    _scale(block.conv1, factor / written, factor / written)
    if block.attention is not None:
        block.attention.norm.eps /= written**2
        _scale(block.attention.proj, 1 / written, 1 / written)
        written *= factor
    return written


def _block(module: nn.Module) -> Block:
    assert isinstance(module, Block)
    return module


def _scale(conv: Conv, weight: float, bias: float) -> None:
    assert conv.conv is not None
    parametrize.register_parametrization(conv.conv, "weight", _Times(weight))
    parametrize.register_parametrization(conv.conv, "bias", _Times(bias))


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, value: Tensor) -> Tensor:
        return value * self.factor
