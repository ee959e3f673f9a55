"""A DDPM U-Net as the network F: what diffusers calls UNet2DModel, inside EDM's preconditioning.

Ho et al. 2020 train a U-Net to predict the noise in x / sqrt(1 + sigma^2) at one of T whole timesteps; Song et al. 2023
train the same U-Net to go to the end of the ODE in one call (consistency models). `DDPMNetwork` answers to the contract
of F around such a U-Net, so that everything downstream (samplers, students, export, serving) treats it as any other
model. The parameters of `UNet2D` have the names and shapes of the published files.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.conditions import Conditions

Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "sample", "v_prediction", "consistency"]


@dataclass(frozen=True)
class DDPMConfig:
    """Everything that decides the shape of F, and the noise schedule its U-Net was trained with."""

    resolution: int  # height and width of the image
    channels: int  # image channels, in and out
    widths: tuple[int, ...]  # channels of each level
    down_attention: tuple[bool, ...]  # attention after every encoder block, per level, from the image inwards
    up_attention: tuple[bool, ...]  # likewise in the decoder, from the innermost level outwards
    classes: int = 0  # 0: unconditional
    blocks: int = 2  # residual blocks per level (the decoder has one more)
    middle_attention: bool = True
    head_width: int = 8  # channels per attention head; 0: a single head
    groups: int = 32  # of every group norm
    middle_groups: int = 32  # of the group norm before the middle attention; 0: none
    eps: float = 1e-5  # of every group norm
    scale_shift: bool = False  # the embedding scales and shifts (ADM) in place of being added (DDPM)
    dropout: float = 0.0
    sines_first: bool = False  # order of the halves of the timestep embedding
    freq_shift: float = 0.0  # 1: the slowest frequency is exactly 1 / 10000
    down_padding: int = 1  # of the downsampling convolution; 0: one row and column of zeros after the last
    residual_resize: bool = False  # a residual block changes the size, as in ADM, in place of a convolution
    # The noise schedule; not read by consistency models, whose U-Net is asked at 250 ln sigma.
    betas: Betas = "linear"
    beta_start: float = 1e-4  # not read by squaredcos_cap_v2
    beta_end: float = 0.02
    timesteps: int = 1000
    prediction: Prediction = "epsilon"
    sigma_min: float = 0.002  # where the ODE of a consistency model ends; read by those alone
    # Of the preconditioning around F: a free choice, for which F compensates; that of a consistency model is its own.
    sigma_data: float = 0.5
    family: Literal["ddpm"] = "ddpm"  # how a card tells this network from the U-Net of fewstep.network
    extra: ClassVar[int] = 0  # F sees nothing beside the image, unlike a UNet with further input channels
    conditions: ClassVar[Conditions] = ()  # nor anything else

    def __post_init__(self) -> None:
        choices = {"betas": get_args(Betas), "prediction": get_args(Prediction), "down_padding": (0, 1)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(map(str, allowed))}")
        if not 0 < self.sigma_min < 1:
            raise ValueError(f"sigma_min {self.sigma_min} does not lie between 0 and 1")
        levels = len(self.widths)
        stride = 2 ** (levels - 1)
        if not len(self.down_attention) == len(self.up_attention) == levels:
            raise ValueError(f"{levels} widths need {levels} entries in down_attention and in up_attention")
        if self.resolution % stride:
            raise ValueError(f"resolution {self.resolution} is not a multiple of 2^(levels - 1) = {stride}")
        if any(width % self.groups or width % 2 for width in self.widths):
            raise ValueError(f"widths {self.widths} are not even, or not multiples of {self.groups} groups")
        pairs = [*zip(self.widths, self.down_attention, strict=True)]
        pairs += [*zip(reversed(self.widths), self.up_attention, strict=True), (self.widths[-1], self.middle_attention)]
        if self.head_width and any(attended and width % self.head_width for width, attended in pairs):
            raise ValueError(f"widths {self.widths} are not multiples of {self.head_width} channels a head")
        if self.middle_attention and self.middle_groups and self.widths[-1] % self.middle_groups:
            raise ValueError(f"width {self.widths[-1]} is not a multiple of {self.middle_groups} groups")


def log_sigmas(config: DDPMConfig) -> Tensor:
    """ln sigma of timesteps 0 .. T-1, float64 [T], rising; sigma = sqrt((1 - abar) / abar).

    abar is the running product of 1 - beta (Ho et al. 2020, Section 2; cosine: Nichol & Dhariwal 2021, Eq. 17), in
    float32 as training computes it: the table is the one the network saw. Raises ValueError when it does not rise.
    """
    steps = config.timesteps
    if config.betas == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float32)
    elif config.betas == "scaled_linear":
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=torch.float32) ** 2
    else:
        bars = [math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(steps + 1)]
        betas = torch.tensor([min(1 - after / before, 0.999) for before, after in pairwise(bars)])
    bar = (1 - betas).cumprod(0).double()
    table = ((1 - bar) / bar).log() / 2
    if steps < 2 or not (table.isfinite().all() and (table.diff() > 0).all()):
        raise ValueError(
            f"{steps} {config.betas} betas from {config.beta_start} to {config.beta_end} give no noise levels that rise"
        )
    return table


class DDPMNetwork(nn.Module):
    """F(x, c_noise, onehot): x [B, C, H, W] of unit variance, c_noise = ln(sigma) / 4 [B], onehot [B, classes].

    Between two timesteps the U-Net is asked at a fractional one, linear in ln sigma. Outside the table F keeps the
    value it has at the table's nearer end, as if c_noise were clamped: below, D tends to x as it should; above
    (sigma 157 for linear betas in 1,000 steps, but 15 for Stable Diffusion's scaled_linear), D sees its input scaled
    to the highest known level and stays an image. D = x - sigma * eps would let the error of eps grow with sigma.
    A row of zeros in onehot adds no class embedding, which a class-conditional U-Net has not seen in training.
    """

    table: Tensor  # ln sigma of each timestep, [T]; not of consistency models

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet2D(config)
        if config.prediction != "consistency":
            self.register_buffer("table", log_sigmas(config).float(), persistent=False)

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        if self.config.prediction == "consistency":
            return self._consistency(x, c_noise, onehot)
        sigma_data = self.config.sigma_data
        # D = x - sigma * eps magnifies what the U-Net rounds: half precision would show from sigma 1 on.
        with torch.autocast(x.device.type, enabled=False):
            log_sigma = (4 * c_noise).clamp(self.table[0], self.table[-1])
            sigma = log_sigma.exp()[:, None, None, None]
            norm = (sigma**2 + sigma_data**2).sqrt()
            predicted = self.unet(x * norm / (1 + sigma**2).sqrt(), self.timestep(log_sigma), onehot)
            # F = (D - c_skip * x) / c_out with D written out for each prediction, so that no large terms cancel.
            if self.config.prediction == "epsilon":  # D = x - sigma * eps
                return (sigma * (x - predicted) - sigma_data**2 / (sigma + norm) * predicted) / sigma_data
            if self.config.prediction == "sample":  # D itself
                return (norm * predicted - sigma_data**2 * x) / (sigma * sigma_data)
            # v_prediction (Salimans & Ho 2022): v = (eps - sigma * D) / sqrt(1 + sigma^2)
            own = sigma * (1 - sigma_data**2) / (1 + sigma**2) * x
            return (own - norm / (1 + sigma**2).sqrt() * predicted) / sigma_data

    def _consistency(self, x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        """F of D = c_skip(sigma) x + c_out(sigma) U, where c_skip = 1 and c_out = 0 at sigma_min (Song et al. 2023,
        Eq. 5 and Appendix C). Below sigma_min F keeps its value there.
        """
        end, sigma_data = self.config.sigma_min, self.config.sigma_data
        with torch.autocast(x.device.type, enabled=False):
            log_sigma = (4 * c_noise).clamp(min=math.log(end))
            sigma = log_sigma.exp()[:, None, None, None]
            predicted = self.unet(x, 250 * log_sigma, onehot)
            # F = (D - c_skip x) / c_out of EDM's two factors, solved for F, so that no large terms cancel.
            own = sigma_data * (2 * end - end**2 / sigma) / ((sigma - end) ** 2 + sigma_data**2)
            return own * x + (1 - end / sigma) * predicted

    def timestep(self, log_sigma: Tensor) -> Tensor:
        """ln sigma [B] within the table -> fractional timestep [B]."""
        below = (self.table[None, :] <= log_sigma[:, None]).sum(dim=1).sub(1).clamp(0, len(self.table) - 2)
        low, high = self.table[below], self.table[below + 1]
        return below + (log_sigma - low) / (high - low)


class UNet2D(nn.Module):
    """x [B, C, H, W] of unit variance, fractional timestep [B], onehot [B, classes] -> prediction [B, C, H, W]."""

    freqs: Tensor  # [width / 2]

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__()
        self.sines_first = config.sines_first
        first, levels = config.widths[0], len(config.widths)
        exponents = torch.arange(first // 2, dtype=torch.float32) / (first // 2 - config.freq_shift)
        self.register_buffer("freqs", 10000.0**-exponents, persistent=False)
        self.time_embedding = TimeEmbedding(first)
        self.class_embedding = nn.Embedding(config.classes, 4 * first) if config.classes else None

        self.conv_in = nn.Conv2d(config.channels, first, 3, padding=1)
        skips = [cout := first]  # widths of the maps that the decoder will take
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(config.widths):
            shapes = [(width if index else cout, width) for index in range(config.blocks)]
            attentions, resized = config.blocks * config.down_attention[level], level < levels - 1
            self.down_blocks.append(Level(config, "down", shapes, attentions, resized=resized))
            cout = width
            skips += [width] * (config.blocks + resized)
        self.mid_block = Level(config, "middle", [(cout, cout)] * 2, int(config.middle_attention))
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(reversed(config.widths)):
            shapes = []
            for _ in range(config.blocks + 1):
                shapes.append((cout + skips.pop(), width))
                cout = width
            attentions, resized = len(shapes) * config.up_attention[level], level < levels - 1
            self.up_blocks.append(Level(config, "up", shapes, attentions, resized=resized))
        self.conv_norm_out = nn.GroupNorm(config.groups, cout, config.eps)
        self.conv_out = nn.Conv2d(cout, config.channels, 3, padding=1)

    def forward(self, x: Tensor, timestep: Tensor, onehot: Tensor) -> Tensor:
        angles = timestep[:, None] * self.freqs
        halves = (angles.sin(), angles.cos()) if self.sines_first else (angles.cos(), angles.sin())
        emb = self.time_embedding(torch.cat(halves, dim=1))
        if self.class_embedding is not None:
            emb = emb + onehot @ self.class_embedding.weight
        emb = functional.silu(emb)
        skips = [x := self.conv_in(x)]
        for level in self.down_blocks:
            x = level(x, emb, skips)
        x = self.mid_block(x, emb, [])
        for level in self.up_blocks:
            x = level(x, emb, skips)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


class Level(nn.Module):
    """Residual blocks cin -> cout, the first `attentions` of them followed by attention, then a change of size."""

    def __init__(
        self, config: DDPMConfig, role: Literal["down", "middle", "up"], shapes: list[tuple[int, int]],
        attentions: int, *, resized: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.role = role
        self.residual_resize = config.residual_resize
        width = shapes[-1][1]
        groups = config.middle_groups if role == "middle" else config.groups
        self.resnets = nn.ModuleList(Resnet(config, cin, cout) for cin, cout in shapes)
        self.attentions = nn.ModuleList(Attention(config, width, groups) for _ in range(attentions))
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        if resized and role == "down":
            smaller = Downsampler(width, config.down_padding) if not self.residual_resize else None
            self.downsamplers.append(smaller or Resnet(config, width, width, "down"))
        if resized and role == "up":
            larger = Upsampler(width) if not self.residual_resize else None
            self.upsamplers.append(larger or Resnet(config, width, width, "up"))

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """Going down, every map is put on `skips`; going up, every block takes one off."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1) if self.role == "up" else x, emb)
            if index < len(self.attentions):
                x = self.attentions[index](x)
            if self.role == "down":
                skips.append(x)
        also = (emb,) if self.residual_resize else ()
        for downsampler in self.downsamplers:
            skips.append(x := downsampler(x, *also))
        for upsampler in self.upsamplers:
            x = upsampler(x, *also)
        return x


class TimeEmbedding(nn.Module):
    """[B, width] -> [B, 4 * width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(functional.silu(self.linear_1(x)))


class Resnet(nn.Module):
    """Residual block with the embedding, whose SiLU is already applied. resample: both branches are resized first."""

    def __init__(
        self, config: DDPMConfig, cin: int, cout: int, resample: Literal["", "down", "up"] = ""
    ) -> None:  # fmt: skip
        super().__init__()
        self.resample: Literal["", "down", "up"] = resample
        self.scale_shift = config.scale_shift
        self.norm1 = nn.GroupNorm(config.groups, cin, config.eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.widths[0], cout * (2 if config.scale_shift else 1))
        self.norm2 = nn.GroupNorm(config.groups, cout, config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = functional.silu(self.norm1(x))
        if self.resample:
            x, h = (_resized(each, self.resample) for each in (x, h))
        h = self.conv1(h)
        params = self.time_emb_proj(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = params.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + params)
        h = self.conv2(self.dropout(functional.silu(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def _resized(x: Tensor, how: Literal["", "down", "up"]) -> Tensor:
    return functional.avg_pool2d(x, 2) if how == "down" else functional.interpolate(x, scale_factor=2.0)


class Attention(nn.Module):
    """Self-attention over all positions of the feature map, added to its input."""

    def __init__(self, config: DDPMConfig, width: int, groups: int) -> None:
        super().__init__()
        self.heads = width // config.head_width if config.head_width else 1
        self.group_norm = nn.GroupNorm(groups, width, config.eps) if groups else nn.Identity()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, positions, width]
        q, k, v = (
            project(tokens).unflatten(2, (self.heads, width // self.heads)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )  # each [B, heads, positions, width / heads]
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out[0](mixed).transpose(1, 2).reshape(batch, width, height, breadth)


class Downsampler(nn.Module):
    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.trailing = padding == 0  # as TensorFlow pads an even side: one row and one column, after the last
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)) if self.trailing else x)


class Upsampler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0))
