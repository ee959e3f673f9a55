"""Convolutions of an enlarged map, computed on the map before it is enlarged: the same function, fewer products.

Nearest-neighbour upsampling by two followed by a 3x3 convolution sees every pixel of the small map through up to four
taps of the kernel. Added up beforehand they are a 4x4 kernel whose transposed convolution, of stride two, is the same
function with four ninths of the products (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional
layer?"). A 1x1 convolution can simply come first.
"""

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional

from fewstep.ddpm_network import Upsampler
from fewstep.network import Conv

Module = TypeVar("Module", bound=nn.Module)


def enlarged_last(network: Module) -> Module:
    """A copy of the network whose convolutions of enlarged maps compute on the small ones."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if (conv := _after_nearest(child)) is not None:
                setattr(module, name, ThenEnlarged(conv) if conv.kernel_size == (1, 1) else transposed(conv))
    return network


def _after_nearest(module: nn.Module) -> nn.Conv2d | None:
    """The convolution, 1x1 or 3x3, that `module` applies to a map after enlarging it, where those are all it does."""
    if isinstance(module, Upsampler):
        return module.conv
    return module.conv if isinstance(module, Conv) and module.resample == "up" and module.box else None


class ThenEnlarged(nn.Module):
    """A 1x1 convolution, then nearest-neighbour upsampling by two: [B, C, H, W] -> [B, C', 2 H, 2 W]."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.conv(x), scale_factor=2.0)


def transposed(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """What enlarges [B, C, H, W] by two and applies `conv`, 3x3 with padding 1, to it: -> [B, C', 2 H, 2 W]."""
    weight = conv.weight.detach().transpose(0, 1).flip(2, 3)  # of the transposed convolution with stride one
    box = weight.new_ones(1, 1, 2, 2)  # what upsampling makes of one pixel
    summed = functional.conv2d(weight.reshape(-1, 1, 3, 3), box, padding=1)
    layer = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1)
    layer.weight = nn.Parameter(summed.reshape(*weight.shape[:2], 4, 4), requires_grad=False)
    layer.bias = conv.bias
    return layer
