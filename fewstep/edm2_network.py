"""The network F of EDM2 (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models").

Every layer preserves magnitudes: of inputs whose entries have a mean square of 1 it makes outputs that have one of 1.
There are no biases and no group norms. Equation numbers are the paper's, the architecture is its config G (Appendix B).
The parameters have the names and shapes of the published files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.conditions import Conditions

EPSILON = 1e-4  # added to every norm that is divided by


@dataclass(frozen=True)
class EDM2Config:
    """Everything that decides the shape of F. The defaults are those of the published ImageNet-64 model S."""

    resolution: int = 64  # height and width of the image
    channels: int = 3  # image channels, in and out
    classes: int = 1000  # 0: unconditional
    width: int = 192  # channels of the first level
    mult: tuple[int, ...] = (1, 2, 3, 4)  # width of each level, in units of `width`
    blocks: int = 3  # residual blocks per level (the decoder has one more)
    attention: tuple[int, ...] = (16, 8)  # feature-map sizes with attention; the innermost block always has it
    noise_width: int = 192  # Fourier features of the noise level
    embedding_width: int = 768
    head_width: int = 64  # channels per attention head
    dropout: float = 0.0
    label_balance: float = 0.5  # share of the second term in each magnitude-preserving sum: the class,
    concat_balance: float = 0.5  # the encoder's map,
    residual_balance: float = 0.3  # the residual branch,
    attention_balance: float = 0.3  # attention
    clip: float = 256.0  # of activations after each block; 0: none
    family: Literal["edm2"] = "edm2"  # how a card tells this network from the others
    extra: ClassVar[int] = 0  # F sees nothing beside the image
    conditions: ClassVar[Conditions] = ()  # nor anything else

    def __post_init__(self) -> None:
        stride = 2 ** (len(self.mult) - 1)
        if self.resolution % stride:
            raise ValueError(f"resolution {self.resolution} is not a multiple of 2^(levels - 1) = {stride}")
        for name in ("label_balance", "concat_balance", "residual_balance", "attention_balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} does not lie between 0 and 1")
        if min(self.width, self.noise_width, self.embedding_width, self.head_width) < 1 or self.clip < 0:
            raise ValueError("widths are at least 1, and clip is at least 0")


def normalized(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x with a mean square of 1 over these dimensions."""
    mean_square = x.float().square().mean(dim=tuple(dims), keepdim=True)
    return x / (mean_square.sqrt() + EPSILON).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over the root of its mean square for unit normals (Eq. 81)."""
    return functional.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b, of unit magnitude where a and b are uncorrelated (Eq. 88)."""
    return a.lerp(b, share) / math.hypot(1 - share, share)


def mp_cat(a: Tensor, b: Tensor, share: float) -> Tensor:
    """a and b side by side, dim 1: b contributes `share` to what reads them, however many channels it has (Eq. 103)."""
    wide_a, wide_b = a.shape[1], b.shape[1]
    scale = math.sqrt((wide_a + wide_b) / ((1 - share) ** 2 + share**2))
    return torch.cat([a * (scale * (1 - share) / wide_a**0.5), b * (scale * share / wide_b**0.5)], dim=1)


