"""Checkpoint folder -> engine directory: export, prove parity with every backend, and only then put it in place."""

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import torch

from export.backends.buckets import check_buckets
from export.backends.plan import MODULES, PLANS_FOLDER
from export.engine import Engine, load_engine
from export.grouped import adapted_layers
from export.manifest import (
    ADAPTERS_FOLDER,
    BACKEND_ORT_CPU,
    BACKEND_TORCH,
    ENGINE_FILE,
    NETWORK_FILE,
    Manifest,
    changing,
    read_manifest,
    write_manifest,
)
from export.to_onnx import OPSET, network_to_onnx
from export.verify import BOUNDS_OF, Gap, measure, refuse_beyond
from fewstep import __version__
from fewstep.adapters import told
from fewstep.card import WEIGHTS_FILE, Card, CheckpointError, file_sha256, write_atomically
from fewstep.checkpoint import NetworkModule, at_resolution, load_checkpoint, load_denoiser, network_config
from fewstep.latent import latent_shape
from fewstep.noise import NOISE_VERSION
from fewstep.precond import Denoiser
from fewstep.scratch import scratch

RECORDED_VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")
DEFAULT_BACKENDS = (BACKEND_ORT_CPU,)


def backends_here() -> tuple[str, ...]:
    """What the command proves unless it is told: everywhere ONNX Runtime, and before it PyTorch on a GPU."""
    return (BACKEND_TORCH, *DEFAULT_BACKENDS) if torch.cuda.is_available() else DEFAULT_BACKENDS


@dataclasses.dataclass(frozen=True)
class Proof:
    """How close a backend's images are to those of eager PyTorch."""

    parity: dict[str, Gap]  # per step count, or "solver"
    bounds: dict[str, float]  # {"mean": ..., "max": ...}: what parity was held against
    facts: dict[str, str]  # what ran: Engine.facts


def export_checkpoint(
    model: Path,
    out: Path,
    name: str | None = None,
    *,
    backends: Sequence[str] = DEFAULT_BACKENDS,
    dtype: str = "float32",
    buckets: Sequence[int] | None = None,
    bounds: Mapping[str, float] | None = None,
    threads: int = 0,
    adapters: bool = False,
    told_classes: int = 0,
    resolution: int | None = None,
) -> Manifest:
    """Write the engine of the checkpoint folder `model` to the directory `out`; an engine there is replaced.

    name: what the engine is called; the checkpoint folder's name when None. backends: those to prove; the first is the
    one the engine is served with unless another is asked for. dtype: what the network computes in. buckets: batch sizes
    that backends of fixed shapes prepare. bounds: instead of those of the precision. threads: as for `load_engine`.
    adapters: the network takes adapters by row, which `export.adapters.add_adapter` adds. told_classes: how many values
    of y these may be told, where the checkpoint has no classes. resolution: side of the images, where a network of
    convolutions alone is to make others than it was trained on.
    Raises CheckpointError, and leaves `out` as it was, when the checkpoint is unusable, when `out` is no place
    for an engine, when a backend cannot run it, or when parity is beyond bounds.
    """
    model, out = model.resolve(), out.resolve()
    for backend in backends:
        if backend in MODULES:
            raise CheckpointError(
                f"backend {backend} runs a plan, which is built from a finished engine. Export for another backend, "
                f"then run: fewstep export plan {out} --backend {backend}, and for the proof: "
                f"fewstep export verify {out} --backend {backend} --record"
            )
    weights, card = load_checkpoint(model)
    check_destination(out, card)
    half = any(tensor.dtype == torch.float16 for tensor in weights.values())
    del weights
    weights_dtype = dtype if dtype != "float32" else "float16" if half else "float32"
    eager, _ = load_denoiser(model)
    if resolution is not None:
        eager, card = at_resolution(eager, card, resolution)
    if adapters and card.conditions:
        raise CheckpointError(f"{model} takes {card.conditions[0].name}; an engine with adapters takes classes alone")
    if told_classes and not adapters:
        raise CheckpointError("--told is for the adapters of an engine that takes some; give --adapters, too")
    network = cast(NetworkModule, told(cast(NetworkModule, eager.network), card, told_classes))
    content = network_to_onnx(network, weights_dtype=weights_dtype, dtype=dtype, adapters=adapters)
    manifest = _manifest(card, name or model.name, content, weights_dtype)
    fixed = None if buckets is None else check_buckets(buckets)
    manifest = dataclasses.replace(manifest, dtype=dtype, backend=backends[0], buckets=fixed)
    if adapters:
        manifest = dataclasses.replace(manifest, told=told_classes, adapted=adapted_layers(network))
    with _staged(out) as stage:
        write_atomically(stage / NETWORK_FILE, content)
        write_manifest(stage, manifest)
        for backend in backends:
            engine = load_engine(stage, backend=backend, threads=threads)
            manifest = with_proof(manifest, backend, prove(engine, eager, card, bounds))
        write_manifest(stage, manifest)
        manifest = read_manifest(stage)
        check_destination(out, card)  # another command may have put something there since
        _replace_directory(stage, out)
    return manifest


