"""The network as a model of diffusers. Copied into the folder that `export.diffusers.folder` writes."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from fewstep.network import UNet
from fewstep.unet_config import UNetConfig


class FewstepNetwork(ModelMixin, ConfigMixin):
    """The raw network F of a student: x [B, C, H, W] of unit variance, c_noise [B], onehot [B, classes]."""

    @register_to_config
    def __init__(
        self, resolution: int = 32, channels: int = 1, classes: int = 0, width: int = 64, mult: Sequence[int] = (1, 2),
        blocks: int = 2, attention: Sequence[int] = (), dropout: float = 0.0, patch: int = 1, style: str = "song",
        embedding: str = "positional", encoder: str = "standard", resample: Sequence[int] = (1, 1), head_width: int = 0,
        precond: str = "edm", sigma_data: float = 0.5, extra: int = 0, inner_attention: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        fields: dict[str, Any] = {
            "resolution": resolution, "channels": channels, "classes": classes, "width": width, "mult": tuple(mult),
            "blocks": blocks, "attention": tuple(attention), "dropout": dropout, "patch": patch, "style": style,
            "embedding": embedding, "encoder": encoder, "resample": tuple(resample), "head_width": head_width,
            "precond": precond, "sigma_data": sigma_data, "extra": extra, "inner_attention": inner_attention,
        }  # fmt: skip
        self.unet = UNet(UNetConfig(**fields))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, onehot: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.unet(x, c_noise, onehot))
