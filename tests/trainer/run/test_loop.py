"""The loop: which images a run sees, interruption, resume to identical weights, divergence."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.card import Card, CheckpointError
from fewstep.checkpoint import load_denoiser
from trainer.commands import train_student, train_teacher
from trainer.data.format import DataError, ImageSet, sigma_data, write_image_set
from trainer.data.loader import batches as endless
from trainer.data.matching import check_match
from trainer.methods.dpdm import Student
from trainer.methods.edm import Teacher
from trainer.options import Distillation, RunOptions
from trainer.recipes.by_name import UnknownRecipeError
from trainer.run.loop import DivergedError, LoopConfig


@pytest.fixture(scope="module")
def thumbnails(fashion_2000: ImageSet) -> ImageSet:
    """2,000 8x8 thumbnails: the digits recipe's size."""
    images = fashion_2000.images.reshape(-1, 8, 4, 8, 4, 1).mean(axis=(2, 4)).round().astype("uint8")
    return replace(fashion_2000, images=images)


def options(out: Path, **changes) -> RunOptions:
    return replace(
        RunOptions("digits", out, images=64, batch=8, precision="fp32", compile="off", device="cpu"), **changes
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def interrupt_after(updates: int, method: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGINT from inside the given update."""
    original, seen = method.update, []

    def update(self, *args):
        seen.append(1)
        if len(seen) == updates:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(method, "update", update)


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order(thumbnails):
    data = replace(thumbnails, images=thumbnails.images[:24], labels=np.arange(24, dtype=np.int32) % 10)
    batches = endless(data, LoopConfig(batch=8), 0, torch.device("cpu"))
    epochs = [torch.cat([next(batches)[0] for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert len(epoch.flatten(1).unique(dim=0)) == len(np.unique(data.images.reshape(24, -1), axis=0))
    assert not torch.equal(*epochs)


def test_batches_depend_on_images_seen_alone(thumbnails):
    config, cpu = LoopConfig(batch=8, seed=3), torch.device("cpu")
    straight = endless(thumbnails, config, 0, cpu)
    for _ in range(5):
        next(straight)
    resumed = next(endless(thumbnails, config, 40, cpu))
    assert all(torch.equal(a, b) for a, b in zip(next(straight), resumed, strict=True))


def test_batch_larger_than_the_data_is_filled_from_several_epochs(thumbnails):
    data = replace(thumbnails, images=thumbnails.images[:5], labels=thumbnails.labels[:5])
    images, labels = next(endless(data, LoopConfig(batch=16), 0, torch.device("cpu")))
    assert len(images) == len(labels) == 16


def test_interrupted_teacher_is_usable_and_resumes_to_identical_weights(thumbnails, tmp_path, monkeypatch, capfd):
    assert train_teacher(options(tmp_path / "straight"), thumbnails)
    with monkeypatch.context() as patch:
        interrupt_after(3, Teacher, patch)
        assert not train_teacher(options(tmp_path / "parts"), thumbnails)
    assert capfd.readouterr().err.count("stopping after the update under way") == 1
    _, card = load_denoiser(tmp_path / "parts")
    assert card.training["images"] == 24
    assert train_teacher(options(tmp_path / "parts", resume=True), thumbnails)
    assert weights(tmp_path / "parts") == weights(tmp_path / "straight")
    assert list((tmp_path / "parts" / "samples").glob("*.png"))


def test_interrupted_student_resumes_to_identical_weights(thumbnails, tmp_path, monkeypatch):
    train_teacher(options(tmp_path / "teacher", images=16), thumbnails)
    assert train_student(options(tmp_path / "straight"), thumbnails, Distillation(tmp_path / "teacher"))
    with monkeypatch.context() as patch:
        interrupt_after(5, Student, patch)
        assert not train_student(options(tmp_path / "parts"), thumbnails, Distillation(tmp_path / "teacher"))
    assert train_student(options(tmp_path / "parts", resume=True), thumbnails, Distillation(tmp_path / "teacher"))
    assert weights(tmp_path / "parts") == weights(tmp_path / "straight")
    _, card = load_denoiser(tmp_path / "parts")
    _, parent = load_denoiser(tmp_path / "teacher")
    assert card.parent == parent.weights and sorted(card.levels) == list(range(1, 9))


def test_snapshots_stay_and_the_run_does_not_notice(thumbnails, tmp_path):
    """20 is no multiple of the batch: each snapshot comes with the first batch that reaches one."""
    assert train_teacher(options(tmp_path / "plain"), thumbnails)
    assert train_teacher(options(tmp_path / "kept", snapshot_images=20), thumbnails)
    kept = sorted((tmp_path / "kept" / "snapshots").iterdir())
    assert [int(folder.name) for folder in kept] == [24, 40, 64]
    assert [load_denoiser(folder)[1].training["images"] for folder in kept] == [24, 40, 64]
    assert weights(kept[0]) != weights(kept[1])
    assert weights(kept[2]) == weights(tmp_path / "kept") == weights(tmp_path / "plain")


def test_resume_with_other_settings_is_refused_naming_them(thumbnails, tmp_path):
    train_teacher(options(tmp_path, images=16), thumbnails)
    with pytest.raises(CheckpointError, match="seed was 0, now 1"):
        train_teacher(options(tmp_path, images=16, seed=1, resume=True), thumbnails)


def test_a_finished_run_goes_on_under_a_new_limit(thumbnails, tmp_path):
    train_teacher(options(tmp_path, images=16), thumbnails)
    before = weights(tmp_path)
    assert train_teacher(options(tmp_path, images=32, resume=True), thumbnails)
    assert load_denoiser(tmp_path)[1].training["images"] == 32 and weights(tmp_path) != before


def test_a_run_is_not_overwritten_by_accident(thumbnails, tmp_path):
    train_teacher(options(tmp_path, images=16), thumbnails)
    before = weights(tmp_path)
    with pytest.raises(CheckpointError, match="--resume"):
        train_teacher(options(tmp_path, images=16), thumbnails)
    assert weights(tmp_path) == before


def test_nothing_to_resume_is_said_and_nothing_is_written(thumbnails, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train_teacher(options(tmp_path / "new", resume=True), thumbnails)
    assert not (tmp_path / "new" / "model.safetensors").exists()


def test_divergence_stops_the_run_and_keeps_the_last_checkpoint(thumbnails, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(2, Teacher, patch)
        train_teacher(options(tmp_path), thumbnails)
    before = weights(tmp_path)
    monkeypatch.setattr(Teacher, "update", lambda *_: {"loss": torch.tensor(float("nan"))})
    with pytest.raises(DivergedError, match="loss stopped being finite after 24 images"):
        train_teacher(options(tmp_path, resume=True, checkpoint_s=0.0), thumbnails)
    assert weights(tmp_path) == before


def test_budget_ends_a_run(thumbnails, tmp_path):
    assert train_teacher(options(tmp_path, images=None, budget_s=1.0), thumbnails)
    _, card = load_denoiser(tmp_path)
    assert card.training["images"] >= card.training["images_planned"] > 0


def test_student_refuses_a_teacher_of_other_images(thumbnails, fashion_2000, tmp_path):
    train_teacher(options(tmp_path / "teacher", images=16), thumbnails)
    with pytest.raises(DataError, match="8x8 images with 1 channels, fashion-2000 has 32x32"):
        train_student(options(tmp_path / "student"), fashion_2000, Distillation(tmp_path / "teacher"))
    brighter = replace(thumbnails, images=thumbnails.images // 4)
    with pytest.raises(DataError, match="pixel deviation"):
        train_student(options(tmp_path / "student"), brighter, Distillation(tmp_path / "teacher"))
    assert not (tmp_path / "student").exists()


def test_a_student_is_not_a_teacher(thumbnails, tmp_path):
    train_teacher(options(tmp_path / "teacher", images=16), thumbnails)
    train_student(options(tmp_path / "student", images=16), thumbnails, Distillation(tmp_path / "teacher"))
    with pytest.raises(CheckpointError, match="is a student"):
        train_student(options(tmp_path / "again"), thumbnails, Distillation(tmp_path / "student"))


def test_a_network_that_draws_is_not_a_teacher(thumbnails):
    network = {"resolution": 8, "channels": 1, "classes": 10, "extra": 1}
    card = Card("teacher", network, sigma_data(thumbnails.images), "", thumbnails.provenance(), thumbnails.class_names)
    with pytest.raises(CheckpointError, match="takes a latent beside the image"):
        check_match(card, thumbnails, Path("drawing"))
    check_match(replace(card, network={**network, "extra": 0}), thumbnails, Path("teacher"))


def test_unknown_recipe_lists_those_that_exist(thumbnails, tmp_path):
    with pytest.raises(UnknownRecipeError, match="fashion"):
        train_teacher(options(tmp_path, recipe="fashon"), thumbnails)


@pytest.fixture(scope="module")
def thumbnail_zip(thumbnails, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "thumbnails.zip"
    write_image_set(path, thumbnails)
    return path


def test_commands_train_publish_and_refuse_in_words(thumbnail_zip, tmp_path, monkeypatch, capsys):
    from trainer.__main__ import main

    def run(*arguments) -> int:
        monkeypatch.setattr("sys.argv", ["trainer", *map(str, arguments)])
        return main()

    common = ("--recipe", "digits", "--data", thumbnail_zip, "--images", 16, "--batch", 8, "--compile", "off")
    assert run("teacher", *common, "--out", tmp_path / "run") == 0
    assert run("publish", "--model", tmp_path / "run", "--out", tmp_path / "teacher") == 0
    assert len(weights(tmp_path / "teacher")) < 0.6 * len(weights(tmp_path / "run"))
    student = ("student", *common, "--teacher", tmp_path / "teacher", "--renoise", "tied")
    assert run(*student, "--out", tmp_path / "student") == 0
    assert load_denoiser(tmp_path / "student")[1].training["renoise"] == "tied"

    capsys.readouterr()
    assert run("teacher", "--recipe", "fashon", "--out", tmp_path / "x") == 2
    assert "choose from" in capsys.readouterr().err
    assert run("publish", "--model", tmp_path, "--out", tmp_path / "x") == 2
    assert "not a fewstep checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
