"""--lists-of: a student is trained at the level lists another one serves."""

from pathlib import Path

import pytest
import torch

from fewstep.card import CARD_FILE, Card, CheckpointError, Dataset, card_to_json, read_card
from tests.trainer.tiny import TINY_RECIPE, draws, run_options
from trainer.commands import train_student
from trainer.data.format import ImageSet
from trainer.levels.renoise import LevelLists, renoise_levels
from trainer.options import Distillation
from trainer.settings import StudentConfig, served_lists
from trainer.switches import SwitchError, apply_switches, with_lists

LEVELS = {k: (2.0, 0.5, 0.2, 0.1, 0.02, 0.01, 0.008, 0.005)[:k] for k in range(1, 9)}


def serving(folder: Path, levels: dict[int, tuple[float, ...]]) -> Path:
    """A folder with the card of a student that serves these lists."""
    folder.mkdir()
    card = Card(
        "student",
        {"channels": 1, "resolution": 8, "classes": 0},
        0.5,
        "",
        Dataset("drawn", "", "CC0-1.0", 1),
        levels=levels,
    )
    (folder / CARD_FILE).write_text(card_to_json(card))
    return folder


def test_without_lists_karras_spacing_is_trained():
    config = StudentConfig(steps=(1, 4), sigma_min=0.02, sigma_max=3.0)
    assert config.level_lists == dict(zip((1, 4), served_lists((1, 4), 0.02, 3.0), strict=True))
    assert with_lists(config, None) == config


def test_the_lists_of_a_student_are_those_it_serves_for_the_steps_that_are_trained(tmp_path):
    folder = serving(tmp_path / "student", LEVELS)
    config = with_lists(StudentConfig(steps=(1, 2, 8)), folder)
    assert config.level_lists == {k: LEVELS[k] for k in (1, 2, 8)} and config.sigma_max == 2.0


@pytest.mark.usefixtures("tiny_recipe")
def test_a_run_trains_and_serves_them(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    folder, out = serving(tmp_path / "student", LEVELS), tmp_path / "run"
    request = Distillation(tiny_teacher, lists=folder, switches={"simulate": 0.5, "simulate_from": 0.0})
    assert train_student(run_options(out), thumbnails, request)
    card = read_card(out)
    assert card.levels == LEVELS == read_card(folder).levels
    assert card.training["lists"] == [list(LEVELS[k]) for k in TINY_RECIPE.student.steps]


@pytest.mark.usefixtures("tiny_recipe")
def test_a_run_is_not_resumed_with_other_lists(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    one = serving(tmp_path / "one", LEVELS)
    other = serving(tmp_path / "other", LEVELS | {8: (2.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.008, 0.005)})
    assert train_student(run_options(tmp_path / "run", images=8), thumbnails, Distillation(tiny_teacher, lists=one))
    with pytest.raises(CheckpointError, match="trained with other settings: lists was"):
        again = run_options(tmp_path / "run", resume=True)
        train_student(again, thumbnails, Distillation(tiny_teacher, lists=other))


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ({k: LEVELS[k] for k in range(1, 7)}, "it serves no list of 7, 8 steps"),
        ({}, "it serves no list of 1, 2, 3, 4, 5, 6, 7, 8 steps"),
    ],
)
def test_lists_that_cannot_be_trained_are_refused_in_a_sentence(levels, sentence, tmp_path):
    with pytest.raises(SwitchError, match=sentence):
        with_lists(StudentConfig(), serving(tmp_path / "student", levels))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no card\.json"):
        with_lists(StudentConfig(), tmp_path)


def test_one_call_may_start_elsewhere_but_not_where_the_top_is_warmed_up(tmp_path):
    config = with_lists(StudentConfig(), serving(tmp_path / "student", LEVELS | {1: (2.7,)}))
    assert config.sigma_max == 2.7 and config.level_lists[1] == (2.7,) and config.level_lists[2] == LEVELS[2]
    drawn = LevelLists.of(list(config.level_lists.values()), 0.05).draw(400, 1.0, draws())
    assert sorted(set(drawn.sigma.tolist())) == pytest.approx([2.0, 2.7])
    with pytest.raises(SwitchError, match=r"--warm trains one top level, .* start at several, 2 to 2\.7"):
        apply_switches(config, {"warm": 0.1})


def test_lists_and_another_top_level_contradict_each_other(tmp_path):
    config = with_lists(StudentConfig(), serving(tmp_path / "student", LEVELS))
    with pytest.raises(SwitchError, match="--lists-of says which levels are trained"):
        apply_switches(config, {"sigma_max": 80.0})


@pytest.mark.usefixtures("tiny_recipe")
def test_consistency_distillation_has_no_lists(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    request = Distillation(tiny_teacher, "consistency", lists=serving(tmp_path / "student", LEVELS))
    with pytest.raises(SwitchError, match="--lists-of: consistency distillation is trained at every level"):
        train_student(run_options(tmp_path / "run"), thumbnails, request)


@pytest.mark.parametrize("rule", ["subinterval", "hybrid"])
def test_outputs_of_levels_below_the_floor_are_noised_to_the_floor(rule):
    """Below it the errors of the score networks would dominate."""
    drawn = LevelLists.of([LEVELS[8]], 0.05).draw(4000, 0.0, draws())
    renoised = renoise_levels(rule, drawn, 0.05, draws(1))
    assert torch.all(renoised[drawn.sigma < 0.05] == 0.05) and renoised.min() == 0.05
    assert torch.all(renoised[drawn.sigma >= 0.05] <= drawn.sigma[drawn.sigma >= 0.05])
