"""Reads an engine directory and runs its network with the backend that was asked for. Numpy; torch only for some."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from export.backends.buckets import DEFAULT_BUCKETS, check_buckets
from export.backends.opened import Floats, Opened, Source, not_installed
from export.device_network import DeviceNetwork
from export.manifest import (
    BACKEND_OPENVINO,
    BACKEND_OPENVINO_F32,
    BACKEND_ORT_CPU,
    BACKEND_ORT_CUDA,
    BACKEND_TENSORRT,
    BACKEND_TENSORRT_RTX,
    BACKEND_TORCH,
    BACKEND_TORCH_COMPILE,
    BACKENDS,
    ENGINE_FILE,
    WITH_ADAPTERS,
    WITH_CONDITIONS,
    AdapterFiles,
    Manifest,
    adapter_files,
    read_manifest,
)
from fewstep.card import WEIGHTS_FILE, CheckpointError, file_sha256
from fewstep.precond import Denoiser


@dataclass(frozen=True)
class Engine:
    """An exported network that is ready to run. `load_engine` makes one."""

    manifest: Manifest
    backend: str
    opened: Opened

    def network(
        self, x: Floats, c_noise: Floats, onehot: Floats, *further: Floats | NDArray[np.int64] | None
    ) -> Floats:
        """F: x [B, C + extra, H, W] of unit variance, c_noise [B], onehot [B, columns] -> [B, C, H, W], all float32.

        further: a tensor [B, *shape] for each of the manifest's conditions, in their order. Or, of an engine with
        adapters, [B]: each row's number among the manifest's adapters from 1, or 0 for the backbone; absent: all 0.
        The extra channels, where the manifest counts any, hold an NCVSD student's latent (`fewstep.latent`).
        An unconditional network has no use for onehot [B, 0]. Calls from several threads are safe on a CPU, but share
        the same cores: one call at a time is the fast way. On a GPU the rows are copied there and back; whoever
        steps many slots uses `on_device`. Raises ValueError on another number of channels or of further inputs.
        """
        manifest = self.manifest
        if x.shape[1] != manifest.channels + manifest.extra:
            raise ValueError(
                f"the network of {manifest.name} takes {manifest.channels} channels of image and {manifest.extra} of "
                f"latent noise behind them, not {x.shape[1]} in all; fewstep.latent.with_latent binds the latent"
            )
        rows = [np.ascontiguousarray(array, dtype=np.float32) for array in (x, c_noise, onehot)]
        given = [each for each in further if each is not None]
        if not manifest.adapted:
            if len(given) != len(manifest.conditions):
                names = (
                    ", ".join(condition.name for condition in manifest.conditions) or "no adapters and no conditions"
                )
                raise ValueError(
                    f"the network of {manifest.name} takes {names}; {len(given)} further arrays were given"
                )
            return self.opened.network(*rows, *(np.ascontiguousarray(each, dtype=np.float32) for each in given))
        adapter = given[0] if given else None
        if adapter is None:
            adapter = np.zeros(len(x), np.int64)
        if len(adapter) and not 0 <= adapter.min() <= adapter.max() <= len(manifest.adapters):
            raise ValueError(f"{manifest.name} has {len(manifest.adapters)} adapters; a row's is from 0 to that")
        return self.opened.network(*rows, np.ascontiguousarray(adapter, dtype=np.int64))

    @property
    def denoiser(self) -> Denoiser:
        """D(x, sigma, labels) on numpy arrays: the preconditioning of fewstep.precond around `network`."""
        return self.adapted_denoiser(0)

    def adapted_denoiser(self, adapter: int) -> Denoiser:
        """`denoiser` with one adapter for all rows, by its number from 1; 0: the backbone's."""
        manifest, classes = self.manifest, self.manifest.classes
        if adapter:
            classes = manifest.adapters[adapter - 1].classes

        def network(x: Floats, c_noise: Floats, onehot: Floats, *conditions: Floats) -> Floats:
            wide = np.zeros((len(x), manifest.columns), np.float32)
            wide[:, : onehot.shape[1]] = onehot
            return self.network(x, c_noise, wide, *conditions, np.full(len(x), adapter) if manifest.adapted else None)

        return Denoiser(network, manifest.sigma_data, classes, manifest.conditions)

    @property
    def facts(self) -> dict[str, str]:
        """What really runs: backend, library and its version, device, precision, and what else the backend says."""
        return {"backend": self.backend, "device": self.device, **self.opened.facts}

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return self.opened.device

    @property
    def deferred(self) -> bool:
        """Whether another backend runs the network until `prepare` has ended."""
        return self.opened.prepare is not None

    def prepare(self) -> None:
        """Let the backend take over that was deferred; nothing where none was. Takes seconds: call it in a thread."""
        if self.opened.prepare is not None:
            self.opened.prepare()

    @property
    def on_device(self) -> DeviceNetwork | None:
        """The network's own buffers, for kernels that write its input in place. None: it speaks numpy only."""
        return self.opened.on_device


