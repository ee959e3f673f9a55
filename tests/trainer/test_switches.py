"""The command line's switches: each sets what it names, contradictions are said, a resumed run has to repeat them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fewstep.card import CheckpointError, read_card
from fewstep.command_line import parse
from fewstep.ranges import RangeError
from tests.trainer.tiny import TINY_RECIPE, run_options
from trainer import commands
from trainer.__main__ import main
from trainer.commands import train_student
from trainer.data.format import ImageSet
from trainer.methods.rivals import tied
from trainer.options import DPDM, Distillation, StudentCommand
from trainer.settings import StudentConfig
from trainer.switches import SwitchError, apply_switches

# flag -> the fields it sets, and nothing else
SETS: dict[str, dict[str, Any]] = {
    "--renoise tied": {"renoise": "tied"},
    "--loss sid": {"loss": "sid"},
    "--loss sid --alpha 0.5": {"loss": "sid", "alpha": 0.5},
    "--weight one": {"weight": "one"},
    "--objective ncvsd": {"objective": "ncvsd", "sigma_max": 80.0},
    "--objective ncvsd --sigma-max 40": {"objective": "ncvsd", "sigma_max": 40.0},
    "--auxiliary-sees-level": {},  # as it is
    "--no-auxiliary-sees-level": {"auxiliary_sees_level": False},
    "--sigma-max 80": {"sigma_max": 80.0},
    "--top 0.7": {"top": 0.7},
    "--auxiliary-updates 3": {"auxiliary_updates": 3},
    "--auxiliary-first 0.1": {"auxiliary_first": 0.1},
    "--simulate 0.4": {"simulate": 0.4},
    "--simulate 0.4 --simulate-from 0.2": {"simulate": 0.4, "simulate_from": 0.2},
    "--warm 0.1": {"warm": 0.1},
    "--warm 0.1 --warm-pairs 12": {"warm": 0.1, "warm_pairs": 12},
    "--coarse 0.05": {"coarse": 0.05},
    "--guidance-max 3": {"guidance_max": 3.0},
    "--lr 0.001": {"adam.lr": 0.001},
    "--auxiliary-lr 0.002": {"auxiliary_adam.lr": 0.002, "adversary.adam.lr": 0.002},
}

OWN = {"weight": "one", "auxiliary_lr": 0.002}  # of the run that is resumed below
SAME = ("--renoise tied", "--weight one", "--auxiliary-lr 0.002", "--no-auxiliary-sees-level", "--sigma-max 80")


REQUIRED = ("--recipe", "digits", "--teacher", "t", "--out", "o")


def parsed(line: str) -> dict[str, Any]:
    return parse(StudentCommand, [*REQUIRED, *line.split()], "student").switches


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in fields.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("line", SETS)
@pytest.mark.parametrize("base", [StudentConfig(), StudentConfig(alpha=0.7, floor=0.1, steps=(1, 4))])
def test_a_switch_sets_what_it_names_and_nothing_else(line, base):
    before, after = flat(asdict(base)), flat(asdict(apply_switches(base, parsed(line))))
    assert {name: value for name, value in after.items() if value != before[name]} == SETS[line]


def test_every_switch_is_in_the_table():
    named = {word.removeprefix("--").removeprefix("no-") for line in SETS for word in line.split() if word[:2] == "--"}
    assert {name.replace("-", "_") for name in named} == {*DPDM.names, "lr", "auxiliary_lr"}


def test_without_switches_the_recipe_stands():
    base = StudentConfig(simulate=0.2)
    assert parsed("") == {} and apply_switches(base, {}) == base


def test_a_switch_can_say_what_the_recipe_says_already():
    assert apply_switches(StudentConfig(), parsed("--loss kl --renoise hybrid")) == StudentConfig()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--alpha 0.5", "--alpha belongs to the SiD loss; add --loss sid"),
        ("--simulate-from 0.2", "--simulate-from has no effect without --simulate"),
        ("--simulate 0 --simulate-from 0.2", "--simulate-from has no effect without --simulate"),
        ("--warm-pairs 12", "--warm-pairs has no effect without --warm"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(line, sentence):
    with pytest.raises(SwitchError, match=sentence):
        apply_switches(StudentConfig(), parsed(line))


def test_a_top_level_lies_above_the_lowest_one():
    with pytest.raises(RangeError, match=r"--sigma-max must be a number above 0.01 and at most 10,000, not 0.005"):
        apply_switches(StudentConfig(), parsed("--sigma-max 0.005"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--play first", "--play is called --trained-steps today"),
        ("--keep=0.3", "--keep is called --imitation-share today"),
        ("--guide 1", "--guide was removed: docs/log.md says what was measured"),
        ("--objective posterior", "--objective posterior is called ncvsd today"),
        ("--simulat 1", "there is no flag --simulat; did you mean --simulate?"),
        ("--warm 2", "--warm must be a number from 0 to 1, not 2"),
        ("--simulate -0.1", "--simulate must be a number from 0 to 1, not -0.1"),
        ("--top half", "--top: 'half' is not a number"),
    ],
)
def test_what_is_no_switch_or_no_value_of_one_is_refused_in_a_sentence(line, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["student", *REQUIRED, *line.split()])
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.fixture(scope="module")
def trained(thumbnails: ImageSet, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student run of one update with three switches."""
    out = tmp_path_factory.mktemp("switches") / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "recipe", lambda name: TINY_RECIPE)
        assert train_student(run_options(out, images=8), thumbnails, Distillation(tiny_teacher, "tied", OWN))
    return out


# Guidance is refused before: this teacher was trained without dropped labels (test_conditions.py).
@pytest.mark.usefixtures("tiny_recipe")
@pytest.mark.parametrize("line", [line for line in SETS if line not in (*SAME, "--guidance-max 3")])
def test_a_run_is_not_resumed_with_another_switch(line, thumbnails, tiny_teacher, trained):
    request = Distillation(tiny_teacher, "tied", OWN | parsed(line))
    ran = apply_switches(tied(TINY_RECIPE.student), OWN)
    changed = {name for name, value in vars(apply_switches(ran, parsed(line))).items() if value != getattr(ran, name)}
    with pytest.raises(CheckpointError, match="trained with other settings") as refused:
        train_student(run_options(trained, resume=True), thumbnails, request)
    assert changed and all(f"{name} was " in str(refused.value) for name in changed)


@pytest.mark.usefixtures("tiny_recipe")
def test_a_run_is_resumed_with_the_same_switches(thumbnails, tiny_teacher, trained):
    request = Distillation(tiny_teacher, "tied", OWN | {"renoise": "tied"})  # said twice is said once
    assert train_student(run_options(trained, images=8, resume=True), thumbnails, request)


@pytest.mark.usefixtures("tiny_recipe")
def test_a_run_is_not_resumed_as_another_method_or_from_another_start(thumbnails, tiny_teacher, trained):
    dpdm = Distillation(tiny_teacher, "dpdm", OWN | {"renoise": "tied"})  # the same settings under another name
    with pytest.raises(CheckpointError, match="method was tied, now dpdm"):
        train_student(run_options(trained, images=8, resume=True), thumbnails, dpdm)
    other = Distillation(tiny_teacher, "tied", OWN, start=trained)
    with pytest.raises(CheckpointError, match="start was None, now"):
        train_student(run_options(trained, images=8, resume=True), thumbnails, other)


def test_the_card_says_how_it_was_trained(trained):
    training = read_card(trained).training
    assert (training["method"], training["renoise"], training["weight"]) == ("tied", "tied", "one")
    assert training["auxiliary_adam"]["lr"] == 0.002
