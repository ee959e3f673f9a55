"""The raw network F: one U-Net whose configuration covers the EDM family (`fewstep.unet_config`)."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.conditions import LOW, Condition, map_channels
from fewstep.older_precond import network_input, raw_output
from fewstep.residual_precond import centred, with_enlarged, with_means
from fewstep.unet_config import UNetConfig


class UNet(nn.Module):
    """F(x, c_noise, onehot, *conditions): x [B, C + extra, H, W] scaled to unit variance, c_noise [B], onehot
    [B, classes], and what `config.conditions` names (`fewstep.conditions`)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in config.mult]
        stem_in = (config.channels + config.extra + map_channels(config.conditions)) * config.patch**2
        size = config.resolution // config.patch

        self.embedding = Embedding(config)
        cout = config.width if config.style == "song" else widths[0]
        self.stem = Conv(stem_in, cout, 3)
        skips = [cout]
        self.encoder = nn.ModuleList()
        self.feeders = nn.ModuleList()  # NCSN++: the shrunken input, one per level below the first
        feed = stem_in
        for level, width in enumerate(widths):
            here = size >> level
            if level:
                self.encoder.append(Block(config, cout, cout, resample="down"))
                skips.append(cout)
                if config.encoder == "residual":
                    self.feeders.append(Conv(feed, cout, 3, "down", config.resample, strided=True))
                    feed = cout
            for _ in range(config.blocks):
                self.encoder.append(Block(config, cout, width, attention=here in config.attention))
                cout = width
                skips.append(cout)

        attend = config.inner_attention
        self.middle = nn.ModuleList([Block(config, cout, cout, attention=attend), Block(config, cout, cout)])
        self.decoder = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            here = size >> level
            if level < len(widths) - 1:
                self.decoder.append(Block(config, cout, cout, resample="up"))
            for index in range(config.blocks + 1):
                # DDPM++ attends in the decoder only once per level, ADM in every block.
                attend = here in config.attention and (config.style == "adm" or index == config.blocks)
                self.decoder.append(Block(config, cout + skips.pop(), width, attention=attend))
                cout = width
        self.out_norm = group_norm(cout, config)
        self.out_conv = Conv(cout, config.channels * config.patch**2, 3, gain=1e-5 if config.style == "song" else 0.0)

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor, *conditions: Tensor) -> Tensor:
        if self.config.precond == "edm":
            return self._raw(x, c_noise, onehot, conditions)
        if self.config.precond == "residual":
            return self._residual(x, c_noise, onehot, conditions)
        # D = x - sigma * U magnifies what U rounds: half precision would show from sigma 1 on.
        with torch.autocast(x.device.type, enabled=False):
            image = x[:, : self.config.channels]
            inputs = self._network_input(x, c_noise)
            predicted = self._raw(inputs[0], inputs[1], onehot, conditions)
            sigma = (4 * c_noise).exp()[:, None, None, None]
            return raw_output(self.config.precond, predicted, image, sigma, self.config.sigma_data)

    def _residual(self, x: Tensor, c_noise: Tensor, onehot: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        config, low = self.config, self._low(conditions)
        image, enlarged = x[:, : config.channels], _at_size_of(low, x)
        inner = torch.cat([centred(image, enlarged, c_noise, config.sigma_data), x[:, config.channels :]], dim=1)
        output = self._raw(inner, c_noise, onehot, conditions).float()  # the sum is larger: bfloat16 would show
        output = with_enlarged(output, enlarged, c_noise, config.sigma_data)
        return with_means(output, image, low, c_noise, config.sigma_data)

    def _low(self, conditions: tuple[Tensor, ...]) -> Tensor:
        return conditions[[condition.name for condition in self.config.conditions].index(LOW)]

    def _network_input(self, x: Tensor, c_noise: Tensor) -> tuple[Tensor, Tensor]:
        """x and c_noise as the raw network takes them; further input channels stay as they are."""
        config = self.config
        if config.precond == "edm":
            return x, c_noise
        inputs = network_input(config.precond, x[:, : config.channels], c_noise, config.sigma_data)
        return torch.cat([inputs.image, x[:, config.channels :]], dim=1), inputs.c_noise

    def _raw(self, x: Tensor, c_noise: Tensor, onehot: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        x, skips, emb = self._encode(x, c_noise, onehot, conditions)
        for block in self.decoder:
            x = block(x if block.resample else torch.cat([x, skips.pop()], dim=1), emb)
        x = self.out_conv(functional.silu(self.out_norm(x)))
        return functional.pixel_shuffle(x, self.config.patch)

    def features(self, x: Tensor, c_noise: Tensor, onehot: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        """What the encoder knows, at half the cost of a call: the last map [B, feature_widths[i], h, w] of each level.

        From the finest to the innermost, which has been through the middle blocks.
        """
        if self.config.precond == "residual":
            raise ValueError("a network that enlarges images offers no features")
        inner, skips, _ = self._encode(*self._network_input(x, c_noise), onehot, conditions)
        shrunken = [fine for fine, coarse in pairwise(skips) if coarse.shape[2] < fine.shape[2]]
        return (*shrunken, inner)

    @property
    def feature_widths(self) -> tuple[int, ...]:
        return tuple(self.config.width * m for m in self.config.mult)

    def _encode(
        self, x: Tensor, c_noise: Tensor, onehot: Tensor, conditions: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The innermost feature map, what the decoder is handed on its way out, and the embedding."""
        if x.shape[1] != (channels := self.config.channels + self.config.extra):
            raise ValueError(f"this network takes {channels} channels ({self.config.extra} latent), not {x.shape[1]}")
        bundle = list(zip(self.config.conditions, conditions, strict=True))
        maps = [_at_size_of(values.to(x.dtype), x) for condition, values in bundle if condition.is_map]
        x = functional.pixel_unshuffle(torch.cat([x, *maps], dim=1) if maps else x, self.config.patch)
        others = {condition.name: values for condition, values in bundle if not condition.is_map}
        emb = self.embedding(c_noise, onehot, others).to(x.dtype)
        fed, x = x, self.stem(x)  # fed: what the next feeder shrinks
        skips = [x]
        feeders = iter(self.feeders)
        for block in self.encoder:
            x = block(x, emb)
            if block.resample == "down" and len(self.feeders):
                x = fed = (x + next(feeders)(fed)) * math.sqrt(0.5)
            skips.append(x)
        for block in self.middle:
            x = block(x, emb)
        return x, skips, emb


def _at_size_of(values: Tensor, x: Tensor) -> Tensor:
    """A map [B, c, h, w] at the size of x [B, C, H, W], bilinear."""
    if values.shape[2:] == x.shape[2:]:
        return values
    return functional.interpolate(values, size=x.shape[2:], mode="bilinear", align_corners=False)


class Embedding(nn.Module):
    """Noise level, class, and conditions that are numbers or vectors -> one vector per image, [B, 4 * width]."""

    freqs: Tensor  # [features / 2]

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.song = config.style == "song"
        self.classes = config.classes
        self.kind = config.embedding
        features = config.width * (2 if config.embedding == "fourier" else 1)
        out = config.width * 4
        if config.embedding == "fourier":
            self.register_buffer("freqs", torch.randn(features // 2) * 16)
        else:
            last = features // 2 - (1 if self.song else 0)  # DDPM++ includes the endpoint 1 / 10000
            exponents = torch.arange(features // 2, dtype=torch.float32) / last
            self.register_buffer("freqs", 10000.0**-exponents, persistent=False)
        self.linear0 = linear(features, out, config.style)
        self.linear1 = linear(out, out, config.style)
        if self.classes:
            self.label = linear(self.classes, features if self.song else out, config.style, bias=self.song)
        self.given = {condition.name: condition for condition in config.conditions if not condition.is_map}
        self.conditions = nn.ModuleDict(
            {name: Given(condition, features if self.song else out) for name, condition in self.given.items()}
        )

    def forward(self, c_noise: Tensor, onehot: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        angles = c_noise[:, None] * self.freqs.to(c_noise.dtype)
        if self.kind == "fourier":
            angles = angles * (2 * math.pi)
        emb = torch.cat([angles.cos(), angles.sin()], dim=1)
        if self.song and self.kind == "positional":
            emb = emb.roll(emb.shape[1] // 2, dims=1)  # DDPM++ lists the sines first
        if self.song:
            if self.classes:
                emb = emb + self.label(onehot * math.sqrt(self.classes))
            for name, layer in self.conditions.items():
                emb = emb + layer(conditions[name])
            return functional.silu(self.linear1(functional.silu(self.linear0(emb))))
        emb = self.linear1(functional.silu(self.linear0(emb)))
        if self.classes:
            emb = emb + self.label(onehot)
        for name, layer in self.conditions.items():
            emb = emb + layer(conditions[name])
        return functional.silu(emb)


class Given(nn.Module):
    """A condition that is a number [B] or a vector [B, n] -> [B, out]. Zero at first: a network that is widened by it
    is unchanged until it is trained."""

    FREQUENCIES = (0.5, 1.0, 2.0, 4.0)  # half turns from the lowest number to the highest

    def __init__(self, condition: Condition, out: int) -> None:
        super().__init__()
        self.condition = condition
        self.linear = nn.Linear(condition.size if condition.shape else 2 * len(self.FREQUENCIES), out, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, values: Tensor) -> Tensor:
        condition = self.condition
        if condition.shape:
            return self.linear(values)
        share = (values - condition.low) / (condition.high - condition.low)
        angles = torch.stack([share * (math.pi * turns) for turns in self.FREQUENCIES], dim=1)
        return self.linear(torch.cat([angles.sin(), angles.cos()], dim=1))


class Block(nn.Module):
    """Residual block with noise embedding, optional resampling and optional self-attention."""

    def __init__(
        self, config: UNetConfig, cin: int, cout: int, *, attention: bool = False,
        resample: Literal["", "up", "down"] = "",
    ) -> None:  # fmt: skip
        super().__init__()
        song = config.style == "song"
        self.resample = resample
        self.scale_shift = not song
        self.residual_scale = math.sqrt(0.5) if song else 1.0
        self.norm0 = group_norm(cin, config)
        self.conv0 = Conv(cin, cout, 3, resample, config.resample, default_init=not song)
        self.affine = linear(4 * config.width, cout * (1 if song else 2), config.style)
        self.norm1 = group_norm(cout, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv1 = Conv(cout, cout, 3, gain=1e-5 if song else 0.0)
        # DDPM++ projects whenever the shape changes; ADM only resamples when the width stays.
        kernel = 1 if cin != cout or (resample and song) else 0
        needs_skip = cin != cout or resample
        self.skip = Conv(cin, cout, kernel, resample, config.resample, default_init=not song) if needs_skip else None
        # A block narrower than a head has none, as published: ADM counts width // 64 heads.
        self.attention = Attention(config, cout) if attention and cout >= config.head_width else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(functional.silu(self.norm0(x)))
        params = self.affine(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = params.chunk(2, dim=1)
            h = functional.silu(self.norm1(h) * (1 + scale) + shift)
        else:
            h = functional.silu(self.norm1(h + params))
        h = self.conv1(self.dropout(h))
        x = (h + (x if self.skip is None else self.skip(x))) * self.residual_scale
        return x if self.attention is None else (x + self.attention(x)) * self.residual_scale


class Attention(nn.Module):
    """Self-attention over all positions of the feature map; returns the update, not the sum."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.heads = width // config.head_width if config.head_width else 1
        song = config.style == "song"
        self.norm = group_norm(width, config)
        self.qkv = Conv(width, 3 * width, 1, gain=math.sqrt(0.2) if song else 1.0, default_init=not song)
        self.proj = Conv(width, width, 1, gain=1e-5 if song else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, width // self.heads, height * breadth)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each [B, heads, positions, width / heads]
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(-1, -2).reshape(batch, width, height, breadth))


class Conv(nn.Module):
    """Convolution with optional 2x resampling first. kernel 0 resamples only and has no parameters."""

    filter: Tensor  # [cin, 1, taps, taps]

    def __init__(
        self, cin: int, cout: int, kernel: int, resample: Literal["", "up", "down"] = "",
        taps: tuple[int, ...] = (1, 1), *, gain: float = 1.0, default_init: bool = False, strided: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.resample = resample
        self.box = taps == (1, 1) and not strided
        # strided: filter at full size, pad once for both, and let the convolution halve, as NCSN++ feeds its input
        self.stride, self.pad = (1, (len(taps) - 1) // 2 + kernel // 2) if strided else (2, (len(taps) - 1) // 2)
        if resample and not self.box:
            line = torch.tensor(taps, dtype=torch.float32)
            kernel2d = torch.outer(line, line) / line.sum() ** 2
            self.register_buffer("filter", kernel2d.expand(cin, 1, -1, -1).clone(), persistent=False)
        self.conv = nn.Conv2d(cin, cout, kernel, 3 - self.stride, 0 if strided else kernel // 2) if kernel else None
        if self.conv is not None and not default_init:
            _xavier(self.conv, gain)

    def forward(self, x: Tensor) -> Tensor:
        x = self._resample(x) if self.resample else x
        return x if self.conv is None else self.conv(x)

    def _resample(self, x: Tensor) -> Tensor:
        up = self.resample == "up"
        if self.box:  # the same numbers as the general case, in the form every runtime has a fast path for
            return functional.interpolate(x, scale_factor=2.0) if up else functional.avg_pool2d(x, 2)
        taps = self.filter.to(x.dtype)
        if up:
            return functional.conv_transpose2d(x, taps * 4, stride=2, padding=self.pad, groups=x.shape[1])
        return functional.conv2d(x, taps, stride=self.stride, padding=self.pad, groups=x.shape[1])


def group_norm(width: int, config: UNetConfig) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels; a divisor is chosen where 4 does not fit."""
    groups = min(32, max(width // 4, 1))
    while width % groups:
        groups -= 1
    return nn.GroupNorm(groups, width, eps=1e-6 if config.style == "song" else 1e-5)


def linear(cin: int, cout: int, style: str, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(cin, cout, bias=bias)
    if style == "song":
        _xavier(layer, 1.0)
    return layer


def _xavier(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    """Initialisation of Song et al. 2021: Xavier-uniform weights times gain, zero bias."""
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
