"""The manifest: engine.json says what an engine directory holds, what it was made from, and how close it is.

Standard library only, because the server reads it before it loads anything heavy.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fewstep.card import WEIGHTS_FILE, CheckpointError, Levels, write_atomically
from fewstep.conditions import Conditions, check_bundle
from fewstep.described import check_counts, check_deviation, check_names, from_json

ENGINE_FORMAT = 1
ENGINE_FILE = "engine.json"
NETWORK_FILE = "network.onnx"
BACKEND_ORT_CPU = "onnxruntime-cpu"
BACKEND_ORT_CUDA = "onnxruntime-cuda"
BACKEND_OPENVINO = "openvino"
BACKEND_OPENVINO_F32 = "openvino-f32"
BACKEND_TORCH = "torch"
BACKEND_TORCH_COMPILE = "torch-compile"
BACKEND_TENSORRT = "tensorrt"
BACKEND_TENSORRT_RTX = "tensorrt-rtx"
BACKENDS = (
    BACKEND_ORT_CPU, BACKEND_OPENVINO, BACKEND_OPENVINO_F32, BACKEND_TORCH, BACKEND_TORCH_COMPILE,
    BACKEND_ORT_CUDA, BACKEND_TENSORRT, BACKEND_TENSORRT_RTX,
)  # fmt: skip
WITH_ADAPTERS = (BACKEND_ORT_CPU, BACKEND_TORCH)  # those that run engines with adapters by row
# Those that run networks with conditions.
WITH_CONDITIONS = (BACKEND_ORT_CPU, BACKEND_OPENVINO, BACKEND_OPENVINO_F32, BACKEND_TORCH, BACKEND_TORCH_COMPILE)
DTYPE_NAMES = ("float32", "float16", "bfloat16")  # what a network computes in, as torch names them
# Left out of the file while they are empty: a reader that has never heard of a field refuses it.
OPTIONAL = ("extra", "facts", "proofs", "told", "adapted", "adapters", "conditions")
ADAPTERS_FOLDER = "adapters"  # of an engine directory
BETWEEN = ":"  # an adapter is served as BACKBONE:NAME
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LastMap = Literal["adapter", "backbone"]


@dataclass(frozen=True, kw_only=True)
class AdapterEntry:
    """An adapter of an engine: a file in ADAPTERS_FOLDER, and what is served with it."""

    name: str
    sha256: str  # of the file
    levels: Levels  # step count -> sigmas
    classes: int  # those that it is told; 0: none
    class_names: tuple[str, ...]
    reward: str = ""  # what it was trained for
    # Whose call is the last one of an image. "backbone": the adapter is that of a posterior's chain, of which backbone
    # and adapter make every step with a density, and the last map without one is the same for both.
    last_map: LastMap = "adapter"
    parity: dict[str, dict[str, Any]]  # as of the manifest, against the backbone's checkpoint with this adapter
    bounds: dict[str, float]

    @property
    def file(self) -> str:
        """Below the engine directory."""
        return f"{ADAPTERS_FOLDER}/{self.name}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One engine. `parity` and `bounds` are in pixel units: 1.0 is 1/255 of the range from black to white."""

    name: str
    role: str  # "student" or "teacher"
    checkpoint: str  # sha256 of the model.safetensors the network was exported from
    network: str = NETWORK_FILE  # file beside engine.json
    network_sha256: str
    opset: int
    dtype: str  # what the network computes in: "float32", "float16" or "bfloat16"
    weights_dtype: str  # what its file stores: "float16" or "float32"
    backend: str = BACKEND_ORT_CPU
    channels: int
    resolution: int
    extra: int = 0  # channels the network takes behind the image: the latent of an NCVSD student
    classes: int  # 0: unconditional; the network then has no `onehot` input
    class_names: tuple[str, ...]
    sigma_data: float
    levels: Levels  # step count -> sigmas; empty for a teacher
    buckets: tuple[int, ...] | None  # batch sizes that backends of fixed shapes prepare; None: their default
    noise_version: int
    parity: dict[str, dict[str, Any]]  # "1", "2", ... or "solver" -> export.verify.Gap, field by field
    bounds: dict[str, float]  # {"mean": ..., "max": ...}: what parity was held against
    facts: dict[str, str] = field(default_factory=dict)  # what ran when parity was measured: Engine.facts
    versions: dict[str, str]  # torch, onnx, onnxruntime, ... at export
    proofs: dict[str, dict[str, Any]] = field(default_factory=dict)  # other backend -> export.build.Proof, by field
    told: int = 0  # columns of `onehot` of a network without classes, for adapters that are told y
    # Of a network that takes adapters by row: layer -> (out, in, taps) of its weight, in the order of the inputs.
    adapted: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    adapters: tuple[AdapterEntry, ...] = ()  # by their index in the network, from 1
    conditions: Conditions = ()  # what the network takes beside x, c_noise and onehot, in this order
    format: int = ENGINE_FORMAT

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.resolution, self.resolution

    @property
    def adapter(self) -> AdapterEntry | None:
        """The adapter that a model of `served_models` is; None: it is the backbone."""
        name = self.name.partition(BETWEEN)[2]
        return next((entry for entry in self.adapters if entry.name == name), None)

    @property
    def weighs(self) -> bool:
        """Whether a model of `served_models` can tell the log weight of its images."""
        return self.adapter is not None and self.adapter.last_map == "backbone"

    @property
    def columns(self) -> int:
        """Columns of the network's onehot: its classes, or the y that its adapters may be told."""
        return self.classes or self.told

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the network takes for each row, by name; one without columns has no input `onehot`."""
        names = (condition.name for condition in self.conditions)
        return ("x", "c_noise", "onehot", *names, *(("adapter",) if self.adapted else ()))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(extra, H, W); extra is 0 for a marginal student or a teacher."""
        return self.extra, self.resolution, self.resolution

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C + extra, H, W) of the network's x."""
        return self.channels + self.extra, self.resolution, self.resolution


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write engine.json, whole or not at all."""
    fields = asdict(manifest)
    for name in OPTIONAL:
        if not fields[name]:
            del fields[name]
    for entry in fields.get("adapters", ()):
        if entry["last_map"] == "adapter":
            del entry["last_map"]
    write_atomically(folder / ENGINE_FILE, (json.dumps(fields, indent=2) + "\n").encode())


@contextmanager
def changing(folder: Path, seen: Manifest | None = None) -> Iterator[Manifest]:
    """The manifest as it is now, to be changed and written: two commands wait for each other here, and neither loses
    what the other one has written. Raises CheckpointError when the network is not the one that was `seen` before."""
    read_manifest(folder)  # says what is missing there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        latest = read_manifest(folder)
        if seen and any(getattr(latest, name) != getattr(seen, name) for name in ("checkpoint", "network_sha256")):
            raise CheckpointError(
                f"the network of {folder} was exported again meanwhile. Nothing was written; start the command once "
                "more"
            )
        yield latest
    finally:
        os.close(descriptor)


def read_student(folder: Path, name: str) -> Manifest:
    """The manifest of an engine, under the name it is served by. Raises CheckpointError where it has no levels and no
    adapters that have."""
    manifest = replace(read_manifest(folder), name=name)
    if not manifest.levels and not manifest.adapters:
        raise CheckpointError(f"{folder} holds a {manifest.role}, which has no levels to serve; export a student")
    return manifest


def served_models(manifest: Manifest) -> dict[str, Manifest]:
    """What an engine serves, by the names that requests choose from: itself if it has levels, and each adapter as
    NAME:ADAPTER, whose manifest has the levels, classes and parity of that adapter, and as its checkpoint a hash of the
    backbone's, the adapter's and whose call is the last. Raises CheckpointError for an engine whose own name has a
    colon."""
    if BETWEEN in manifest.name:
        raise CheckpointError(f"a model cannot be called {manifest.name!r}: a colon stands before an adapter's name")
    served = {manifest.name: manifest} if manifest.levels else {}
    for entry in manifest.adapters:
        name = f"{manifest.name}{BETWEEN}{entry.name}"
        made_by = f"{manifest.checkpoint}{entry.sha256}{'' if entry.last_map == 'adapter' else entry.last_map}"
        checkpoint = hashlib.sha256(made_by.encode()).hexdigest()
        served[name] = replace(
            manifest, name=name, checkpoint=checkpoint, levels=entry.levels, classes=entry.classes,
            class_names=entry.class_names, parity=entry.parity, bounds=entry.bounds, proofs={},
        )  # fmt: skip
    return served


def all_served(engines: Iterable[Manifest]) -> dict[str, Manifest]:
    """What several engines serve, in their order."""
    return {name: manifest for engine in engines for name, manifest in served_models(engine).items()}


def engine_of(model: str) -> str:
    """The engine of a served model, by name."""
    return model.partition(BETWEEN)[0]


def plain_name(model: str) -> str:
    """A served model where a name may have no colon."""
    return model.replace(BETWEEN, ".adapter.")


class AdapterNumbers(NamedTuple):
    """What the network calls the adapter of an image's calls; 0: the backbone itself."""

    first: int  # of all but the last
    last: int


