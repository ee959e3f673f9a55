"""Calibration: a student with a planted best level, and the command on a real folder."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.analytic import Gaussian, as_network
from fewstep.card import CARD_FILE, WEIGHTS_FILE, Card, CheckpointError, read_card
from fewstep.checkpoint import load_denoiser, save_checkpoint
from fewstep.metrics.extractors import teacher as teacher_space
from fewstep.metrics.extractors.teacher import TeacherSpace, features
from fewstep.network import UNet
from fewstep.noise_torch import noise_for
from fewstep.pixels import from_pixels, to_pixels
from fewstep.precond import Denoiser
from fewstep.samplers import sample_dpdm
from fewstep.unet_config import UNetConfig
from trainer import calibrate as command
from trainer.data.format import ImageSet, sigma_data
from trainer.levels import calibration
from trainer.levels.search import Trial, search_and_check
from trainer.levels.trajectories import Trajectories
from trainer.run.artifacts import describe


class Imperfect:
    """A perfect student of N(0, 0.5^2), but for a shift that is smallest at one level."""

    def __init__(self, best: float) -> None:
        self.best, self.calls = best, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return Gaussian(0.0, 0.5).student(x, sigma) + self.shift(float(sigma[0]))

    def shift(self, sigma: float) -> float:
        return 0.03 * math.log(sigma / self.best) ** 2


CARD = Card("student", {"resolution": 8, "channels": 1, "classes": 0}, 0.5, "", None)  # pyright: ignore[reportArgumentType]


def trajectories(student, seeds: range) -> Trajectories:
    denoiser = Denoiser(as_network(student, 0.5), 0.5)
    return Trajectories(denoiser, CARD, seeds, np.full(len(seeds), -1), "cpu")


def test_trajectories_are_the_samplers_images_at_fewer_calls():
    student, seeds = Imperfect(3.0), range(2**33, 2**33 + 5)
    images = trajectories(student, seeds)
    denoiser = Denoiser(as_network(Imperfect(3.0), 0.5), 0.5)
    for levels in [(80.0, 9.0, 1.0), (80.0, 9.0, 0.5), (80.0, 9.0), (80.0, 2.0, 1.0)]:
        direct = sample_dpdm(denoiser, noise_for(seeds, (1, 8, 8)), levels).images.numpy()
        assert np.array_equal(images.pixels(levels), to_pixels(direct))
    assert student.calls == 3 + 1 + 0 + 2


def test_calibration_finds_the_level_at_which_a_student_is_best():
    student = Imperfect(2.5)

    def objective(seeds: range):
        made = trajectories(student, seeds)

        def distance(levels) -> float:  # Fréchet distance to N(0, 0.5^2), all pixels being alike
            values = from_pixels(made.pixels(levels))
            return float(values.mean() ** 2 + (values.std() - 0.5) ** 2)

        return distance

    ranges = calibration.CalibrationConfig(images=50).ranges
    trial = search_and_check([objective(seeds) for seeds in ranges], (80.0, 9.0), None)
    # The second call shrinks the first one's shift by 0.5 / sqrt(0.25 + sigma^2) and adds its own.
    levels = np.geomspace(0.1, 40, 400)
    left = [student.shift(80.0) * 0.5 / math.sqrt(0.25 + sigma**2) + student.shift(sigma) for sigma in levels]
    assert trial.accepted and trial.found[1] == pytest.approx(levels[np.argmin(left)], rel=0.2)
    assert trial == search_and_check([objective(seeds) for seeds in ranges], (80.0, 9.0), None)


def test_seed_ranges_are_disjoint_and_far_from_everybody_elses():
    used = [range(0, 100_000), range(2**32, 2**32 + 100_000), range(2**36, 2**36 + 100_000)]
    for seed in range(3):
        used += calibration.CalibrationConfig(images=1000, seed=seed).ranges
    edges = sorted((seeds.start, seeds.stop) for seeds in used)
    assert all(a[1] <= b[0] for a, b in pairwise(edges)) and len(edges) == 3 + 3 * (1 + calibration.HELD_OUT)


@pytest.mark.parametrize("count", [37, 1000, 6000])
def test_classes_are_as_frequent_as_in_the_data_whatever_its_order(count):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [3000, 2000, 1000]))
    found = np.bincount(calibration.labels_in_proportion(labels, count), minlength=3)
    assert found.sum() == count and np.abs(found - count * np.array([3, 2, 1]) / 6).max() < 1


@pytest.fixture(scope="module")
def folders(fashion_2000: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny teacher and its student, both untrained."""
    root = tmp_path_factory.mktemp("models")
    config = UNetConfig(resolution=32, channels=1, classes=10, width=16, mult=(1,), blocks=1, patch=4)
    deviation, data = sigma_data(fashion_2000.images), fashion_2000.provenance()
    weights = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = UNet(config)
        for parameter in network.parameters():  # outputs of a fresh U-Net are zero
            torch.nn.init.normal_(parameter, std=0.1)
        weights.append(network.state_dict())
    names = fashion_2000.class_names
    blank = Card("teacher", describe(UNet(config)), deviation, "", data, names)
    teacher = save_checkpoint(root / "teacher", weights[0], blank)
    levels = {1: (80.0,), 2: (80.0, 3.5), 3: (80.0, 11.6, 0.8)}
    metrics = {"extractor": "fashion128", "distance": {"2": 1.0, "3": 2.0}}
    student = replace(
        blank, role="student", levels=levels, parent=teacher.weights, metrics=metrics, training={"recipe": "fashion"}
    )
    save_checkpoint(root / "student", weights[1], student)
    return root / "student", root / "teacher"


