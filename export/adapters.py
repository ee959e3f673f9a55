"""An adapter of a checkpoint into the engine of that checkpoint: a file beside the network, which stays as it is."""

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from export.adapter_chain import load_chain, prove_chain
from export.adapter_factors import check_factors
from export.backends.plan import PLANS_FOLDER
from export.engine import Engine, load_engine
from export.grouped import layer_down
from export.manifest import (
    ADAPTER_NAME,
    WITH_ADAPTERS,
    AdapterEntry,
    Manifest,
    changing,
    read_manifest,
    write_manifest,
)
from export.verify import BOUNDS_OF, Gap, measure, refuse_beyond
from fewstep.adapters import (
    Adapter,
    AdapterCard,
    LoadedPosterior,
    LoadedStudent,
    load_adapter,
    load_student,
    read_adapter_card,
    told,
)
from fewstep.card import Card, CheckpointError, write_atomically
from fewstep.checkpoint import NetworkModule, load_denoiser, network_config
from fewstep.scratch import scratch
from fewstep.unet_config import UNetConfig


def add_adapter(
    engine: Path,
    folder: Path,
    name: str | None = None,
    *,
    model: Path | None = None,
    bounds: Mapping[str, float] | None = None,
    threads: int = 0,
) -> AdapterEntry:
    """Add the adapter of `folder` to an engine directory; one of the same name is replaced. It is a student's, or that
    of a posterior's chain on the steps of the engine's own student.

    name: the folder's name when None. model: the checkpoint of the engine, its parent folder when None. bounds: instead
    of those of float32; the engine's images with this adapter are held against eager PyTorch's.
    Raises CheckpointError, and leaves the directory as it was, when engine and adapter do not belong together.
    """
    manifest = read_manifest(engine)
    name = folder.resolve().name if name is None else name
    model = engine.resolve().parent if model is None else model
    loaded = load_chain(model, folder) if read_adapter_card(folder).chain else load_student(model, folder)
    backbone, card = _backbone(loaded), loaded.card
    _check(engine, manifest, name, backbone, card)
    network = told(cast(nn.Module, load_denoiser(model)[0].network), backbone, card.groups)
    adapter, _ = load_adapter(folder, network)
    factors = engine_factors(adapter, cast(NetworkModule, network), manifest)
    arrays = {layer: values.numpy() for layer, values in factors.items()}
    check_factors(arrays, manifest.adapted, folder)
    content = save_tensors(factors)
    entry = _entry(name, hashlib.sha256(content).hexdigest(), loaded)
    bounds = BOUNDS_OF["float32"] if bounds is None else bounds
    with _copy(engine) as trial:
        _put(trial, manifest, entry, content)
        gaps = prove_adapter(load_engine(trial, backend=_backend(manifest), threads=threads), name, loaded)
    refuse_beyond(gaps, bounds)
    entry = dataclasses.replace(entry, parity=_as_json(gaps), bounds=dict(bounds))
    with changing(engine, manifest) as latest:
        _put(engine, latest, entry, content)
    return entry


def remove_adapter(engine: Path, name: str) -> None:
    """Take an adapter out of an engine directory. Raises CheckpointError when there is none of that name."""
    with changing(engine) as manifest:
        entry = next((each for each in manifest.adapters if each.name == name), None)
        if entry is None:
            raise CheckpointError(f"{engine} has no adapter {name!r}; it has {_listed(manifest)}")
        rest = tuple(each for each in manifest.adapters if each.name != name)
        write_manifest(engine, dataclasses.replace(manifest, adapters=rest))
        (engine / entry.file).unlink(missing_ok=True)


def prove_adapter(engine: Engine, name: str, loaded: LoadedStudent | LoadedPosterior) -> dict[str, Gap]:
    """The gap between the images of eager PyTorch and of an engine with one of its adapters, per step count."""
    index = 1 + [entry.name for entry in engine.manifest.adapters].index(name)
    if isinstance(loaded, LoadedPosterior):
        return prove_chain(engine, index, loaded)
    card = dataclasses.replace(loaded.backbone, role="student", levels=loaded.card.levels)
    return measure(loaded.denoiser, engine.adapted_denoiser(index), card)


def _backbone(loaded: LoadedStudent | LoadedPosterior) -> Card:
    return loaded.prior_card if isinstance(loaded, LoadedPosterior) else loaded.backbone