class MPFourier(nn.Module):
    """[B] -> features [B, width] of mean square 1 (Eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.freqs + self.phases).cos() * math.sqrt(2)


class MPConv(nn.Module):
    """Convolution, or a matrix where kernel is 0, whose filters are used with unit norm (Eq. 47, 66)."""

    def __init__(self, cin: int, cout: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, *(kernel, kernel) * (kernel > 0)))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = self.weight
        weight = normalized(weight, range(1, weight.ndim)) * (gain / math.sqrt(weight[0].numel()))
        weight = weight.to(x.dtype)
        return x @ weight.T if weight.ndim == 2 else functional.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(nn.Module):
    """Residual block with the embedding, optional resampling and optional self-attention."""

    def __init__(
        self, config: EDM2Config, cin: int, cout: int, side: Literal["encoder", "decoder"], *, attention: bool = False,
        resample: Literal["", "up", "down"] = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.encoder = side == "encoder"
        self.resample = resample
        self.heads = cout // config.head_width if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = MPConv(cout if self.encoder else cin, cout, 3)
        self.emb_linear = MPConv(config.embedding_width, cout, 0)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_res1 = MPConv(cout, cout, 3)
        self.conv_skip = MPConv(cin, cout, 1) if cin != cout else None
        self.attn_qkv = MPConv(cout, 3 * cout, 1) if self.heads else None
        self.attn_proj = MPConv(cout, cout, 1) if self.heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample:
            x = functional.avg_pool2d(x, 2) if self.resample == "down" else functional.interpolate(x, scale_factor=2.0)
        if self.encoder:  # the main path is normalised going down, where its magnitude would grow
            x = normalized(x if self.conv_skip is None else self.conv_skip(x), (1,))
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, self.emb_gain) + 1
        y = self.conv_res1(self.dropout(mp_silu(y * scale[:, :, None, None])))
        if not self.encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.config.residual_balance)
        if self.attn_qkv is not None:
            x = mp_sum(x, self._attention(x), self.config.attention_balance)
        return x.clamp(-self.config.clip, self.config.clip) if self.config.clip else x

    def _attention(self, x: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values are normalised (config C)."""
        assert self.attn_qkv is not None and self.attn_proj is not None
        batch, width, height, breadth = x.shape
        qkv = self.attn_qkv(x).reshape(batch, self.heads, width // self.heads, 3, height * breadth)
        q, k, v = normalized(qkv, (2,)).permute(3, 0, 1, 4, 2).unbind(0)  # each [B, heads, positions, width / heads]
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.attn_proj(mixed.transpose(2, 3).reshape(batch, width, height, breadth))


class EDM2Network(nn.Module):
    """F(x, c_noise, onehot): x [B, C, H, W] of unit variance, c_noise = ln(sigma) / 4 [B], onehot [B, classes]."""

    def __init__(self, config: EDM2Config) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in config.mult]
        size = lambda level: f"{config.resolution >> level}x{config.resolution >> level}"  # noqa: E731
        attends = lambda level: config.resolution >> level in config.attention  # noqa: E731
        self.emb_fourier = MPFourier(config.noise_width)
        self.emb_noise = MPConv(config.noise_width, config.embedding_width, 0)
        self.emb_label = MPConv(config.classes, config.embedding_width, 0) if config.classes else None

        self.enc = nn.ModuleDict({f"{size(0)}_conv": MPConv(config.channels + 1, widths[0], 3)})
        skips = [cout := widths[0]]
        for level, width in enumerate(widths):
            if level:
                self.enc[f"{size(level)}_down"] = Block(config, cout, cout, "encoder", resample="down")
                skips.append(cout)
            for index in range(config.blocks):
                block = Block(config, cout, width, "encoder", attention=attends(level))
                self.enc[f"{size(level)}_block{index}"] = block
                skips.append(cout := width)

        inner = size(len(widths) - 1)
        self.dec = nn.ModuleDict({f"{inner}_in0": Block(config, cout, cout, "decoder", attention=True)})
        self.dec[f"{inner}_in1"] = Block(config, cout, cout, "decoder")
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.dec[f"{size(level)}_up"] = Block(config, cout, cout, "decoder", resample="up")
            for index in range(config.blocks + 1):
                block = Block(config, cout + skips.pop(), width, "decoder", attention=attends(level))
                self.dec[f"{size(level)}_block{index}"] = block
                cout = width
        self.out_conv = MPConv(cout, config.channels, 3)
        self.out_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        emb = self.embedding(c_noise, onehot).to(x.dtype)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # in place of biases
        skips = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("conv") else block(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.config.concat_balance)
            x = block(x, emb)
        return self.out_conv(x, self.out_gain)

    def embedding(self, c_noise: Tensor, onehot: Tensor) -> Tensor:
        """[B, embedding_width]."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            label = self.emb_label(onehot * math.sqrt(self.config.classes))
            emb = mp_sum(emb, label, self.config.label_balance)
        return mp_silu(emb)
