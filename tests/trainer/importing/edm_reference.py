"""EDM's networks, written from their description over published tensor names.

Nothing here shares code with fewstep or with the importer: it is what both are held against.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as f

SMALL = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "label_dim": 4, "augment_dim": 9}
SONG = SMALL | {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 2, "attn_resolutions": [8], "dropout": 0.1}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm++": ("SongUNet", SONG),
    "ncsn++": ("SongUNet", SONG | {
        "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1], "channel_mult": [1, 2, 2],
    }),
    "adm": ("DhariwalUNet", SMALL | {
        "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "augment_dim": 0,
    }),
}  # fmt: skip


class Tensors(dict[str, Tensor]):
    """Published name -> tensor. A name asked for with a shape is made up on first use; buffers have their own value."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.rng = torch.Generator().manual_seed(0)

    def get_or_make(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            drawn = (
                torch.randn(shape, generator=self.rng) if self.device == "cpu" else torch.empty(shape, device="meta")
            )
            self[name] = drawn * (0.3 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5)
            if name.startswith("map_noise"):
                self[name] *= 4
        assert self[name].shape == shape, name
        return self[name]


class Reference:
    """The forward pass of SongUNet and DhariwalUNet (Karras et al. 2022, Table 7), name by name."""

    def __init__(self, class_name: str, kwargs: dict[str, Any], tensors: Tensors) -> None:
        self.song = class_name == "SongUNet"
        defaults = {"embedding_type": "positional", "encoder_type": "standard", "resample_filter": [1, 1]}
        self.kw = defaults | kwargs
        self.t = tensors
        taps = torch.tensor(self.kw["resample_filter"], dtype=torch.float32, device=tensors.device)
        self.fir = torch.outer(taps, taps) / taps.sum() ** 2
        self.emb: Tensor = torch.empty(0)

    def filtered(self, x: Tensor, pad: int) -> Tensor:
        channels, taps = x.shape[1], len(self.fir)
        return f.conv2d(f.pad(x, [pad] * 4), self.fir.expand(channels, 1, taps, taps), groups=channels)

    def resampled(self, x: Tensor, way: str) -> Tensor:
        taps = len(self.fir)
        if way == "down":
            return self.filtered(x, (taps - 1) // 2)[:, :, ::2, ::2]
        batch, channels, height, width = x.shape  # up: zeros in between, then the filter with four times the gain
        spread = x.new_zeros(batch, channels, height, 2, width, 2)
        spread[:, :, :, 0, :, 0] = x
        spread = spread.reshape(batch, channels, 2 * height, 2 * width)[:, :, :-1, :-1]
        return 4 * self.filtered(spread, taps - 1 - (taps - 1) // 2)

    def conv(self, name: str, x: Tensor, cout: int, kernel: int, way: str = "", *, fused: bool = False) -> Tensor:
        if way:
            self.t.setdefault(f"{name}.resample_filter", self.fir[None, None])
        if kernel == 0:
            return self.resampled(x, way)
        weight = self.t.get_or_make(f"{name}.weight", cout, x.shape[1], kernel, kernel)
        bias = self.t.get_or_make(f"{name}.bias", cout)
        if fused:  # down only: convolve at full size, then filter and drop every second row
            x = f.conv2d(x, weight, padding=kernel // 2 + (len(self.fir) - 1) // 2)
            return self.filtered(x, 0)[:, :, ::2, ::2] + bias[:, None, None]
        x = self.resampled(x, way) if way else x
        return f.conv2d(x, weight, padding=kernel // 2) + bias[:, None, None]

    def norm(self, name: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight, bias = (self.t.get_or_make(f"{name}.{kind}", channels) for kind in ("weight", "bias"))
        return f.group_norm(x, min(32, channels // 4), weight, bias, 1e-6 if self.song else 1e-5)

    def linear(self, name: str, x: Tensor, cout: int, *, bias: bool = True) -> Tensor:
        x = x @ self.t.get_or_make(f"{name}.weight", cout, x.shape[1]).T
        return x + self.t.get_or_make(f"{name}.bias", cout) if bias else x

    def block(self, name: str, x: Tensor, cout: int, way: str = "", *, attention: bool = False) -> Tensor:
        attention = attention and (self.song or cout >= 64)  # ADM counts cout // 64 heads: none
        original, scale = x, math.sqrt(0.5) if self.song else 1.0
        x = self.conv(f"{name}.conv0", f.silu(self.norm(f"{name}.norm0", x)), cout, 3, way)
        params = self.linear(f"{name}.affine", self.emb, cout if self.song else 2 * cout)[:, :, None, None]
        if self.song:
            x = f.silu(self.norm(f"{name}.norm1", x + params))
        else:
            x = f.silu(self.norm(f"{name}.norm1", x) * (1 + params[:, :cout]) + params[:, cout:])
        x = self.conv(f"{name}.conv1", x, cout, 3)
        if original.shape[1] != cout or way:
            project = original.shape[1] != cout or self.song
            original = self.conv(f"{name}.skip", original, cout, 1 if project else 0, way)
        x = (x + original) * scale
        return (x + self.attention(name, x)) * scale if attention else x

    def attention(self, name: str, x: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        heads = 1 if self.song else width // 64
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x), 3 * width, 1)
        qkv = qkv.reshape(batch, heads, width // heads, 3, height * breadth)  # [head][channel][q, k, v]
        q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
        weights = (torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(width // heads)).softmax(-1)
        mixed = torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(x.shape)
        return self.conv(f"{name}.proj", mixed, width, 1)

    def embedding(self, c_noise: Tensor, onehot: Tensor) -> Tensor:
        width = self.kw["model_channels"]
        if self.kw["embedding_type"] == "fourier":
            angles = c_noise[:, None] * 2 * math.pi * self.t.get_or_make("map_noise.freqs", width)
        else:
            last = width // 2 - (1 if self.song else 0)
            angles = c_noise[:, None] * 10000.0 ** -(torch.arange(width // 2, device=c_noise.device) / last)
        if self.kw["augment_dim"]:
            self.t.get_or_make("map_augment.weight", 2 * angles.shape[1], self.kw["augment_dim"])
        if self.song:
            emb = torch.cat([angles.sin(), angles.cos()], 1)
            if self.kw["label_dim"]:
                emb = emb + self.linear("map_label", onehot * math.sqrt(self.kw["label_dim"]), emb.shape[1])
            return f.silu(self.linear("map_layer1", f.silu(self.linear("map_layer0", emb, 4 * width)), 4 * width))
        emb = torch.cat([angles.cos(), angles.sin()], 1)
        emb = self.linear("map_layer1", f.silu(self.linear("map_layer0", emb, 4 * width)), 4 * width)
        return f.silu(emb + self.linear("map_label", onehot, 4 * width, bias=False) if self.kw["label_dim"] else emb)

    def __call__(self, x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        self.emb = self.embedding(c_noise, onehot)
        widths = [self.kw["model_channels"] * mult for mult in self.kw["channel_mult"]]
        blocks, channels, aux, skips = self.kw["num_blocks"], x.shape[1], x, []
        for level, width in enumerate(widths):
            side = self.kw["img_resolution"] >> level
            if level == 0:
                x = self.conv(f"enc.{side}x{side}_conv", x, self.kw["model_channels"] if self.song else width, 3)
            else:
                x = self.block(f"enc.{side}x{side}_down", x, x.shape[1], "down")
                if self.kw["encoder_type"] == "residual":
                    aux = self.conv(f"enc.{side}x{side}_aux_residual", aux, x.shape[1], 3, "down", fused=True)
                    x = aux = (x + aux) / math.sqrt(2)
            skips.append(x)
            for index in range(blocks):
                attend = side in self.kw["attn_resolutions"]
                skips.append(x := self.block(f"enc.{side}x{side}_block{index}", x, width, attention=attend))
        for level, width in reversed(list(enumerate(widths))):
            side = self.kw["img_resolution"] >> level
            if level == len(widths) - 1:
                x = self.block(f"dec.{side}x{side}_in0", x, width, attention=True)
                x = self.block(f"dec.{side}x{side}_in1", x, width)
            else:
                x = self.block(f"dec.{side}x{side}_up", x, x.shape[1], "up")
            for index in range(blocks + 1):
                attend = side in self.kw["attn_resolutions"] and (not self.song or index == blocks)
                x = self.block(
                    f"dec.{side}x{side}_block{index}", torch.cat([x, skips.pop()], 1), width, attention=attend
                )
        last = f"dec.{self.kw['img_resolution']}x{self.kw['img_resolution']}_aux" if self.song else "out"
        return self.conv(f"{last}_conv", f.silu(self.norm(f"{last}_norm", x)), channels, 3)


@functools.cache
def reference(kind: str) -> Reference:
    """One of NETWORKS with random weights, after a first call that has made them. Shared: copy before a change."""
    return built(*NETWORKS[kind])


def built(class_name: str, kwargs: dict[str, Any], device: str = "cpu") -> Reference:
    network = Reference(class_name, kwargs, Tensors(device))
    side, channels = kwargs["img_resolution"], kwargs["in_channels"]
    with torch.no_grad(), torch.device(device):
        network(torch.zeros(1, channels, side, side), torch.zeros(1), torch.zeros(1, kwargs["label_dim"]))
    return network
