"""teacher --init: a teacher goes on from another's weights, published and imported ones included."""

from dataclasses import replace

import pytest
import torch

from fewstep.card import CheckpointError, read_card
from fewstep.checkpoint import load_denoiser, save_checkpoint
from tests.trainer.tiny import lively, run_options
from trainer.commands import Distillation, train_student, train_teacher
from trainer.data.format import DataError
from trainer.publish import publish
from trainer.switches import SwitchError

pytestmark = pytest.mark.usefixtures("tiny_recipe")


def parameters(folder) -> dict[str, torch.Tensor]:
    return load_denoiser(folder)[0].network.state_dict()  # pyright: ignore[reportFunctionMemberAccess]


def test_it_begins_at_the_weights_it_is_given(thumbnails, tiny_teacher, tmp_path):
    """At a rate of almost nothing it stays there; the recipe's rate moves it; the average follows either."""
    before = parameters(tiny_teacher)
    assert train_teacher(run_options(tmp_path / "still"), thumbnails, tiny_teacher, lr=1e-9)
    assert train_teacher(run_options(tmp_path / "moved"), thumbnails, tiny_teacher)
    still, moved = parameters(tmp_path / "still"), parameters(tmp_path / "moved")
    for name, value in before.items():
        torch.testing.assert_close(still[name], value, rtol=0, atol=1e-6)
    assert any(not torch.equal(value, before[name]) for name, value in moved.items())


def test_the_network_is_the_checkpoints_not_the_recipes(thumbnails, tiny_teacher, tmp_path):
    narrow, card = lively(), read_card(tiny_teacher)
    wide = lively(replace(narrow.config, width=32))
    described = replace(card, network={**card.network, "width": 32})
    save_checkpoint(tmp_path / "wide", wide.state_dict(), described)
    assert train_teacher(run_options(tmp_path / "on", images=8), thumbnails, tmp_path / "wide")
    continued = read_card(tmp_path / "on")
    assert continued.network["width"] == 32 and continued.sigma_data == card.sigma_data
    assert continued.training["start"] == read_card(tmp_path / "wide").weights
    assert read_card(tiny_teacher).training["start"] is None


def test_a_published_teacher_goes_on_and_is_distilled(thumbnails, tiny_teacher, tmp_path):
    publish(tiny_teacher, tmp_path / "published")
    assert train_teacher(run_options(tmp_path / "on", images=16), thumbnails, tmp_path / "published")
    assert train_student(run_options(tmp_path / "student", images=16), thumbnails, Distillation(tmp_path / "on"))
    assert read_card(tmp_path / "student").parent == read_card(tmp_path / "on").weights


def test_it_resumes_only_from_where_it_began(thumbnails, tiny_teacher, tmp_path):
    assert train_teacher(run_options(tmp_path / "on", images=16), thumbnails, tiny_teacher)
    with pytest.raises(CheckpointError, match="start"):
        train_teacher(run_options(tmp_path / "on", images=32, resume=True), thumbnails)
    assert train_teacher(run_options(tmp_path / "on", images=32, resume=True), thumbnails, tiny_teacher)


def test_what_does_not_fit_is_refused_in_words(thumbnails, fashion_2000, tiny_teacher, tmp_path):
    train_student(run_options(tmp_path / "student", images=8), thumbnails, Distillation(tiny_teacher))
    with pytest.raises(CheckpointError, match="is a student; --init continues a teacher"):
        train_teacher(run_options(tmp_path / "x"), thumbnails, tmp_path / "student")
    with pytest.raises(DataError, match="makes 8x8 images"):
        train_teacher(run_options(tmp_path / "x"), fashion_2000, tiny_teacher)
    with pytest.raises(SwitchError, match="--lr"):
        train_teacher(run_options(tmp_path / "x"), thumbnails, tiny_teacher, lr=0.0)
    assert not (tmp_path / "x").exists()
