"""Fixtures for the trainer's tests: 8x8 images, a recipe that trains in a second, a teacher made with it."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.tiny import TINY_RECIPE, draw_little, run_options
from trainer import commands
from trainer.data.format import ImageSet


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