def verify_engine(
    folder: Path,
    model: Path,
    backend: str | None = None,
    *,
    bounds: Mapping[str, float] | None = None,
    buckets: Sequence[int] | None = None,
    threads: int = 0,
    record: bool = False,
) -> Proof:
    """Measure an engine against its checkpoint again. Raises CheckpointError when they do not match.

    backend: the manifest's when None. buckets, threads: as for `load_engine`. record: write it into the manifest.
    """
    manifest = read_manifest(folder)
    eager, card = load_denoiser(model)
    if manifest.checkpoint != card.weights:
        raise CheckpointError(
            f"the engine {folder} was exported from another checkpoint than {model} "
            f"(manifest says sha256 {manifest.checkpoint[:12]}..., card says {card.weights[:12]}...)"
        )
    if manifest.resolution != card.image_shape[1]:
        eager, card = at_resolution(eager, card, manifest.resolution)
    backend = backend or manifest.backend
    engine = load_engine(folder, backend=backend, threads=threads, buckets=buckets)
    proof = prove(engine, eager, card, bounds)
    if record:
        with changing(folder, manifest) as latest:
            write_manifest(folder, with_proof(latest, backend, proof))
    return proof


def prove(engine: Engine, eager: Denoiser, card: Card, bounds: Mapping[str, float] | None) -> Proof:
    """Measure an engine. Raises CheckpointError beyond bounds, which are those of its precision when None."""
    bounds = BOUNDS_OF[engine.facts["precision"]] if bounds is None else bounds
    gaps = measure(eager, engine.denoiser, card)
    refuse_beyond(gaps, bounds)
    return Proof(gaps, dict(bounds), engine.facts)


def with_proof(manifest: Manifest, backend: str, proof: Proof) -> Manifest:
    """The manifest with a proof: in its own fields for the backend it is served with, beside them for another."""
    fields = dataclasses.asdict(proof)
    if backend == manifest.backend:
        return dataclasses.replace(manifest, **fields)
    return dataclasses.replace(manifest, proofs=manifest.proofs | {backend: fields})


def check_destination(out: Path, card: Card) -> None:
    """Raise CheckpointError unless `out` is free, empty, or an engine directory and nothing else."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; give --out a directory")
    found = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if (kept := out / ADAPTERS_FOLDER).is_dir() and any(kept.iterdir()):
        raise CheckpointError(
            f"{out} holds adapters, which an export would remove with the rest. Give --out another directory, or "
            f"remove {kept} first"
        )
    found = {name for name in found if not (name.startswith(".") and name.endswith(".part"))}  # a killed writer's
    foreign = sorted(found - {ENGINE_FILE, NETWORK_FILE, PLANS_FOLDER, ADAPTERS_FOLDER})
    if foreign or (found and ENGINE_FILE not in found):
        raise CheckpointError(
            f"{out} exists and is not only an engine (it holds {(foreign or sorted(found))[0]}); "
            "it is left as it is. Give --out another directory"
        )
    neighbour = out.parent / WEIGHTS_FILE
    if neighbour.is_file() and file_sha256(neighbour) != card.weights:
        raise CheckpointError(
            f"{out.parent} holds another checkpoint than the one to export; an engine inside it would be "
            "refused. Give --out another directory"
        )


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed: onnxruntime-gpu, for one, takes the place of onnxruntime."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _manifest(card: Card, name: str, content: bytes, weights_dtype: str) -> Manifest:
    versions = {"fewstep": __version__} | installed(RECORDED_VERSIONS)
    channels, resolution, _ = card.image_shape
    return Manifest(
        name=name,
        role=card.role,
        checkpoint=card.weights,
        network_sha256=hashlib.sha256(content).hexdigest(),
        opset=OPSET,
        dtype="float32",
        weights_dtype=weights_dtype,
        channels=channels,
        resolution=resolution,
        extra=latent_shape(card)[0],
        classes=network_config(card).classes,
        class_names=card.class_names,
        sigma_data=card.sigma_data,
        levels=card.levels,
        buckets=None,
        noise_version=NOISE_VERSION,
        conditions=card.conditions,
        parity={},  # measured on the finished file
        bounds={},
        versions=versions,
    )


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A fresh directory beside `out`, gone after a failure, with the parents made for it."""
    made = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with scratch(out.parent, f".{out.name}.export.", mode=0o777) as stage:
            yield stage
    except BaseException:  # an interrupt must not leave anything either
        for parent in made:
            with contextlib.suppress(OSError):  # someone else has put something in it
                parent.rmdir()
        raise


def _replace_directory(stage: Path, out: Path) -> None:
    """Move `stage` to `out`. A reader finds the old engine, for an instant none, then the new one."""
    if not out.exists():
        stage.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    try:
        stage.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)
