"""What engine_speed.py and row_independence.py run: every backend that this machine has, on one checkpoint."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import ROOT
from export.backends import torch_network
from export.backends.onnxruntime_cpu import open_session
from export.build import export_checkpoint
from export.engine import Engine, load_engine, prepared_buckets, read_source
from export.manifest import BACKEND_ORT_CPU, BACKEND_TORCH, BACKEND_TORCH_COMPILE, BACKENDS
from fewstep.card import Card, CheckpointError, Dataset
from fewstep.checkpoint import NetworkModule, load_denoiser, save_checkpoint
from fewstep.latent import latent_shape
from fewstep.network import UNet
from fewstep.schedule import student_levels
from fewstep.unet_config import UNetConfig
from trainer.recipes.photos import PHOTOS_64

FASHION, COLOUR = "fashion", "colour"
# Recipes' networks in colour, with random weights: time does not depend on them. At 32 pixels that of the shipped
# student; at 256 that of 64 pixels with a patch four times as large.
_PHOTOS = dataclasses.replace(PHOTOS_64.network, channels=3, classes=10)
RANDOM = {
    COLOUR: UNetConfig(resolution=32, channels=3, classes=10, width=48, mult=(1, 2), blocks=2, patch=2),
    "64px": _PHOTOS,
    "256px": dataclasses.replace(_PHOTOS, resolution=256, patch=8),
}
EAGER, EAGER_LAST = "eager", "eager channels_last"  # what everybody else is compared with
ON_DEMAND = (BACKEND_TORCH_COMPILE,)  # compiles for minutes: only when it is asked for by name


class Rows(NamedTuple):
    x: NDArray[np.float32]
    c_noise: NDArray[np.float32]
    onehot: NDArray[np.float32]


class Variant(NamedTuple):
    """One way to run F."""

    name: str
    precision: str
    call: Callable[[int], object]  # runs a batch of the size, and returns when it is done
    facts: dict[str, str]


@contextmanager
def checkpoint_of(network: str) -> Iterator[Path]:
    """The folder of a checkpoint with its engine in `engine`: the shipped student, or one of RANDOM."""
    if network == FASHION:
        yield ROOT / "models" / "fashion"
        return
    with tempfile.TemporaryDirectory() as name:
        yield make_random(network, Path(name) / network)


def make_random(network: str, folder: Path) -> Path:
    """A checkpoint of random weights with its engine in `engine`, one to eight steps. network: a key of RANDOM."""
    config = RANDOM[network]
    torch.manual_seed(0)
    weights = {key: tensor.half() for key, tensor in UNet(config).state_dict().items()}
    card = Card(
        "student", dataclasses.asdict(config), 0.5, "", Dataset("random", "0" * 64, "none", 0),
        tuple(map(str, range(config.classes))), {steps: student_levels(steps) for steps in range(1, 9)},
    )  # fmt: skip
    save_checkpoint(folder, weights, card)
    export_checkpoint(folder, folder / "engine")
    return folder


def example_rows(engine_shape: tuple[int, int, int], classes: int, batch: int) -> Rows:
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, *engine_shape), dtype=np.float32)
    c_noise = random.uniform(-0.75, 1.1, batch).astype(np.float32)
    return Rows(x, c_noise, np.eye(max(classes, 1), dtype=np.float32)[np.arange(batch) % max(classes, 1), :classes])


def open_engines(folder: Path, names: Sequence[str], threads: int, buckets: Sequence[int]) -> dict[str, Engine]:
    """The engines of the backends that run here, half precision on a GPU included; what does not is printed.

    names: backends; empty: all that need no minutes of compilation.
    """
    engines = {}
    for backend in names or [name for name in BACKENDS if name not in ON_DEMAND]:
        try:
            engines[backend] = load_engine(folder / "engine", backend=backend, threads=threads, buckets=buckets)
            if backend == BACKEND_TORCH and torch.cuda.is_available():
                engines[f"{backend} bf16"] = _in_half(folder, buckets)
        except CheckpointError as error:
            print(f"without {backend}: {error}")
    return engines


def _in_half(folder: Path, buckets: Sequence[int]) -> Engine:
    """The engine that `python -m export --dtype bfloat16` would make, without writing it."""
    source = read_source(folder / "engine")
    half = dataclasses.replace(source, manifest=dataclasses.replace(source.manifest, dtype="bfloat16"))
    opened = torch_network.open_network(half, BACKEND_TORCH, 0, prepared_buckets(half.manifest, buckets))
    return Engine(half.manifest, BACKEND_TORCH, opened)


def engine_variant(name: str, engine: Engine, largest: int) -> Variant:
    """On a GPU the call is that of a server: inputs are written in place, and nothing is copied."""
    rows = example_rows(engine.manifest.input_shape, engine.manifest.classes, largest)
    network = engine.on_device
    if engine.device == "cuda" and network is not None:
        for buffer, part in zip((network.x, network.c_noise, network.onehot), rows, strict=True):
            buffer[: len(part)].copy_(torch.from_numpy(part))

        def on_device(batch: int) -> None:
            network.run(batch)
            torch.cuda.synchronize()

        return Variant(name, engine.facts["precision"], on_device, dict(engine.facts))
    return Variant(
        name, engine.facts["precision"], lambda batch: engine.network(*(part[:batch] for part in rows)),
        dict(engine.facts),
    )  # fmt: skip


def eager_variants(folder: Path, largest: int) -> list[Variant]:
    """PyTorch without an engine, in its default layout (contiguous, NCHW) and in channels_last (NHWC)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for name, layout in ((EAGER, torch.contiguous_format), (EAGER_LAST, torch.channels_last)):
        denoiser, card = load_denoiser(folder, device)
        network = cast(NetworkModule, denoiser.network).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        channels, side, _ = card.image_shape
        rows = example_rows((channels + latent_shape(card)[0], side, side), denoiser.classes, largest)
        tensors = [torch.from_numpy(part).to(device) for part in rows]

        def call(batch: int, network=network, tensors=tensors) -> None:
            with torch.inference_mode():
                network(*(tensor[:batch] for tensor in tensors))
            if device == "cuda":
                torch.cuda.synchronize()

        facts = {"library": f"torch {torch.__version__}", "device": device, "layout": layout_of(network)}
        found.append(Variant(name, "float32", call, facts))
    return found


def layout_of(network: torch.nn.Module) -> str:
    """ "channels_last" where that is how the weights of every convolution that can tell lie in memory."""
    kernels = [part for part in network.parameters() if part.ndim == 4 and part.shape[1] > 1 and part.shape[-1] > 1]
    last = [part.is_contiguous(memory_format=torch.channels_last) for part in kernels]
    return "channels_last" if all(last) else "mixed" if any(last) else "contiguous"


def spinning_variant(folder: Path, threads: int, largest: int) -> Variant:
    """ONNX Runtime with threads that spin while they wait, until the call returns."""
    source = read_source(folder / "engine")
    session = open_session(source.content, source.path, threads, spinning=True)
    rows = example_rows(source.manifest.input_shape, source.manifest.classes, largest)
    names = [value.name for value in session.get_inputs()]

    def call(batch: int) -> object:
        return session.run(None, {name: getattr(rows, name)[:batch] for name in names})

    return Variant(f"{BACKEND_ORT_CPU}, spinning", "float32", call, {})