BACKBONE = AdapterNumbers(0, 0)


def adapter_numbers(manifest: Manifest) -> dict[str, AdapterNumbers]:
    """By the name of each model that the engine serves."""
    found = {manifest.name: BACKBONE}
    for number, entry in enumerate(manifest.adapters, start=1):
        last = 0 if entry.last_map == "backbone" else number
        found[f"{manifest.name}{BETWEEN}{entry.name}"] = AdapterNumbers(number, last)
    return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an engine directory. Raises CheckpointError when this version cannot read it."""
    path = folder / ENGINE_FILE
    if not path.is_file():
        if (folder / WEIGHTS_FILE).is_file():
            raise CheckpointError(
                f"{folder} is a checkpoint, not an engine. Name its engine, {folder / 'engine'}, or make it: "
                f"fewstep export --model {folder} --out {folder / 'engine'}"
            )
        raise CheckpointError(
            f"{folder} holds no {ENGINE_FILE}: it is not a fewstep engine. "
            f"Make one with: fewstep export --model MODEL --out ENGINE"
        )
    try:
        return manifest_from_json(path.read_text(), path)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not a readable fewstep engine manifest ({error})") from error


def manifest_from_json(text: str, where: Path) -> Manifest:
    """Raises CheckpointError when the text is not a manifest this version can read."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or "format" not in data:
            raise CheckpointError(f"{where} is not a fewstep engine manifest: it has no format number")
        if data["format"] != ENGINE_FORMAT:
            raise CheckpointError(
                f"{where} has engine format {data['format']}; this version reads format {ENGINE_FORMAT}. "
                f"Install the fewstep version that wrote it, or export the checkpoint again: fewstep export"
            )
        manifest = from_json(Manifest, data)
        _check(manifest)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not a readable fewstep engine manifest ({error})") from error
    for entry in manifest.adapters:
        if not ADAPTER_NAME.fullmatch(entry.name):
            raise CheckpointError(
                f"{where} names an adapter {entry.name!r}, which cannot be the name of a file and a model"
            )
    names = [entry.name for entry in manifest.adapters]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{where} names an adapter twice: {', '.join(names)}")
    if Path(manifest.network).name != manifest.network:
        raise CheckpointError(f"{where} names a network outside its own directory: {manifest.network}")
    return manifest


