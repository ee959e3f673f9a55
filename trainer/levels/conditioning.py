"""Networks with inputs beside the noisy image: another image, or the level of a student's input.

The weights of the new inputs are zero at first, so a widened copy equals the original network until it is trained.
"""

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewstep.card import CheckpointError
from fewstep.checkpoint import NetworkModule
from fewstep.conditions import Conditions, map_channels
from fewstep.network import Conv, UNet
from fewstep.unet_config import UNetConfig

LEVEL_FEATURES = 16


def widen(
    network: NetworkModule, *, channels: int = 0, features: int = 0, conditions: Conditions = ()
) -> NetworkModule:
    """A copy that also takes `channels` channels behind the noisy image, `features` numbers behind the classes, and
    further `conditions`.

    Raises CheckpointError when the network is of a family that cannot be widened.
    """
    if not channels and not features and not conditions:
        return copy.deepcopy(network)
    if not isinstance(network, UNet):
        raise CheckpointError(
            "a network imported from diffusers or EDM2 cannot take further inputs; "
            "train with --no-auxiliary-sees-level, and not with --objective ncvsd"
        )
    old = network.config
    config = replace(
        old, extra=old.extra + channels, classes=old.classes + features, conditions=(*old.conditions, *conditions)
    )
    wide = UNet(config)
    fresh = {name: torch.zeros_like(value) for name, value in wide.embedding.conditions.state_dict().items()}
    weights = {f"embedding.conditions.{name}": value for name, value in fresh.items()} | network.state_dict()
    pixels = old.patch**2  # of the image in one of the stem's
    maps = (old.channels + old.extra) * pixels  # where the columns of maps begin
    for name in _image_layers(network):
        first, rest = weights[name][:, :maps], weights[name][:, maps:]
        first = _zero_columns(first, channels * pixels)
        weights[name] = _zero_columns(torch.cat([first, rest], dim=1), map_channels(conditions) * pixels)
    if features:
        weights |= _label_weights(weights, wide, old, config)
    wide.load_state_dict(weights)
    device = next(network.parameters()).device
    return wide.to(device).to(memory_format=torch.channels_last).train(network.training)  # pyright: ignore[reportCallIssue]


def level_features(sigma: Tensor) -> Tensor:
    """sigma [B] -> [B, LEVEL_FEATURES]: sines and cosines of ln(sigma) / 4, which separate neighbouring levels."""
    angles = sigma.log()[:, None] / 4 * math.pi * 2.0 ** torch.arange(LEVEL_FEATURES // 2, device=sigma.device) / 2
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _image_layers(network: UNet) -> list[str]:
    """Names of the weights that are applied to the image: the stem, and NCSN++'s first feeder."""
    entries: list[tuple[str, nn.Module]] = [("stem", network.stem), *(
        (f"feeders.{index}", feeder) for index, feeder in enumerate(list(network.feeders)[:1])
    )]  # fmt: skip
    return [f"{name}.conv.weight" for name, layer in entries if isinstance(layer, Conv)]


def _zero_columns(weight: Tensor, count: int) -> Tensor:
    return torch.cat([weight, weight.new_zeros(weight.shape[0], count, *weight.shape[2:])], dim=1)


def _label_weights(weights: dict[str, Tensor], wide: UNet, old: UNetConfig, new: UNetConfig) -> dict[str, Tensor]:
    """The class embedding with zero columns for the features; DDPM++ scales it by the root of its width."""
    fresh = {f"embedding.label.{name}": torch.zeros_like(p) for name, p in wide.embedding.label.named_parameters()}
    if old.classes:
        scale = math.sqrt(old.classes / new.classes) if old.style == "song" else 1.0
        fresh["embedding.label.weight"][:, : old.classes] = weights["embedding.label.weight"] * scale
        if "embedding.label.bias" in weights:
            fresh["embedding.label.bias"] = weights["embedding.label.bias"]
    return fresh
