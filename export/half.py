"""F in float16 or bfloat16, but for the noise and class embedding and every group norm, which stay float32.

The embedding turns ln(sigma) into angles of up to some hundred radians, which half precision does not resolve. The
statistics of a group norm are sums over thousands of elements. The rest is convolutions and attention.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from export.fusible import FusibleGroupNorm
from export.manifest import DTYPE_NAMES
from fewstep.card import CheckpointError
from fewstep.checkpoint import NetworkModule
from fewstep.network import UNet

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


def network_in(network: NetworkModule, dtype: str) -> nn.Module:
    """The network as F whose x, onehot and output have `dtype`; c_noise and conditions stay float32.

    Changes `network`, unless dtype is "float32". Raises CheckpointError for a network that has no half precision.
    """
    if dtype == "float32":
        return network
    if not isinstance(network, UNet):
        raise CheckpointError(
            "this network predicts noise, which the denoiser magnifies with every level: rounding to half precision "
            "would show. Export with --dtype float32"
        )
    return HalfUNet(network, DTYPES[dtype])


class HalfUNet(nn.Module):
    """F(x, c_noise, onehot) around a UNet whose weights it rounds to `dtype`, except for the islands."""

    def __init__(self, network: UNet, dtype: torch.dtype, island: Callable[[Any], nn.Module] | None = None) -> None:
        """island: wraps a group norm so that it computes in float32; `Float32Norm` when None."""
        super().__init__()
        self.config = network.config
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, FusibleGroupNorm | nn.GroupNorm) and not isinstance(module, FusibleGroupNorm):
                    setattr(module, name, (island or Float32Norm)(child))
        for name, part in network.named_children():
            for module in part.modules() if name != "embedding" else ():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(dtype)
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor, *conditions: Tensor) -> Tensor:
        return self.network(x, c_noise, onehot.float(), *conditions)


class Float32Norm(nn.Module):
    """A group norm in float32 between inputs and outputs of another precision."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)
