"""A second implementation of EDM2's network (Karras et al. 2024, Appendix B): functions of published tensors."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as f

# Arguments of a small network as the published files hold them.
ARGUMENTS: dict[str, Any] = {
    "img_resolution": 16, "img_channels": 3, "label_dim": 4, "model_channels": 32, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [8], "channels_per_head": 16, "concat_balance": 0.4, "clip_act": 2,
}  # fmt: skip


class Reference2:
    """U(x, c_noise, onehot). Tensors are drawn where they are first asked for."""

    def __init__(self, **change: Any) -> None:
        self.kw = ARGUMENTS | change
        self.t: dict[str, Tensor] = {}
        self.rng = torch.Generator().manual_seed(0)
        side = self.kw["img_resolution"]
        self(torch.zeros(1, self.kw["img_channels"], side, side), torch.zeros(1), torch.zeros(1, self.kw["label_dim"]))

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self.t:
            self.t[name] = torch.randn(shape, generator=self.rng) + (0.0 if shape else 0.5)
        return self.t[name]

    def conv(self, name: str, x: Tensor, cout: int, kernel: int, gain: Any = 1.0) -> Tensor:
        w = self.get(f"{name}.weight", cout, x.shape[1], *[kernel] * (2 if kernel else 0))
        flat = w.flatten(1).double()
        rms = flat.norm(dim=1, keepdim=True) / math.sqrt(flat.shape[1])
        unit = (flat / (rms + 1e-4) / math.sqrt(flat.shape[1])).reshape(w.shape).float() * gain
        return f.conv2d(x, unit, padding=kernel // 2) if kernel else f.linear(x, unit)

    def block(self, name: str, x: Tensor, emb: Tensor, cout: int, *, attend: bool = False, way: str = "") -> Tensor:
        silu = lambda v: v * v.sigmoid() / 0.596  # noqa: E731
        add = lambda a, b, t: ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)  # noqa: E731
        if way == "up":
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if way == "down":
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        projects = x.shape[1] != cout
        if name.startswith("enc"):
            x = self.conv(f"{name}.conv_skip", x, cout, 1) if projects else x
            x = x / (x.square().mean(1, keepdim=True).sqrt() + 1e-4)
        y = self.conv(f"{name}.conv_res0", silu(x), cout, 3)
        scale = 1 + self.conv(f"{name}.emb_linear", emb, cout, 0, self.get(f"{name}.emb_gain"))
        y = self.conv(f"{name}.conv_res1", silu(y * scale[:, :, None, None]), cout, 3)
        if name.startswith("dec") and projects:
            x = self.conv(f"{name}.conv_skip", x, cout, 1)
        x = add(x, y, 0.3)
        if attend:
            x = add(x, self.attention(name, x), 0.3)
        return x.clip(-self.kw["clip_act"], self.kw["clip_act"])

    def attention(self, name: str, x: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        per_head = self.kw["channels_per_head"]
        qkv = self.conv(f"{name}.attn_qkv", x, 3 * width, 1)
        qkv = qkv.reshape(batch, width // per_head, per_head, 3, height * breadth)  # [head][channel][q, k, v]
        qkv = qkv / (qkv.square().mean(2, keepdim=True).sqrt() + 1e-4)
        weights = torch.einsum("bhcq,bhck->bhqk", qkv[:, :, :, 0], qkv[:, :, :, 1] / math.sqrt(per_head)).softmax(-1)
        mixed = torch.einsum("bhqk,bhck->bhcq", weights, qkv[:, :, :, 2]).reshape(x.shape)
        return self.conv(f"{name}.attn_proj", mixed, width, 1)

    def embedding(self, c_noise: Tensor, onehot: Tensor) -> Tensor:
        width, classes = self.kw["model_channels"], self.kw["label_dim"]
        angles = c_noise[:, None] * self.get("emb_fourier.freqs", width) + self.get("emb_fourier.phases", width)
        emb = self.conv("emb_noise", math.sqrt(2) * angles.cos(), 2 * width, 0)
        if classes:
            emb = (emb + self.conv("emb_label", onehot * math.sqrt(classes), 2 * width, 0)) / math.sqrt(2)
        return emb * emb.sigmoid() / 0.596

    def __call__(self, x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        emb, width, side = self.embedding(c_noise, onehot), self.kw["model_channels"], self.kw["img_resolution"]
        channels, t = x.shape[1], self.kw["concat_balance"]
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        half, inner, skips = side // 2, side // 2 in self.kw["attn_resolutions"], []
        skips.append(x := self.conv(f"enc.{side}x{side}_conv", x, width, 3))
        skips.append(x := self.block(f"enc.{side}x{side}_block0", x, emb, width))
        skips.append(x := self.block(f"enc.{half}x{half}_down", x, emb, width, way="down"))
        skips.append(x := self.block(f"enc.{half}x{half}_block0", x, emb, 2 * width, attend=inner))
        x = self.block(f"dec.{half}x{half}_in0", x, emb, 2 * width, attend=True)
        x = self.block(f"dec.{half}x{half}_in1", x, emb, 2 * width)
        for level, cout in ((half, 2 * width), (side, width)):
            x = self.block(f"dec.{level}x{level}_up", x, emb, x.shape[1], way="up") if level == side else x
            for index in range(2):
                skip = skips.pop()
                a, b = x.shape[1], skip.shape[1]
                norm = math.sqrt((a + b) / ((1 - t) ** 2 + t**2))
                x = torch.cat([x * (norm * (1 - t) / math.sqrt(a)), skip * (norm * t / math.sqrt(b))], 1)
                x = self.block(f"dec.{level}x{level}_block{index}", x, emb, cout, attend=inner and level == half)
        return self.conv("out_conv", x, channels, 3, self.get("out_gain"))
