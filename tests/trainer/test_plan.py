"""What a budget buys: shares, one batch at least, and the words about a result that is too small."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import trainer.plan
from fewstep.card import CheckpointError
from fewstep.checkpoint import load_denoiser
from trainer.data.format import ImageSet
from trainer.plan import LEVELS, Measured, Needed, Plan, Rehearsal, expect, plan, rehearse, too_few, wanted_s
from trainer.recipes.by_name import RECIPES
from trainer.recipes.recipe import TEACHER_AND_STUDENT
from trainer.stages.planning import check_disk

REHEARSED = Rehearsal({"teacher": Measured(100.0, 5.0), "dpdm": Measured(50.0, 7.0)}, 0.001, "fp32", 1000, 500, 20)
BATCHES = {"teacher": 64, "dpdm": 32}


def planned(budget_s: float, spent_s: float = 10.0) -> Plan:
    facts = {"recipe": "photos", "network": "small", "device": "cpu", "compile": False}
    return plan(REHEARSED, TEACHER_AND_STUDENT, BATCHES, budget_s, spent_s, **facts)


@pytest.mark.parametrize("budget_s", [300.0, 3600.0, 8 * 3600.0])
def test_the_whole_command_takes_its_budget_and_no_more(budget_s):
    made = planned(budget_s)
    calls = {"teacher": 1900, "dpdm": 300}
    sheets = sum(0.001 * calls[name] * made.seconds[name] / made.checkpoint_s[name] for name in calls)
    whole = made.overhead_s + sum(made.seconds.values()) + sheets
    assert 0.9 * budget_s < whole <= 1.01 * budget_s


def test_stages_share_the_training_time_and_get_whole_batches():
    made = planned(3600.0)
    training = {name: made.images[name] / REHEARSED.stages[name].images_per_s for name in made.images}
    assert training["teacher"] / sum(training.values()) == pytest.approx(0.55, abs=0.01)
    assert all(made.images[name] % BATCHES[name] == 0 for name in BATCHES)


def test_a_budget_that_is_spent_still_buys_one_batch_and_is_called_too_small():
    made = planned(5.0)
    assert made.images == {"teacher": 64, "dpdm": 32}
    assert too_few(32, Needed(64, 32)) == (
        "NOT usable, noise or blurs at 32x32: the teacher sees 64 images, and a usable result takes 100,000; the "
        "student sees 32 images, and a usable result takes 40,000"
    )


def test_the_pictures_of_a_run_are_no_part_of_the_disk_that_its_plan_needs(tmp_path, monkeypatch):
    needs = replace(planned(300.0), disk_mb=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    with (tmp_path / "data.zip").open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(CheckpointError, match=r"needs 10 MB more, and 5\.0 MB are free"):
        check_disk(tmp_path, needs)
    with (tmp_path / "state").open("wb") as file:
        file.truncate(6_000_000)
    check_disk(tmp_path, needs)


@pytest.mark.parametrize("level", LEVELS)
def test_a_result_at_the_threshold_is_usable_and_one_image_less_is_not(level):
    assert too_few(level.side, level.usable) is None
    less = Needed(level.usable.teacher - 1, level.usable.student)
    sentence = too_few(level.side, less)
    assert sentence and "the teacher sees" in sentence and "the student" not in sentence


def test_the_budget_that_is_named_as_enough_is_enough():
    needed = LEVELS[2].usable
    enough = planned(wanted_s(planned(5.0), TEACHER_AND_STUDENT, needed))
    assert enough.images["teacher"] >= needed.teacher and enough.images["dpdm"] >= needed.student
    assert too_few(32, Needed(enough.images["teacher"], enough.images["dpdm"])) is None


@pytest.mark.parametrize(("compiled", "speed"), [(True, 100.0), (False, 1.0)])
def test_a_compiled_stage_is_measured_after_it_has_compiled(compiled, speed, tiny_teacher, tmp_path, monkeypatch):
    runs: list[str] = []

    def run(stage, folder: Path, images: int, label: str) -> int:
        (folder / stage.name).mkdir()  # raises where an earlier run has left something
        runs.append(stage.name)
        return 0

    monkeypatch.setattr(trainer.plan, "read_facts", lambda at: {"images_per_s": 100.0 ** (runs.count(at.name) - 1)})
    monkeypatch.setattr(trainer.plan, "load_denoiser", lambda *_: load_denoiser(tiny_teacher))
    measured = rehearse(TEACHER_AND_STUDENT, BATCHES, run, "cpu", compiled, limit_s=600.0).stages
    assert {name: one.images_per_s for name, one in measured.items()} == {"teacher": speed, "dpdm": speed}


def test_measuring_ends_when_it_has_taken_its_share_and_the_plan_names_what_was_estimated(
    tiny_teacher, tmp_path, monkeypatch
):  # fmt: skip
    runs: list[str] = []

    def run(stage, folder: Path, images: int, label: str) -> int:
        (folder / stage.name).mkdir()
        (folder / stage.name / "weights").write_bytes(bytes(1_000_000))
        runs.append(stage.name)
        return 10**6

    monkeypatch.setattr(trainer.plan, "read_facts", lambda at: {"images_per_s": 100.0})
    monkeypatch.setattr(trainer.plan, "load_denoiser", lambda *_: load_denoiser(tiny_teacher))
    rehearsed = rehearse(TEACHER_AND_STUDENT, BATCHES, run, "cpu", compiled=False, limit_s=0.0)
    assert runs == ["teacher"] and rehearsed.estimated == ("dpdm",)
    assert rehearsed.stages["dpdm"].images_per_s == pytest.approx(27.0) and rehearsed.disk_mb == 3
    assert rehearsed.memory_mb == 10**6  # of the processes of a stage, which have more than this one
    facts = {"recipe": "photos", "network": "small", "device": "cpu", "compile": False}
    made = plan(rehearsed, TEACHER_AND_STUDENT, BATCHES, 300.0, 10.0, **facts)
    images = ImageSet("few", np.zeros((4, 32, 32, 3), np.uint8), np.full(4, -1, np.int32), (), "CC0-1.0", "zeros")
    assert "dpdm was not measured" in expect(made, images, RECIPES["photos"])[0]
    assert not any("not measured" in line for line in expect(planned(300.0), images, RECIPES["photos"]))
