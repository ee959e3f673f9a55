"""What goes into a backend, and what comes out of it. Numpy, no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from export.device_network import DeviceNetwork
from export.manifest import AdapterFiles, Manifest
from fewstep.card import CheckpointError

Floats = NDArray[np.float32]
# x, c_noise, onehot, conditions... -> output, as in Engine.network; with adapters, adapter [B] int64 is the last array
HostNetwork = Callable[..., Floats]


@dataclass(frozen=True)
class Source:
    """An engine directory whose files were checked against its manifest."""

    folder: Path
    manifest: Manifest
    content: bytes  # of the ONNX file
    adapters: AdapterFiles

    @property
    def path(self) -> Path:
        """Of the ONNX file; only named in errors."""
        return self.folder / self.manifest.network


@dataclass(frozen=True)
class Opened:
    """A network that is ready to run."""

    network: HostNetwork
    facts: Mapping[str, str]  # what really runs: library, device, precision, ...
    device: Literal["cpu", "cuda"] = "cpu"
    on_device: DeviceNetwork | None = None
    prepare: Callable[[], None] | None = None  # of a backend that is prepared beside another (export.backends.deferred)


def require_float32(source: Source, backend: str) -> None:
    """Raise CheckpointError unless the engine computes in float32, which is all that `backend` reads."""
    dtype = source.manifest.dtype
    if dtype != "float32":
        raise CheckpointError(
            f"the engine {source.folder} computes in {dtype}, and backend {backend} reads float32 engines only. "
            "Choose --backend torch, onnxruntime-cuda or tensorrt, or export again with --dtype float32"
        )


def not_installed(backend: str, remedy: str) -> CheckpointError:
    """The error for a backend whose library cannot be imported."""
    return CheckpointError(f"backend {backend} is not installed. {remedy}, or choose another --backend")


def library(package: str) -> str:
    """ "name version" of an installed package."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
