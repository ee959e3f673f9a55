"""A checkpoint as something that makes images: through its exported engine, or through PyTorch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from export.engine import load_engine
from export.manifest import BACKEND_OPENVINO_F32, BACKEND_ORT_CPU, ENGINE_FILE, Manifest, read_manifest
from fewstep.card import CheckpointError, Levels
from fewstep.latent import latent_shape, with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import to_pixels
from fewstep.precond import Array, Denoiser
from fewstep.samplers import BoundDenoiser, Noise, Sample

Backend = Literal["engine", "openvino", "torch", "torch-bf16"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


class Batch(NamedTuple):
    pixels: NDArray[np.uint8]  # [n, H, W, C]
    nfe: int  # network calls per image


@dataclass(frozen=True)
class Generator:
    """A network that is ready to be sampled."""

    checkpoint: str  # sha256 of its weights
    backend: Backend
    denoiser: Denoiser
    image_shape: tuple[int, int, int]  # (C, H, W)
    latent_shape: tuple[int, int, int]  # (extra, H, W); extra is 0 unless it is an NCVSD student
    class_names: tuple[str, ...]
    levels: Levels  # empty for a teacher
    to_array: Callable[[NDArray], Array]  # numpy -> what the denoiser takes
    to_numpy: Callable[[Array], NDArray]

    def labels(self, seeds: Sequence[int]) -> NDArray[np.int64] | None:
        """The class of every seed's image: classes in turn. None where there are none."""
        return np.array(seeds) % len(self.class_names) if self.class_names else None

    def sample(
        self, sampler: Callable[..., Sample], sigmas: Sequence[float], seeds: Sequence[int], size: int
    ) -> Iterator[Batch]:
        """Images of these seeds in batches of `size`. An image depends on its seed alone."""
        for first in range(0, len(seeds), size):
            part = seeds[first : first + size]
            noise = self._arrays(noise_for(part, self.image_shape))
            sample = sampler(self._bound(part, self.labels(part)), noise, sigmas)
            yield Batch(to_pixels(self.to_numpy(sample.images)), sample.nfe)

    def denoise(
        self, noisy: NDArray[np.float32], sigma: float, labels: NDArray[np.int64] | None, seeds: Sequence[int]
    ) -> NDArray[np.float32]:
        """One call: noisy [n, C, H, W] -> clean images, nominally in [-1, 1]. seeds: of the latent, if one is used."""
        level = np.full(len(noisy), sigma, np.float32)
        return self.to_numpy(self._bound(seeds, labels)(self.to_array(noisy), self.to_array(level)))

    def _bound(self, seeds: Sequence[int], labels: NDArray[np.int64] | None) -> BoundDenoiser:
        latent = self._arrays(latent_for(seeds, self.latent_shape))
        return with_latent(self.denoiser, latent, None if labels is None else self.to_array(labels))

    def _arrays(self, noise: Callable[[int], NDArray]) -> Noise:
        return lambda step: self.to_array(noise(step))


def load_generator(folder: Path, backend: Backend, threads: int = 0) -> Generator:
    """The generator of an engine's folder, or of a checkpoint's folder with or without an engine in it.

    An engine runs on the backend of its manifest ("engine"), or in OpenVINO's bfloat16.

    Raises CheckpointError when the folder does not hold what `backend` needs.
    """
    if backend in ("torch", "torch-bf16"):
        return _on_torch(folder, backend, threads)
    inner = folder if (folder / ENGINE_FILE).is_file() else folder / "engine"
    if not (inner / ENGINE_FILE).is_file():
        raise CheckpointError(
            f"{folder} holds no engine; make one with: fewstep export --model {folder} --out {inner}, "
            "or sample the checkpoint itself: --backend torch"
        )
    engine = load_engine(inner, backend=None if backend == "engine" else backend, threads=threads)
    manifest = engine.manifest
    return Generator(
        manifest.checkpoint, backend, engine.denoiser, manifest.image_shape, manifest.latent_shape,
        manifest.class_names, manifest.levels,
        to_array=lambda array: array, to_numpy=lambda array: array,
    )  # fmt: skip


def load_sampled(folder: Path, threads: int = 0) -> Generator:
    """The generator of a checkpoint's folder in float32: through its engine where that computes in float32 by itself,
    else through PyTorch.

    `backend` of the result says which. Raises CheckpointError when the folder holds no checkpoint.
    """
    inner = next((one for one in (folder, folder / "engine") if (one / ENGINE_FILE).is_file()), None)
    return load_generator(folder, "engine" if inner and in_float32(read_manifest(inner)) else "torch", threads)


def in_float32(manifest: Manifest) -> bool:
    """Whether an engine computes in float32 on the backend of its manifest; its weights may be stored in float16."""
    return manifest.dtype == "float32" and manifest.backend in (BACKEND_ORT_CPU, BACKEND_OPENVINO_F32)


def _on_torch(folder: Path, backend: Backend, threads: int) -> Generator:
    """The checkpoint, on a GPU where there is one: as it is, or compiled in bfloat16, a third of the time with AMX."""
    import torch

    from fewstep.checkpoint import load_denoiser
    from trainer.run.compute import Compute, default_device, move_to_device, runner

    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, as it does for the engines
    device = default_device()

    if threads:
        torch.set_num_threads(threads)
    # An engine's folder inside a checkpoint's stands for that checkpoint.
    denoiser, card = load_denoiser(folder.parent if (folder / ENGINE_FILE).is_file() else folder)
    module = cast(torch.nn.Module, denoiser.network).to(device)
    forward: Any = module
    if backend == "torch-bf16":
        forward = runner(move_to_device(module, device), Compute(device, "bf16", compile=True))

    def network(x: Array, c_noise: Array, onehot: Array) -> Array:
        with torch.inference_mode():
            return forward(x, c_noise, onehot)

    return Generator(
        card.weights, backend, replace(denoiser, network=network), card.image_shape, latent_shape(card),
        card.class_names, card.levels,
        to_array=lambda array: torch.from_numpy(array).to(device), to_numpy=lambda tensor: tensor.cpu().numpy(),
    )  # fmt: skip
