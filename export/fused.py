"""F for a GPU: every group norm with the addition before it and the scale, shift and SiLU behind it is one kernel.

The wiring of a block is that of `fewstep.network.Block`; only what lies between two convolutions is called differently.
"""

from torch import Tensor, nn

from export.half import DTYPES, HalfUNet
from fewstep.network import Block, UNet
from kernels.group_norm_silu import group_norm_silu


def fused_network(network: UNet, dtype: str) -> nn.Module:
    """The network as F(x, c_noise, onehot) in `dtype`, as `export.half.network_in`, with fused norms.

    Changes `network`. On a CPU the same functions run in torch, which is how they are tested.
    """
    module = HalfUNet(network, DTYPES[dtype], FusedNorm)
    for blocks in (network.encoder, network.middle, network.decoder):
        for index, block in enumerate(blocks):
            assert isinstance(block, Block)
            blocks[index] = FusedBlock(block)
    return module


class FusedNorm(nn.Module):
    """A group norm with float32 parameters, for maps [B, C, H, W] of any float dtype."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(
        self, x: Tensor, add: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None,
        *, activate: bool = False,
    ) -> Tensor:  # fmt: skip
        """silu(norm(x + add) * (1 + scale) + shift); add, scale, shift [B, C]."""
        norm = self.norm
        return group_norm_silu(
            x, norm.num_groups, norm.weight, norm.bias, norm.eps, add=add, scale=scale, shift=shift, activate=activate
        )


class FusedBlock(nn.Module):
    """A `Block` whose norms are FusedNorms."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.resample = block.resample

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        block = self.block
        h = block.conv0(block.norm0(x, activate=True))
        params = block.affine(emb)
        if block.scale_shift:
            scale, shift = params.chunk(2, dim=1)
            h = block.norm1(h, None, scale, shift, activate=True)
        else:
            h = block.norm1(h, params, activate=True)
        h = block.conv1(h)
        x = (h + (x if block.skip is None else block.skip(x))) * block.residual_scale
        return x if block.attention is None else (x + block.attention(x)) * block.residual_scale
