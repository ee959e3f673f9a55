"""Shapes of the raw network F: three published architectures as values of one `UNetConfig`.

DDPM++ and NCSN++ (Song et al. 2021) share a block that adds the noise embedding; ADM (Dhariwal & Nichol 2021) scales
and shifts with it (Karras et al. 2022, Table 7). `patch` puts a space-to-depth stem in front of any of them, which
makes small images several times cheaper.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fewstep.conditions import LOW, Conditions, check_bundle, find

Precond = Literal["edm", "vp", "ve", "iddpm", "residual"]


@dataclass(frozen=True)
class UNetConfig:
    """Everything that decides the shape of F. The defaults are a small DDPM++."""

    resolution: int = 32  # height and width of the image
    channels: int = 1  # image channels, in and out
    classes: int = 0  # 0: unconditional
    width: int = 64  # channels of the first level
    mult: tuple[int, ...] = (1, 2)  # width of each level, in units of `width`
    blocks: int = 2  # residual blocks per level (the decoder has one more)
    attention: tuple[int, ...] = ()  # feature-map sizes with attention; the innermost block always has it
    dropout: float = 0.0
    patch: int = 1  # side of the space-to-depth stem; 1: none
    style: Literal["song", "adm"] = "song"  # how the noise embedding enters a block
    embedding: Literal["positional", "fourier"] = "positional"
    encoder: Literal["standard", "residual"] = "standard"  # residual: NCSN++ feeds the shrunken input to each level
    resample: tuple[int, ...] = (1, 1)  # separable filter for down- and upsampling
    head_width: int = 0  # channels per attention head; 0: a single head
    # What the network was trained inside of (Karras et al. 2022, Table 1, or fewstep.residual_precond). Other than
    # "edm", F is computed from it.
    precond: Precond = "edm"
    sigma_data: float = 0.5  # read by `precond` other than "edm": that of the preconditioning around F
    extra: int = 0  # channels of latent noise behind the image, which F sees and does not predict
    inner_attention: bool = True  # False, with `attention` empty: convolutions alone, for images of any size
    conditions: Conditions = ()  # what F takes beside x, c_noise and onehot, in this order

    def __post_init__(self) -> None:
        stride = self.patch * 2 ** (len(self.mult) - 1)
        if self.resolution % stride:
            raise ValueError(
                f"resolution {self.resolution} is not a multiple of patch x 2^(levels - 1) = {stride}; "
                "change patch or the number of entries in mult"
            )
        if len(self.resample) % 2:
            raise ValueError(f"resample filter {self.resample} must have an even number of taps")
        check_bundle(self.conditions)
        low = find(self.conditions, LOW)
        if self.precond == "residual" and (low is None or low.shape[0] != self.channels):
            raise ValueError(f"precond residual enlarges {LOW}, a condition of {self.channels} channels")


LATER = {"inner_attention": True, "conditions": ()}  # fields that earlier cards do not have, and what they mean there


def config_fields(config: Any) -> dict[str, Any]:
    """A network's configuration as a card stores it, of whichever family. A field that earlier versions did not know is
    left out while it says what they did."""
    fields = asdict(config)
    return {name: value for name, value in fields.items() if name not in LATER or value != LATER[name]}


def ddpmpp(resolution: int, channels: int = 3, classes: int = 0) -> UNetConfig:
    """EDM's CIFAR-10 "vp" network: 55.7 M parameters at 32x32."""
    mult = (2, 2, 2) if resolution <= 32 else (1, 2, 2, 2)
    return UNetConfig(resolution, channels, classes, 128, mult, blocks=4, attention=(16,), dropout=0.13)


def ncsnpp(resolution: int, channels: int = 3, classes: int = 0) -> UNetConfig:
    """EDM's CIFAR-10 "ve" network: 56.4 M parameters at 32x32."""
    mult = (2, 2, 2) if resolution <= 32 else (1, 2, 2, 2)
    return UNetConfig(
        resolution, channels, classes, 128, mult, blocks=4, attention=(16,), dropout=0.13,
        embedding="fourier", encoder="residual", resample=(1, 3, 3, 1),
    )  # fmt: skip


def adm(resolution: int, channels: int = 3, classes: int = 1000) -> UNetConfig:
    """EDM's ImageNet-64 network: 295.9 M parameters at 64x64."""
    return UNetConfig(
        resolution, channels, classes, 192, (1, 2, 3, 4), blocks=3, attention=(32, 16, 8), dropout=0.10,
        style="adm", head_width=64,
    )  # fmt: skip