@pytest.fixture
def models(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Copies to write into. Few real images will do."""
    monkeypatch.setattr(teacher_space, "REFERENCE_IMAGES", 100)
    for source in folders:
        (tmp_path / source.name).mkdir()
        for name in (CARD_FILE, WEIGHTS_FILE):
            (tmp_path / source.name / name).write_bytes((source / name).read_bytes())
    return tmp_path / "student", tmp_path / "teacher"


def run(model: Path, teacher: Path, data: Path, *more: str) -> int:
    paths = ["--model", model, "--teacher", teacher, "--data", data]
    asked = [*map(str, paths), "--device", "cpu", "--precision", "bf16", "--images", "12"]
    return command.run([*asked, *more])


def test_command_leaves_a_valid_card_and_the_weights_alone(models, fashion_2000_zip, capsys):
    student, teacher = models
    before, weights = read_card(student), (student / WEIGHTS_FILE).read_bytes()
    assert run(student, teacher, fashion_2000_zip, "--steps", "3,2") == 0
    card = read_card(student)
    assert (student / WEIGHTS_FILE).read_bytes() == weights and card.weights == before.weights
    notes = card.training["calibration"]
    assert set(notes) == {"2", "3"} and card.levels[1] == (80.0,) and card.training["recipe"] == "fashion"
    for k in (2, 3):
        note = notes[str(k)]
        assert len(note["held_out_before"]) == calibration.HELD_OUT and note["after"] <= note["before"]
        assert card.levels[k] == (tuple(note["found"]) if note["accepted"] else before.levels[k])
        assert (str(k) in card.metrics["distance"]) == (not note["accepted"])
        assert len(card.levels[k]) == k and card.levels[k][0] == 80.0
    shown = capsys.readouterr().out
    assert ("fewstep export" in shown) == any(note["accepted"] for note in notes.values())


def test_the_same_command_finds_the_same_levels(models, folders, fashion_2000_zip, tmp_path):
    student, teacher = models
    assert run(student, teacher, fashion_2000_zip, "--steps", "2") == 0
    first = read_card(student)
    (student / CARD_FILE).write_bytes((folders[0] / CARD_FILE).read_bytes())
    assert run(student, teacher, fashion_2000_zip, "--steps", "2") == 0
    assert read_card(student) == first
    (student / CARD_FILE).write_bytes((folders[0] / CARD_FILE).read_bytes())
    assert run(student, teacher, fashion_2000_zip, "--steps", "2", "--seed", "1") == 0
    assert read_card(student).training["calibration"]["2"]["before"] != first.training["calibration"]["2"]["before"]


def test_accepted_levels_replace_the_cards_and_stale_metrics_go(models, fashion_2000_zip, monkeypatch, capsys):
    student, teacher = models
    trial = Trial((80.0, 3.5), (80.0, 2.0), True, 1.0, 0.5, (1.0,) * 4, (0.5,) * 4)
    monkeypatch.setattr(calibration, "search_and_check", lambda *_: trial)
    assert run(student, teacher, fashion_2000_zip, "--steps", "2") == 0
    card = read_card(student)
    assert card.levels[2] == (80.0, 2.0) and card.metrics["distance"] == {"3": 2.0}
    assert card.metrics["extractor"] == "fashion128"
    assert f"fewstep export --model {student}" in capsys.readouterr().out


def test_an_interrupt_keeps_what_was_found(models, fashion_2000_zip, monkeypatch, capsys):
    student, teacher = models
    trial = Trial((80.0, 3.5), (80.0, 2.0), True, 1.0, 0.5, (1.0,) * 4, (0.5,) * 4)

    def once(objectives, start, *_):
        if len(start) == 3:
            raise KeyboardInterrupt
        return trial

    monkeypatch.setattr(calibration, "search_and_check", once)
    assert run(student, teacher, fashion_2000_zip, "--steps", "2,3") == command.INTERRUPTED
    card = read_card(student)
    assert card.levels[2] == (80.0, 2.0) and card.levels[3] == (80.0, 11.6, 0.8)
    assert set(card.training["calibration"]) == {"2"} and "interrupted" in capsys.readouterr().err


def test_refusals_are_sentences_and_come_before_any_work(models, fashion_2000_zip):
    student, teacher = models
    with pytest.raises(CheckpointError, match="is a teacher; only a student"):
        run(teacher, teacher, fashion_2000_zip)
    with pytest.raises(CheckpointError, match="was not distilled from"):
        run(student, student, fashion_2000_zip)
    with pytest.raises(CheckpointError, match="no levels to search for 4 calls; choose --steps from 1, 2, 3"):
        run(student, teacher, fashion_2000_zip, "--steps", "1,2,4")
    for steps in ("two", "1,2,9"):
        with pytest.raises(SystemExit):
            run(student, teacher, fashion_2000_zip, "--steps", steps)


def test_real_images_are_closer_to_themselves_than_shifted_ones(folders, fashion_2000):
    teacher, _ = load_denoiser(folders[1])
    space = TeacherSpace.of(teacher, fashion_2000.images, fashion_2000.labels)
    some, labels, seeds = fashion_2000.images[::4], fashion_2000.labels[::4], range(500)
    near, far = (space.distance(images, labels, seeds) for images in (some, np.roll(some, 6, axis=1)))
    assert 0 <= near < 0.5 * far
    # An image is seen with the noise of its own seed, wherever it stands in the batch.
    look = partial(features, teacher, sigma=space.sigma)
    together = look(some[:130], labels[:130], seeds[:130])
    assert np.allclose(look(some[120:130], labels[120:130], seeds[120:130]), together[120:], atol=1e-5)