def _entry(name: str, sha256: str, loaded: LoadedStudent | LoadedPosterior) -> AdapterEntry:
    """What is served with an adapter; its proof is made with the finished file."""
    card = loaded.card
    entry = AdapterEntry(
        name=name, sha256=sha256, levels=card.levels, classes=0, class_names=card.class_names, reward=card.reward,
        parity={}, bounds={},
    )  # fmt: skip
    if isinstance(loaded, LoadedStudent):
        return dataclasses.replace(entry, classes=loaded.denoiser.classes)
    sigmas = loaded.chain.sigmas
    return dataclasses.replace(
        entry, classes=loaded.posterior.classes, levels={len(sigmas): sigmas}, last_map="backbone"
    )


def engine_factors(adapter: Adapter, network: NetworkModule, manifest: Manifest) -> dict[str, Tensor]:
    """The factors in the layout of an engine, [r, taps, in] and [out, r], of those layers that the adapter changes.

    network: what the adapter was loaded for. An engine may have room for more values of y than the adapter is told.
    """
    found: dict[str, Tensor] = {}
    tensors = adapter.tensors()
    for layer, (_, width, _) in manifest.adapted.items():
        if f"{layer}.up" not in tensors:
            continue
        down, up = tensors[f"{layer}.down"], tensors[f"{layer}.up"]
        if not bool(up.any()) or not bool(down.any()):
            continue
        down = layer_down(down, network.get_parameter(layer))
        if (columns := down.shape[2]) < width:
            # A label's row of ones is multiplied with the root of the number of classes (fewstep.network.Embedding).
            down = down * (columns / width) ** 0.5 if _song(network) else down
            down = torch.cat([down, down.new_zeros(*down.shape[:2], width - columns)], dim=2)
        found[f"{layer}.down"], found[f"{layer}.up"] = down.contiguous(), up.contiguous()
    return found


def _song(network: NetworkModule) -> bool:
    return isinstance(network.config, UNetConfig) and network.config.style == "song"


def _check(engine: Path, manifest: Manifest, name: str, backbone: Card, card: AdapterCard) -> None:
    if not ADAPTER_NAME.fullmatch(name):
        raise CheckpointError(
            f"an adapter cannot be called {name!r}: a name has 1 to 64 letters, digits, dots, hyphens or underscores "
            "and begins with a letter or digit; give it one with --name"
        )
    if not manifest.adapted:
        raise CheckpointError(
            f"the network of {engine} takes no adapters. Export it once more with: fewstep export --adapters"
        )
    if manifest.checkpoint != backbone.weights:
        raise CheckpointError(
            f"the adapter stands beside the checkpoint {backbone.weights[:12]}..., and {engine} was exported "
            f"from {manifest.checkpoint[:12]}..."
        )
    groups = card.groups
    if groups and groups > manifest.told and not network_config(backbone).classes:
        raise CheckpointError(
            f"the adapter is told one of {groups} values, and {engine} has room for {manifest.told}. Export it once "
            f"more with: fewstep export --adapters --told {groups}"
        )


@contextlib.contextmanager
def _copy(engine: Path) -> Iterator[Path]:
    """Of an engine directory, beside it for a while: the backend `torch` looks for the checkpoint there."""
    engine = engine.resolve()
    with scratch(engine.parent, f".{engine.name}.adapter.") as folder:
        shutil.copytree(engine, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(PLANS_FOLDER))
        yield folder


def _put(engine: Path, manifest: Manifest, entry: AdapterEntry, content: bytes) -> None:
    """The file first: a manifest names what is there."""
    write_atomically(engine / entry.file, content)
    write_manifest(engine, dataclasses.replace(manifest, adapters=_with(manifest.adapters, entry)))


def _with(entries: Sequence[AdapterEntry], entry: AdapterEntry) -> tuple[AdapterEntry, ...]:
    """In the place of the one of its name, or behind the others."""
    names = [each.name for each in entries]
    if entry.name not in names:
        return (*entries, entry)
    return tuple(entry if each.name == entry.name else each for each in entries)


def _backend(manifest: Manifest) -> str:
    return manifest.backend if manifest.backend in WITH_ADAPTERS else WITH_ADAPTERS[0]


def _as_json(gaps: Mapping[str, Gap]) -> dict[str, dict]:
    return {steps: dataclasses.asdict(gap) for steps, gap in gaps.items()}


def _listed(manifest: Manifest) -> str:
    return ", ".join(entry.name for entry in manifest.adapters) or "none"
