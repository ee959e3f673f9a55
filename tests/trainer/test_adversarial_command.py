"""trainer student --method adversarial: its folders, its switches, and what it refuses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.card import CheckpointError, read_card
from fewstep.command_line import parse
from fewstep.ranges import RangeError
from tests.trainer.tiny import TINY_RECIPE, run_options
from trainer.classify import train_classifier
from trainer.commands import train_student, train_teacher
from trainer.critics.classifier import classifier_hash
from trainer.data.format import ImageSet
from trainer.data.named import load_recipe_dataset
from trainer.options import Distillation, StudentCommand
from trainer.recipes.by_name import RECIPES
from trainer.settings import AdversarialConfig
from trainer.switches import SwitchError, adversarial


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[tuple[ImageSet, dict[str, Path]]]:
    """Digits, and the folders of a teacher, a student of it and a classifier."""
    root = tmp_path_factory.mktemp("adversarial")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(RECIPES, "digits", TINY_RECIPE)
    data = load_recipe_dataset("digits", root / "data")
    folders = {name: root / name for name in ("teacher", "student", "classifier")}
    train_teacher(run_options(folders["teacher"]), data)
    train_student(run_options(folders["student"]), data, Distillation(folders["teacher"]))
    train_classifier(run_options(folders["classifier"]), data)
    yield data, folders
    monkeypatch.undo()


def request(folders: dict[str, Path], **changes) -> Distillation:
    whole = Distillation(folders["teacher"], "adversarial", start=folders["student"], critics=(folders["classifier"],))
    return replace(whole, **changes)


def test_the_command_continues_a_student_and_names_its_critics(trained, tmp_path):
    data, folders = trained
    assert train_student(run_options(tmp_path), data, request(folders))
    card, start = read_card(tmp_path), read_card(folders["student"])
    assert card.levels == start.levels and card.parent == start.parent and card.weights != start.weights
    assert card.training["method"] == "adversarial" and card.training["start"] == start.weights
    assert card.training["critics"] == [classifier_hash(folders["classifier"])]


@pytest.mark.parametrize(
    ("levels", "steps", "message"),
    [
        (
            {2: (2.5, 0.4)},
            "first",
            "--trained-steps first needs a list of one call; the shortest",
        ),
        ({1: (2.5,)}, "rest", "--trained-steps rest anchors one top level and needs lists of several calls"),
        ({1: (2.5,), 2: (5.0, 0.4)}, "rest", "--trained-steps rest anchors one top level"),
    ],
)
def test_steps_that_cannot_be_trained_are_refused(trained, levels, steps, message):
    start = replace(read_card(trained[1]["student"]), levels=levels)
    with pytest.raises(SwitchError, match=message):
        adversarial(AdversarialConfig(), {"trained_steps": steps}, start, 0.03)


def test_its_switches_reach_the_method_and_the_card(trained, tmp_path):
    line = "--recipe digits --teacher t --out o --trained-steps first --clip"
    switches = parse(StudentCommand, line.split(), "student").switches
    assert switches == {"trained_steps": "first", "clip": True}
    data, folders = trained
    assert train_student(run_options(tmp_path), data, request(folders, switches=switches))
    training = read_card(tmp_path).training
    assert training["trained_steps"] == "first" and training["clip"] is True


def test_what_is_missing_or_foreign_is_said_before_the_first_step(trained, tmp_path):
    data, folders = trained
    run = lambda wanted: train_student(run_options(tmp_path), data, wanted)  # noqa: E731
    with pytest.raises(SwitchError, match="add --init and --critic"):
        run(request(folders, critics=()))
    with pytest.raises(SwitchError, match="add --init and --critic"):
        run(request(folders, start=None))
    for switches, flag in (({"trained_steps": "first"}, "--trained-steps"), ({"clip": True}, "--clip")):
        with pytest.raises(SwitchError, match=f"{flag} belongs to --method adversarial"):
            run(request(folders, method="dpdm", critics=(), start=None, switches=switches))
    with pytest.raises(SwitchError, match="--critic belongs to"):
        run(request(folders, method="dpdm"))
    with pytest.raises(SwitchError, match="--renoise"):
        run(request(folders, switches={"renoise": "tied"}))
    with pytest.raises(RangeError, match=r"--imitation-share must be a number from 0 to 0\.999, not 1"):
        run(request(folders, switches={"imitation_share": 1.0}))
    with pytest.raises(RangeError, match="--lr must be a number above 0"):
        run(request(folders, switches={"lr": 0.0}))
    with pytest.raises(CheckpointError, match="fewstep trainer classifier"):
        run(request(folders, critics=(folders["teacher"],)))
