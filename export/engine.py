"""Reads an engine directory and runs its network with ONNX Runtime on the CPU. Numpy, no torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.manifest import BACKEND_ORT_CPU, ENGINE_FILE, Manifest, read_manifest
from fewstep.card import WEIGHTS_FILE, CheckpointError, file_sha256
from fewstep.precond import Denoiser

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """An exported network that is ready to run. `load_engine` makes one."""

    manifest: Manifest
    session: ort.InferenceSession

    def network(self, x: Floats, c_noise: Floats, onehot: Floats) -> Floats:
        """F: x [B, C + extra, H, W] of unit variance, c_noise [B], onehot [B, classes] -> [B, C, H, W], all float32.

        The extra channels, where the manifest counts any, hold a posterior student's latent (`fewstep.latent`).
        An unconditional network has no use for onehot [B, 0]. Calls from several threads are safe, but share
        the same cores: one call at a time is the fast way. Raises ValueError on another number of channels.
        """
        manifest = self.manifest
        if x.shape[1] != manifest.channels + manifest.extra:
            raise ValueError(
                f"the network of {manifest.name} takes {manifest.channels} channels of image and {manifest.extra} of "
                f"latent noise behind them, not {x.shape[1]} in all; fewstep.latent.with_latent binds the latent"
            )
        feed = {"x": x, "c_noise": c_noise}
        if manifest.classes:
            feed["onehot"] = onehot
        feed = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in feed.items()}
        return self.session.run(None, feed)[0]  # pyright: ignore[reportReturnType]

    @property
    def denoiser(self) -> Denoiser:
        """D(x, sigma, labels) on numpy arrays: the preconditioning of fewstep.precond around `network`."""
        return Denoiser(self.network, self.manifest.sigma_data, self.manifest.classes)


def load_engine(folder: str | Path, *, threads: int = 0) -> Engine:
    """The engine in a folder, checked against its manifest and, where one lies beside it, its checkpoint.

    threads: cores one network call may use; 0 lets ONNX Runtime choose (one thread per physical core).
    Raises CheckpointError with a sentence when the folder is not a usable engine.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.backend != BACKEND_ORT_CPU:
        raise CheckpointError(
            f"{folder / ENGINE_FILE} wants backend {manifest.backend}; this version runs {BACKEND_ORT_CPU}"
        )
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
    return Engine(manifest, open_session(content, path, threads))


def _check_checkpoint(folder: Path, manifest: Manifest) -> None:
    """An engine that lies in a checkpoint's folder must have been exported from that checkpoint."""
    weights = folder.resolve().parent / WEIGHTS_FILE
    if weights.is_file() and file_sha256(weights) != manifest.checkpoint:
        raise CheckpointError(
            f"the engine {folder} was exported from another checkpoint than {weights} "
            f"(manifest says sha256 {manifest.checkpoint[:12]}...). {_export_again(folder)}"
        )


def _export_again(folder: Path) -> str:
    return f"Export it again with: python -m export --model {folder.resolve().parent} --out {folder}"


def open_session(content: bytes, path: Path, threads: int) -> ort.InferenceSession:
    """A session over the bytes of an ONNX file; `path` is only named in errors."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL  # 1.4x over EXTENDED: NCHWc
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they come back as exceptions
    # A memory plan per batch size saves no time here, and costs 40 MB once batches of 32 have run.
    options.enable_mem_pattern = False
    # Spinning threads would keep the cores of an idle server busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise CheckpointError(f"ONNX Runtime {ort.__version__} cannot load {path}: {error}") from error
