"""Checkpoints: model.safetensors and card.json in one folder. Never pickle."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fewstep.card import (
    CARD_FILE,
    UNET_FAMILY,
    WEIGHTS_FILE,
    Card,
    CheckpointError,
    card_from_json,
    card_to_json,
    read_card,
    write_atomically,
)
from fewstep.conditions import conditions_from_json, enlarged
from fewstep.ddpm_network import DDPMConfig, DDPMNetwork
from fewstep.edm2_network import EDM2Config, EDM2Network
from fewstep.metadata import check_metadata, metadata, read_metadata, with_metadata
from fewstep.network import UNet
from fewstep.precond import Denoiser
from fewstep.unet_config import UNetConfig, config_fields

NetworkConfig = UNetConfig | DDPMConfig | EDM2Config
NetworkModule = UNet | DDPMNetwork | EDM2Network  # every module that keeps the contract of F and has such a config

_PENDING_CARD = f".{CARD_FILE}.pending"


def save_checkpoint(folder: Path, weights: dict[str, Tensor], card: Card) -> Card:
    """Write both files; returns the card with the hash of the weights filled in.

    Two files cannot be renamed at once, so the new card waits beside the weights until they are in place: whatever
    moment the process dies at, `load_denoiser` finds the old pair or the new one.
    """
    tensors = save_tensors({name: tensor.contiguous().cpu() for name, tensor in weights.items()})
    content = with_metadata(tensors, metadata(card))
    card = dataclasses.replace(card, weights=hashlib.sha256(content).hexdigest())
    write_atomically(folder / _PENDING_CARD, card_to_json(card).encode())
    write_atomically(folder / WEIGHTS_FILE, content)
    (folder / _PENDING_CARD).replace(folder / CARD_FILE)
    return card


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Card]:
    """Weights and card, checked against each other. Raises CheckpointError."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS_FILE}: it is not a fewstep checkpoint")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    pending = folder / _PENDING_CARD
    if pending.is_file():  # the writer died between the two renames
        card = card_from_json(pending.read_text("utf-8", errors="replace"), pending)
        if card.weights == digest:
            pending.replace(folder / CARD_FILE)
    card = read_card(folder)
    if card.weights != digest:
        raise CheckpointError(
            f"{path} is not the file its card describes (sha256 {digest[:12]}..., card says {card.weights[:12]}...): "
            "it is truncated, or belongs to another card"
        )
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error})") from error
    check_metadata(read_metadata(content), card, folder)
    return tensors, card


def network_config(card: Card) -> NetworkConfig:
    """The configuration a card describes. Raises CheckpointError when this version knows no such network."""
    try:
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in card.network.items()}
        family = fields.pop("family", UNET_FAMILY)
        if family == UNET_FAMILY:
            return UNetConfig(**{**fields, "conditions": conditions_from_json(fields.get("conditions", ()))})
        if family == DDPMConfig.family:
            return DDPMConfig(**fields)
        if family == EDM2Config.family:
            return EDM2Config(**fields)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the card describes a network this version does not know ({error})") from error
    raise CheckpointError(
        f"the card describes a network of the family {family!r}; this version knows {UNET_FAMILY!r}, "
        f"{DDPMConfig.family!r} and {EDM2Config.family!r}. Install the fewstep version that wrote it"
    )


def build_network(config: NetworkConfig) -> NetworkModule:
    """The network F of a configuration, with fresh weights."""
    if isinstance(config, UNetConfig):
        return UNet(config)
    return DDPMNetwork(config) if isinstance(config, DDPMConfig) else EDM2Network(config)


def at_resolution(denoiser: Denoiser, card: Card, side: int) -> tuple[Denoiser, Card]:
    """The denoiser and its card for images of side x side, with the same weights: of convolutions alone.

    Raises CheckpointError for a network with attention, which sees images of one size, and for a side it cannot halve.
    """
    config = network_config(card)
    if not isinstance(config, UNetConfig) or config.attention or config.inner_attention:
        raise CheckpointError(
            f"the network has attention and makes images of {card.image_shape[1]} pixels a side alone; one of another "
            "resolution needs a network trained with inner_attention False and without attention"
        )
    try:
        conditions = enlarged(config.conditions, config.resolution, side)
        config = dataclasses.replace(config, resolution=side, conditions=conditions)
    except ValueError as error:
        raise CheckpointError(f"the network cannot make images of {side}x{side}: {error}") from error
    network = UNet(config)
    network.load_state_dict(cast(UNet, denoiser.network).state_dict())
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    card = dataclasses.replace(card, network=config_fields(config))
    return dataclasses.replace(denoiser, network=network, conditions=conditions), card


def load_denoiser(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Denoiser, Card]:
    """The denoiser of a checkpoint folder, in fp32 and eval mode, with its card.

    denoiser(x [B, C, H, W] in noise units, sigma [B], labels [B] int or None) -> denoised [B, C, H, W]; what else the
    network takes is bound by `denoiser.given`.
    Raises CheckpointError with a sentence when the folder is not a usable checkpoint.
    """
    weights, card = load_checkpoint(Path(folder))
    config = network_config(card)
    # Some networks compute with sigma_data, too.
    bound = config if isinstance(config, DDPMConfig) else None
    if isinstance(config, UNetConfig) and config.precond != "edm":
        bound = config
    if bound and bound.sigma_data != card.sigma_data:
        raise CheckpointError(
            f"the card in {folder} is damaged: its network expects sigma_data {bound.sigma_data}, the card says "
            f"{card.sigma_data}"
        )
    try:
        network = build_network(config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the card describes a network this version does not know ({error})") from error
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {folder} do not fit the network of its card: {error}") from error
    network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Denoiser(network, card.sigma_data, config.classes, config.conditions), card