@dataclass(frozen=True)
class AdapterFiles:
    """The adapters of an engine, read once: files may be added, replaced and removed while they are served."""

    entries: tuple[AdapterEntry, ...]
    contents: tuple[bytes, ...]


def adapter_files(folder: Path, entries: tuple[AdapterEntry, ...]) -> AdapterFiles:
    """Raises CheckpointError for a file of an engine directory that its manifest does not describe."""
    return AdapterFiles(entries, tuple(_read(folder / entry.file, entry) for entry in entries))


def _read(path: Path, entry: AdapterEntry) -> bytes:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, and the manifest names it. Add the adapter again: fewstep export adapter"
        )
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise CheckpointError(
            f"{path} is not the file its manifest describes: it is truncated or was changed. Add it again: "
            "fewstep export adapter"
        )
    return content


def _check(manifest: Manifest) -> None:
    """Raise ValueError for values that no image can be made with."""
    sizes = (manifest.channels, manifest.resolution, *(size for sizes in manifest.adapted.values() for size in sizes))
    if min(sizes) < 1 or min(manifest.extra, manifest.classes, manifest.told) < 0:
        raise ValueError("it has a size below 1, or a count below 0")
    check_deviation(manifest.sigma_data)
    check_names(manifest.class_names, manifest.classes)
    check_counts(manifest.levels)
    check_bundle(manifest.conditions)
    for entry in manifest.adapters:
        if not 0 <= entry.classes <= manifest.columns:
            raise ValueError(f"its adapter {entry.name} is told {entry.classes} classes of {manifest.columns}")
        check_names(entry.class_names, entry.classes)
        check_counts(entry.levels)
