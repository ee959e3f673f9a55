"""Tiny checkpoints and their engines. An export takes ten seconds: there is one per kind of network in a test run."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export.build import export_checkpoint
from export.engine import Engine
from fewstep.card import Card, Dataset
from fewstep.checkpoint import save_checkpoint
from fewstep.network import UNet
from fewstep.schedule import student_levels
from fewstep.unet_config import UNetConfig
from tests.shared import made_once

torch.set_num_threads(1)  # tiny operations on two busy cores stall one another

TINY = UNetConfig(resolution=8, channels=1, classes=10, width=8, mult=(1, 2), blocks=1)
CONFIGS: dict[str, UNetConfig] = {
    "patch": dataclasses.replace(TINY, resolution=16, patch=2),
    "unconditional": dataclasses.replace(TINY, classes=0, channels=3),
    "ncsnpp": dataclasses.replace(TINY, embedding="fourier", encoder="residual", resample=(1, 3, 3, 1), extra=1),
    "adm": dataclasses.replace(TINY, style="adm", attention=(8, 4), head_width=4, classes=20),
}
TEACHER = "unconditional"  # this one is exported as a teacher
HALF = "patch"  # this one has float16 weights, as the shipped models have
NCVSD = "ncsnpp"  # this one takes a latent


def make_checkpoint(folder: Path, config: UNetConfig, *, role: str = "student", half: bool = False) -> Path:
    """A checkpoint with random weights, also where a fresh network has zeros: parity must say something."""
    torch.manual_seed(0)
    weights = {}
    for name, tensor in UNet(config).state_dict().items():
        spread = 0.1 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
        weights[name] = tensor + spread * torch.randn_like(tensor)
        if half:
            weights[name] = weights[name].half()
    levels = {k: student_levels(k) for k in (1, 2, 4, 8)} if role == "student" else {}
    names = tuple(f"class {index}" for index in range(config.classes))
    dataset = Dataset(name="random", sha256="0" * 64, licence="MIT", images=0)
    card = Card(role, dataclasses.asdict(config), 0.5, "", dataset, names, levels)  # pyright: ignore[reportArgumentType]
    save_checkpoint(folder, weights, card)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind -> folder of its checkpoint, with the engine in `engine/`. Shared: tests must copy before they change it."""

    def get(kind: str) -> Path:
        def make(folder: Path) -> None:
            role = "teacher" if kind == TEACHER else "student"
            make_checkpoint(folder, CONFIGS[kind], role=role, half=kind == HALF)
            export_checkpoint(folder, folder / "engine", kind, threads=1)

        return made_once(tmp_path_factory, kind, make)

    return get


def example_rows(engine: Engine, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, c_noise, onehot of a batch for the network of an engine, all float32."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((batch, *engine.manifest.input_shape), dtype=np.float32)
    c_noise = random.uniform(-1.5, 1.1, batch).astype(np.float32)
    classes = engine.manifest.classes
    onehot = np.eye(max(classes, 1), dtype=np.float32)[np.arange(batch) % max(classes, 1), :classes]
    return x, c_noise, onehot


def assert_rows_independent(engine: Engine, batch: int) -> None:
    """At one batch size neither position nor neighbours change a bit of a row."""
    rows = example_rows(engine, batch)
    expected = engine.network(*rows)
    order = np.random.default_rng(1).permutation(batch)
    assert np.array_equal(engine.network(*(part[order] for part in rows)), expected[order])
    for slot in (0, 5):
        alone = [np.zeros_like(part) for part in rows]
        for padded, part in zip(alone, rows, strict=True):
            padded[slot] = part[3]
        assert np.array_equal(engine.network(*alone)[slot], expected[3])


@pytest.fixture
def model(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A private copy of the float16 student and its engine, free to be damaged."""
    return Path(shutil.copytree(checkpoint(HALF), tmp_path / "model"))
