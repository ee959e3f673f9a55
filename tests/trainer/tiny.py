"""What the tests of the student's variants share: a generator, networks in which every weight matters, short runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.network import UNet
from fewstep.unet_config import UNetConfig
from trainer.options import RunOptions
from trainer.recipes.recipe import Recipe
from trainer.run import artifacts
from trainer.run.draws import Draws
from trainer.settings import StudentConfig

TINY = UNetConfig(resolution=8, channels=1, classes=10, width=16, mult=(1,), blocks=1)


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively(config: UNetConfig = TINY, seed: int = 0, std: float = 0.15) -> UNet:
    """A network with normal weights: as initialised, its output is 1e-5 of its input and tells nothing."""
    network, rng = UNet(config).eval(), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=rng)
    return network


def copied(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers, as they are now."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


TINY_RECIPE = Recipe(TINY, student=StudentConfig(warm_pairs=12))


def draw_little(patch: pytest.MonkeyPatch) -> None:
    """Sample sheets of three network calls; a student's has 15 otherwise, and a teacher's 95."""
    patch.setattr(artifacts, "TEACHER_LEVELS", 2)
    patch.setattr(artifacts, "TEACHER_ROWS", 1)
    patch.setattr(artifacts, "STUDENT_STEPS", (1, 2))


def run_options(out: Path, **changes) -> RunOptions:
    """Eight updates of eight images on the CPU."""
    options = RunOptions("digits", out, images=64, batch=8, precision="fp32", compile="off", device="cpu")
    return replace(options, **changes)
