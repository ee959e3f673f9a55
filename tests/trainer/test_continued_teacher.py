"""teacher --init: a teacher goes on from another's weights, published and imported ones included."""

from dataclasses import replace

import pytest
import torch

from fewstep.card import CheckpointError, Dataset, read_card
from fewstep.checkpoint import load_denoiser, save_checkpoint
from fewstep.ranges import RangeError
from tests.trainer.tiny import lively, run_options
from trainer.commands import train_student, train_teacher
from trainer.data.format import DataError
from trainer.data.matching import check_images
from trainer.options import Distillation
from trainer.publish import publish

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
        torch.testing.assert_close(still[name], value, rtol=2e-3, atol=1e-6)  # averages are stored as float16
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
    with pytest.raises(RangeError, match="--lr"):
        train_teacher(run_options(tmp_path / "x"), thumbnails, tiny_teacher, lr=0.0)
    assert not (tmp_path / "x").exists()


def imported(folder, out, **training):
    """The teacher of `folder` as an importer leaves it: sigma_data 0.5, whatever its images were."""
    denoiser, card = load_denoiser(folder)
    unknown = Dataset("cifar10", "unknown", "unknown", 0)
    card = replace(card, sigma_data=0.5, dataset=unknown, training={"imported": {"file": "edm.pkl"}, **training})
    save_checkpoint(out, denoiser.network.state_dict(), card)  # pyright: ignore[reportFunctionMemberAccess]
    return out


@pytest.mark.parametrize("contrast", [0.4, 1.0])
def test_an_imported_teacher_accepts_its_own_images_whatever_their_deviation(
    thumbnails, tiny_teacher, tmp_path, contrast
):
    data = replace(thumbnails, images=(thumbnails.images * contrast).astype("uint8"))
    assert abs(data.sigma_data() / 0.5 - 1) > 0.1
    teacher = imported(tiny_teacher, tmp_path / "imported")
    assert train_student(run_options(tmp_path / "student", images=8), data, Distillation(teacher))
    student = read_card(tmp_path / "student")
    assert student.sigma_data == 0.5 and student.dataset.sigma_data == pytest.approx(data.sigma_data())
    check_images(student, data, "the student")
    assert train_teacher(run_options(tmp_path / "on", images=8), data, teacher)
    assert read_card(tmp_path / "on").sigma_data == 0.5
    assert train_student(run_options(tmp_path / "second", images=8), data, Distillation(tmp_path / "on"))


def test_a_home_made_teacher_of_another_contrast_is_refused_with_a_remedy_that_works(
    thumbnails, tiny_teacher, tmp_path
):
    darker = replace(thumbnails, images=thumbnails.images // 4)
    with pytest.raises(DataError, match=r"other images, or the same ones at another contrast.*teacher --init"):
        train_student(run_options(tmp_path / "x"), darker, Distillation(tiny_teacher))
    assert train_teacher(run_options(tmp_path / "on", images=8), darker, tiny_teacher)
    assert train_student(run_options(tmp_path / "student", images=8), darker, Distillation(tmp_path / "on"))