def load_engine(
    folder: str | Path,
    *,
    backend: str | None = None,
    threads: int = 0,
    buckets: Sequence[int] | None = None,
    adapters: AdapterFiles | None = None,
    compiled: Path | None = None,
    background: bool = False,
    deferred: bool = False,
) -> Engine:
    """The engine in a folder, checked against its manifest and, where one lies beside it, its checkpoint.

    backend: one of export.manifest.BACKENDS; None: the manifest's. threads: cores one network call may use; 0 lets
    the backend choose (one thread per physical core). buckets: batch sizes that a backend of fixed shapes prepares,
    None: the manifest's, or powers of two up to 64. Other batches are padded or split. adapters: those that were read
    before, whatever the folder holds by now; None: those of the folder. compiled: a folder where OpenVINO's compiled
    models are kept, which later calls read in place of compiling; it is made, and None: nothing is kept. background:
    while OpenVINO prepares a batch size, in a thread, its rows are padded to a larger size that is ready, if one is.
    deferred: until `Engine.prepare` has ended, ONNX Runtime runs the network in OpenVINO's place.
    Raises CheckpointError with a sentence when the folder is not a usable engine, or the backend cannot run it.
    """
    source = read_source(folder, adapters)
    manifest = source.manifest
    if backend is None and manifest.backend not in BACKENDS:
        raise CheckpointError(f"{source.folder / ENGINE_FILE} wants backend {manifest.backend}; {_known()}")
    backend = manifest.backend if backend is None else backend
    sizes = prepared_buckets(manifest, buckets)
    return Engine(manifest, backend, _open(source, backend, threads, sizes, compiled, background, deferred))


def prepared_buckets(manifest: Manifest, buckets: Sequence[int] | None) -> tuple[int, ...]:
    """The batch sizes that a backend of fixed shapes prepares, ascending: the caller's, the manifest's, the default."""
    return check_buckets(buckets if buckets is not None else manifest.buckets or DEFAULT_BUCKETS)


def read_source(folder: str | Path, adapters: AdapterFiles | None = None) -> Source:
    """The files of an engine directory, checked. Raises CheckpointError when they do not belong together.

    adapters: as for `load_engine`.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    adapters = adapters or adapter_files(folder, manifest.adapters)
    manifest = replace(manifest, adapters=adapters.entries)
    path = folder / manifest.network
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {manifest.network}: it is incomplete. {_export_again(folder)}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != manifest.network_sha256:
        raise CheckpointError(
            f"{path} is not the file its manifest describes (sha256 {digest[:12]}..., manifest says "
            f"{manifest.network_sha256[:12]}...): it is truncated or was changed. {_export_again(folder)}"
        )
    _check_checkpoint(folder, manifest)
    return Source(folder, manifest, content, adapters)


def _open(
    source: Source, backend: str, threads: int, buckets: tuple[int, ...], compiled: Path | None, background: bool,
    deferred: bool,
) -> Opened:  # fmt: skip
    """Imports a backend's module only when it is asked for: most of them load libraries of hundreds of megabytes."""
    if source.manifest.adapted and backend in BACKENDS and backend not in WITH_ADAPTERS:
        raise CheckpointError(
            f"the engine {source.folder} takes adapters by row, which backend {backend} does not run. Choose --backend "
            f"{' or '.join(WITH_ADAPTERS)}, or export without --adapters"
        )
    check_conditions(source.manifest, backend)
    if backend == BACKEND_ORT_CPU:
        from export.backends import onnxruntime_cpu

        return onnxruntime_cpu.open_network(source, backend, threads)
    if backend in (BACKEND_OPENVINO, BACKEND_OPENVINO_F32) and deferred:
        from export.backends import deferred as later

        return later.open_network(source, backend, threads, buckets, compiled)
    if backend in (BACKEND_OPENVINO, BACKEND_OPENVINO_F32):
        from export.backends import openvino

        return openvino.open_network(source, backend, threads, buckets, compiled, background)
    if backend in (BACKEND_TORCH, BACKEND_TORCH_COMPILE):
        _require_torch(backend)
        from export.backends import torch_network

        return torch_network.open_network(source, backend, threads, buckets)
    if backend == BACKEND_ORT_CUDA:
        _require_torch(backend)
        from export.backends import onnxruntime_cuda

        return onnxruntime_cuda.open_network(source, backend, buckets)
    if backend in (BACKEND_TENSORRT, BACKEND_TENSORRT_RTX):
        _require_torch(backend)
        from export.backends import tensorrt

        return tensorrt.open_network(source, backend, buckets)
    raise CheckpointError(f"there is no backend {backend!r}; {_known()}")


def check_conditions(manifest: Manifest, backend: str) -> None:
    """Raise CheckpointError where a backend does not run the network's conditions."""
    if manifest.conditions and backend in BACKENDS and backend not in WITH_CONDITIONS:
        taken = ", ".join(condition.name for condition in manifest.conditions)
        raise CheckpointError(
            f"the network of {manifest.name} takes {taken}, and backend {backend} runs none that takes more than "
            f"images, levels and classes. Choose --backend {', '.join(WITH_CONDITIONS[:-1])} or {WITH_CONDITIONS[-1]}"
        )


def _require_torch(backend: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise not_installed(backend, "Install PyTorch with: pip install -e '.[gpu]'")


def _known() -> str:
    return f"this version runs {', '.join(BACKENDS)}"


def _check_checkpoint(folder: Path, manifest: Manifest) -> None:
    """An engine that lies in a checkpoint's folder must have been exported from that checkpoint."""
    weights = folder.resolve().parent / WEIGHTS_FILE
    if weights.is_file() and file_sha256(weights) != manifest.checkpoint:
        raise CheckpointError(
            f"the engine {folder} was exported from another checkpoint than {weights} "
            f"(manifest says sha256 {manifest.checkpoint[:12]}...). {_export_again(folder)}"
        )


def _export_again(folder: Path) -> str:
    return f"Export it again with: fewstep export --model {folder.resolve().parent} --out {folder}"
