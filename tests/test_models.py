"""What ships with the checkout is what its cards say, and does what the README says."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from export.engine import load_engine
from fewstep.card import distilled_from
from fewstep.checkpoint import load_denoiser
from fewstep.metrics.extractors.fashion128 import load_extractor
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.noise import noise_for
from fewstep.pixels import from_pixels, to_pixels
from fewstep.samplers import sample_dpdm

MODELS = Path(__file__).resolve().parent.parent / "models"
FASHION, EARTH, EARTH_X4 = MODELS / "fashion", MODELS / "earth", MODELS / "earth-x4"


@pytest.fixture(scope="module")
def student():
    return load_engine(FASHION / "engine", threads=1)


def pixels(engine, levels, count) -> np.ndarray:
    denoiser = functools.partial(engine.denoiser, labels=np.arange(count) % 10)
    return to_pixels(sample_dpdm(denoiser, noise_for(range(count), (1, 32, 32)), levels).images)


@pytest.mark.parametrize(("model", "images"), [(FASHION, 60_000), (EARTH, 36_000)], ids=["fashion", "earth"])
def test_student_teacher_and_engines_name_each_other(model: Path, images: int):
    _, student = load_denoiser(model)
    _, teacher = load_denoiser(model / "teacher")
    assert distilled_from(student, teacher)
    assert student.dataset.sha256 == teacher.dataset.sha256 and student.dataset.images == images
    manifest = load_engine(model / "engine").manifest
    assert (manifest.checkpoint, manifest.levels, manifest.name) == (student.weights, student.levels, model.name)
    assert load_engine(model / "teacher" / "engine").manifest.checkpoint == teacher.weights
    assert sorted(student.levels) == list(range(1, 9))
    served = [model / "model.safetensors", *(model / "engine").iterdir()]
    assert sum(file.stat().st_size for file in served) < 20e6


def test_an_ocean_is_blue_and_snow_is_not():
    """The mean colours of classes of `earth`, with the calls that a request makes unless it says how many."""
    engine, labels = load_engine(EARTH / "engine", threads=1), np.arange(12) % 6
    levels = engine.manifest.levels[4]
    noise = noise_for(range(12), (3, 64, 64))
    made = to_pixels(sample_dpdm(functools.partial(engine.denoiser, labels=labels), noise, levels).images)
    ocean, snow = (made[labels == engine.manifest.class_names.index(name)] for name in ("ocean", "snow and ice"))
    red, _, blue = ocean.mean((0, 1, 2))
    assert blue > 2 * red and snow.mean() > ocean.mean() + 40


def test_the_enlarging_student_is_of_its_teacher_and_its_engine_takes_images_of_earth():
    _, student = load_denoiser(EARTH_X4)
    _, teacher = load_denoiser(EARTH_X4 / "teacher")
    assert distilled_from(student, teacher)
    assert student.dataset.sha256 == teacher.dataset.sha256 and student.dataset.images == 36_000
    manifest = load_engine(EARTH_X4 / "engine").manifest
    assert (manifest.checkpoint, manifest.levels, manifest.name) == (student.weights, student.levels, "earth-x4")
    assert manifest.image_shape == (3, 256, 256) and manifest.conditions[0].shape == (3, 64, 64)
    served = [EARTH_X4 / "model.safetensors", *(EARTH_X4 / "engine").iterdir()]
    assert sum(file.stat().st_size for file in served) < 20e6


def test_an_enlarged_image_is_the_given_one_with_more_detail():
    """An image of `earth`, and it enlarged by one call."""
    earth, enlarging = (load_engine(model / "engine", threads=1) for model in (EARTH, EARTH_X4))
    highlands = np.array([earth.manifest.class_names.index("highlands")])
    denoiser = functools.partial(earth.denoiser, labels=highlands)
    small = to_pixels(sample_dpdm(denoiser, noise_for([7], (3, 64, 64)), earth.manifest.levels[3]).images)
    given = enlarging.denoiser.given(low=from_pixels(small))
    large = to_pixels(sample_dpdm(given, noise_for([7], (3, 256, 256)), enlarging.manifest.levels[1]).images)
    squares = large[0].reshape(64, 4, 64, 4, 3).astype(float)
    assert np.abs(squares.mean(axis=(1, 3)) - small[0]).mean() < 1
    assert 2 < squares.std(axis=(1, 3)).mean() < 40


def test_rivals_are_students_of_the_same_teacher_and_data():
    _, teacher = load_denoiser(FASHION / "teacher")
    cards = {folder.name: load_denoiser(folder)[1] for folder in sorted((FASHION / "rivals").iterdir())}
    assert {name: card.training["method"] for name, card in cards.items()} == {
        name: name for name in ("consistency", "diff-instruct", "dmd2", "tied")
    }
    assert all(distilled_from(card, teacher) and card.dataset == teacher.dataset for card in cards.values())


def test_shipped_networks_carry_no_file_paths_of_the_machine_that_made_them():
    networks = sorted(MODELS.rglob("*.onnx"))
    assert len(networks) == 7
    assert [path for path in networks if b".py" in path.read_bytes()] == []


def test_engine_equals_its_checkpoint(student):
    denoiser, _ = load_denoiser(FASHION)
    x = noise_for([0, 1], (1, 32, 32))(0) * 5
    sigma, labels = np.full(2, 5, np.float32), np.array([9, 3])
    eager = denoiser(torch.from_numpy(x), torch.from_numpy(sigma), torch.from_numpy(labels)).numpy()
    assert np.abs(student.denoiser(x, sigma, labels) - eager).max() < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_classifier_sees_the_class_that_was_asked_for(student, steps):
    _, predicted = load_extractor(threads=1)(pixels(student, student.manifest.levels[steps], 50))
    assert (predicted == np.arange(50) % 10).mean() > 0.7


def test_distillation_is_what_makes_four_steps_enough(student):
    extractor, levels = load_extractor(threads=1), student.manifest.levels[4]
    teacher = load_engine(FASHION / "teacher" / "engine", threads=1)
    ours, theirs = (
        frechet_distance(Moments.of(extractor(pixels(engine, levels, 100))[0]), extractor.reference)
        for engine in (student, teacher)
    )
    assert ours < 0.5 * theirs
