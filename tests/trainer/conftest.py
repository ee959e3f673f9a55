"""Fixtures for the trainer's tests: 8x8 images, a recipe that trains in a second, a teacher made with it."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.network import UNet
from tests.shared import made_once
from tests.trainer.tiny import TINY, TINY_RECIPE, draw_little, draws, run_options
from trainer import commands
from trainer.data.format import ImageSet, sigma_data
from trainer.methods.edm import Teacher
from trainer.run.compute import Compute
from trainer.settings import TeacherConfig


@pytest.fixture(scope="session")
def thumbnails(fashion_2000: ImageSet) -> ImageSet:
    """2,000 8x8 thumbnails of Fashion-MNIST."""
    images = fashion_2000.images.reshape(-1, 8, 4, 8, 4, 1).mean(axis=(2, 4)).round().astype("uint8")
    return replace(fashion_2000, images=images)


@pytest.fixture(scope="module", autouse=True)
def small_sheets() -> Iterator[None]:
    """Sample sheets of three calls: whole ones take most of the time of runs that are this short."""
    with pytest.MonkeyPatch.context() as patch:
        draw_little(patch)
        yield


@pytest.fixture(autouse=True)
def imports_of_one_test() -> Iterator[None]:
    """A reward adds its folder to the places of modules for as long as its process runs. The next test, which may have
    a file of the same name, finds neither the folder nor the modules of it."""
    places, modules = list(sys.path), set(sys.modules)
    yield
    added = set(sys.path) - set(places)
    sys.path[:] = places
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and str(Path(file).parent) in added:
            del sys.modules[name]


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands train a tiny network, whichever recipe is named."""
    monkeypatch.setattr(commands, "recipe", lambda name: TINY_RECIPE)


@pytest.fixture(scope="session")
def tiny_teacher(thumbnails: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny teacher that has seen 16 thumbnails."""
    folder = tmp_path_factory.mktemp("tiny") / "teacher"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "recipe", lambda name: TINY_RECIPE)
        commands.train_teacher(run_options(folder, images=16, sheets=False), thumbnails)
    return folder


@pytest.fixture(scope="session")
def small_teacher(thumbnails: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> UNet:
    """400 updates: poor, but a diffusion model. Read-only."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        network = UNet(TINY)
        method = Teacher(network, sigma_data(thumbnails.images), TeacherConfig(), Compute())
        rng, order = draws(), torch.Generator().manual_seed(0)
        pixels = torch.from_numpy(thumbnails.images).permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = torch.from_numpy(thumbnails.labels).long()
        for i in range(400):
            index = torch.randint(len(pixels), (64,), generator=order)
            method.update(pixels[index], labels[index], i / 400, rng)
        torch.save(network.state_dict(), folder / "weights.pt")

    network = UNet(TINY)
    network.load_state_dict(torch.load(made_once(tmp_path_factory, "small teacher", make) / "weights.pt"))
    return network
