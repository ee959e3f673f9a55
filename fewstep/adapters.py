"""Low-rank adapters: a posterior is its prior's network plus a few percent of weights, stored in files of their own.

The weight of every linear and convolutional layer becomes W + up @ down (LoRA: Hu et al. 2022, Eq. 3, with alpha = r).
The prior's network is never changed: an adapted call is given other weights. So both are at hand from one network.
"""

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.func import functional_call

from fewstep.ancestral import Chain
from fewstep.card import Card, CheckpointError, Levels, write_atomically
from fewstep.checkpoint import build_network, load_denoiser, network_config
from fewstep.described import check_counts, check_names, from_json
from fewstep.outputs import ADAPTER_CARD, ADAPTER_FILE
from fewstep.precond import Denoiser
from fewstep.unet_config import UNetConfig

ADAPTER_FORMAT = 1
LOG_VARIANCE = "log_variance"
OPTIONAL = ("levels", "class_names")  # left out of the card while they are empty


class Adapter(nn.Module):
    """For a layer's weight [out, ...] of n elements a row: down [r, n] and up [out, r]; up starts at 0, so that an
    adapter changes nothing at first. r is `rank`, or what is left where a layer is smaller.

    log_variance [steps]: log of the factors on the variances of a `fewstep.ancestral.Chain`, learned as well.
    """

    def __init__(self, network: nn.Module, rank: int, steps: int = 0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"an adapter's rank is at least 1, not {rank}")
        self.rank = rank
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in adaptable(network).items():
            out, width = weight.shape[0], weight[0].numel()
            r = min(rank, out, width)
            normals = torch.randn(r, width, generator=generator)
            self.down[_key(name)] = nn.Parameter((normals / math.sqrt(width)).to(weight.device))
            self.up[_key(name)] = nn.Parameter(weight.new_zeros(out, r))
        self.log_variance = nn.Parameter(torch.zeros(steps))

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """W + up @ down of every adapted layer, by the names of `network`. Gradients reach the adapter."""
        return {
            name: weight + (self.up[_key(name)] @ self.down[_key(name)]).view_as(weight)
            for name, weight in adaptable(network).items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by layer: `LAYER.weight.down` and `.up`, and log_variance."""
        named = {
            f"{_name(key)}.{part}": value.detach().cpu().contiguous()
            for part, values in (("down", self.down), ("up", self.up))
            for key, value in values.items()
        }
        return {**named, LOG_VARIANCE: self.log_variance.detach().cpu()}


def adaptable(network: nn.Module) -> dict[str, Tensor]:
    """The weights of the linear and convolutional layers, by name."""
    return {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def adapted(network: nn.Module, adapter: Adapter) -> Callable[..., Tensor]:
    """The network with the adapter switched on, as a function of the same arguments."""
    return lambda *args: functional_call(network, adapter.weights(network), args)


def merged(network: nn.Module, adapter: Adapter) -> nn.Module:
    """A copy of the network with the adapter in its weights: as fast as the prior."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in adapter.weights(network).items():
            copied.get_parameter(name).copy_(weight)
    return copied


def joined(network: nn.Module, adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that adds what several do, each trained beside the network with those before it merged: their factors
    behind each other, so that the ranks add up. Its log_variance is empty."""
    whole = Adapter(network, 1)
    for key in whole.down:
        whole.down[key] = nn.Parameter(torch.cat([adapter.down[key].detach().cpu() for adapter in adapters]))
        whole.up[key] = nn.Parameter(torch.cat([adapter.up[key].detach().cpu() for adapter in adapters], dim=1))
    whole.rank = sum(adapter.rank for adapter in adapters)
    return whole.requires_grad_(False)


@dataclass(frozen=True)
class AdapterCard:
    """adapter.json: what the adapter belongs to, and how its chain samples."""

    prior: str  # sha256 of the prior's model.safetensors; of a student's adapter, that of the network it stands beside
    rank: int  # the largest of its layers; smaller ones may have less
    groups: int  # values of y that the posterior is told; 0: none
    chain: Chain | None  # of a posterior; a student has levels instead
    reward: str  # as it was asked for
    weights: str = ""  # sha256 of adapter.safetensors
    training: dict[str, Any] = field(default_factory=dict)
    monitors: dict[str, float] = field(default_factory=dict)
    levels: Levels = field(default_factory=dict)  # of a student: step count -> sigmas
    class_names: tuple[str, ...] = ()  # of what it is told: y, or the classes of the prior
    format: int = ADAPTER_FORMAT


def save_adapter(folder: Path, adapter: Adapter, card: AdapterCard) -> AdapterCard:
    """Write adapter.safetensors and adapter.json; returns the card with the hash of the weights."""
    content = save_tensors(adapter.tensors())
    card = dataclasses.replace(card, weights=hashlib.sha256(content).hexdigest())
    write_atomically(folder / ADAPTER_FILE, content)
    fields = asdict(card)
    for name in OPTIONAL:
        if not fields[name]:
            del fields[name]
    write_atomically(folder / ADAPTER_CARD, (json.dumps(fields, indent=2) + "\n").encode())
    return card


def load_adapter(folder: Path, network: nn.Module) -> tuple[Adapter, AdapterCard]:
    """The adapter of a folder for `network`, frozen. Raises CheckpointError for one that is damaged or does not fit."""
    card = read_adapter_card(folder)
    path = folder / ADAPTER_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {ADAPTER_FILE}: it is not an adapter")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != card.weights:
        raise CheckpointError(f"{path} is not the file that {ADAPTER_CARD} describes; train the posterior again")
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error})") from error
    adapter = Adapter(network, card.rank, card.chain.steps if card.chain else 0)
    if not _fits(adapter, tensors):
        raise CheckpointError(f"the adapter in {folder} does not fit this network: its layers are others")
    for key in adapter.down:
        adapter.down[key] = nn.Parameter(tensors[f"{_name(key)}.down"])
        adapter.up[key] = nn.Parameter(tensors[f"{_name(key)}.up"])
    adapter.log_variance = nn.Parameter(tensors[LOG_VARIANCE])
    return adapter.requires_grad_(False), card


def _fits(adapter: Adapter, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are those of an adapter of the same layers and steps; each layer has a rank of its own."""
    expected = adapter.tensors()
    if set(tensors) != set(expected) or tensors[LOG_VARIANCE].shape != expected[LOG_VARIANCE].shape:
        return False
    for key in adapter.down:
        down, up = (tensors[f"{_name(key)}.{part}"] for part in ("down", "up"))
        wanted = adapter.up[key].shape[0], adapter.down[key].shape[1]
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != wanted:
            return False
    return True


def read_adapter_card(folder: Path) -> AdapterCard:
    """Raises CheckpointError."""
    path = folder / ADAPTER_CARD
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {ADAPTER_CARD}: it is not an adapter")
    try:
        fields = json.loads(path.read_text("utf-8", errors="replace"))
        if not isinstance(fields, dict) or "format" not in fields:
            raise CheckpointError(f"{path} is not a readable adapter card: it has no format number")
        if fields["format"] != ADAPTER_FORMAT:
            raise CheckpointError(f"{path} has format {fields['format']}; this version reads {ADAPTER_FORMAT}")
        card = from_json(AdapterCard, fields)
        if card.rank < 1 or card.groups < 0:
            raise ValueError(f"it has rank {card.rank} and {card.groups} groups; at least 1 and 0 are allowed")
        check_counts(card.levels)
        return card
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable adapter card ({error})") from error


@dataclass(frozen=True)
class LoadedPosterior:
    prior: Denoiser  # the decoder of the chain
    posterior: Denoiser  # labels: y, where the posterior is told one
    chain: Chain
    log_variance: tuple[float, ...]  # of its steps
    card: AdapterCard
    prior_card: Card


def load_posterior(prior: Path, folder: Path, *, merge: bool = True) -> LoadedPosterior:
    """A prior's checkpoint with the adapter of `folder`, ready for `sample_ancestral` with the prior as its decoder.

    merge: put the adapter into a copy of the weights; otherwise one network computes both.
    Raises CheckpointError when one of them cannot be read, or the adapter was trained for another prior.
    """
    card = read_adapter_card(folder)
    if (chain := card.chain) is None:
        raise CheckpointError(
            f"the adapter in {folder} is a student's, which has levels and no chain; load it with load_student"
        )
    beside = _beside(prior, folder, card, merge)
    log_variance = tuple(beside.adapter.log_variance.tolist())
    return LoadedPosterior(beside.backbone, beside.adapted, chain, log_variance, card, beside.card)


@dataclass(frozen=True)
class LoadedStudent:
    denoiser: Denoiser  # of the backbone with the adapter, for `sample_dpdm`; labels: its classes, or y
    card: AdapterCard  # with the levels
    backbone: Card


def load_student(backbone: Path, folder: Path, *, merge: bool = True) -> LoadedStudent:
    """A backbone's checkpoint with the student's adapter of `folder` (`fewstep posterior --distil`).

    merge: as of `load_posterior`. Raises CheckpointError when one of them cannot be read, when the adapter stands
    beside another network, or is no student's.
    """
    card = read_adapter_card(folder)
    if not card.levels:
        raise CheckpointError(
            f"the adapter in {folder} has no levels to sample in few steps: it is no student's. A posterior becomes "
            "one by: fewstep posterior ... --distil"
        )
    beside = _beside(backbone, folder, card, merge)
    try:
        check_names(card.class_names, beside.adapted.classes)
    except ValueError as error:
        raise CheckpointError(f"{folder / ADAPTER_CARD} is not a readable adapter card ({error})") from error
    return LoadedStudent(beside.adapted, card, beside.card)


@dataclass(frozen=True)
class _Beside:
    """An adapter beside its backbone."""

    backbone: Denoiser
    card: Card
    adapter: Adapter
    adapted: Denoiser  # labels: the backbone's classes, or y where the adapter is told one


def _beside(backbone: Path, folder: Path, card: AdapterCard, merge: bool) -> _Beside:
    """Raises CheckpointError when the adapter was trained beside another network, or does not fit it."""
    denoiser, of_backbone = load_denoiser(backbone)
    if card.prior != of_backbone.weights:
        raise CheckpointError(
            f"the adapter in {folder} was trained beside the network with the sha256 {card.prior[:12]}..., and "
            f"{backbone} is {of_backbone.weights[:12]}...; give the one it was trained with"
        )
    assert isinstance(denoiser.network, nn.Module)
    network = told(denoiser.network, of_backbone, card.groups)
    adapter, _ = load_adapter(folder, network)
    run = merged(network, adapter) if merge else adapted(network, adapter)
    return _Beside(denoiser, of_backbone, adapter, Denoiser(run, denoiser.sigma_data, card.groups or denoiser.classes))


def told(network: nn.Module, card: Card, groups: int) -> nn.Module:
    """The network of a prior without classes, with an input for y of `groups` values that has no weight yet; the
    network itself for 0 groups. An adapter gives the input its weights.

    Raises CheckpointError for a prior that has classes, with which y would be mixed up, or that is no UNet.
    """
    if not groups:
        return network
    config = network_config(card)
    if not isinstance(config, UNetConfig):
        raise CheckpointError("only a prior of the U-Net family can be told y; this one is of another family")
    if config.classes:
        raise CheckpointError(
            f"the prior has {config.classes} classes of its own; to be told y, a posterior needs one without"
        )
    wider = build_network(dataclasses.replace(config, classes=groups))
    before = network.state_dict()
    fresh = {name: torch.zeros_like(value) for name, value in wider.state_dict().items() if name not in before}
    wider.load_state_dict({**before, **fresh})
    device = next(network.parameters()).device
    return wider.eval().requires_grad_(False).to(device)


def _key(name: str) -> str:
    """A parameter's name without dots, which modules forbid."""
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
