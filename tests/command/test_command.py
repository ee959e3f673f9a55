"""`python -m fewstep train`: from a folder of mixed pictures to a served image, and what it says on the way."""

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.engine import load_engine
from export.manifest import read_manifest
from fewstep.__main__ import main
from fewstep.card import read_card
from fewstep.commands import train as command_line
from fewstep.noise import noise_for
from fewstep.samplers import sample_dpdm
from tests.command.conftest import command
from tests.command.tiny_command import TINY
from trainer.data.format import read_image_set
from trainer.data.named import READERS
from trainer.methods.dpdm import Student
from trainer.plan import UPDATES, plan
from trainer.recipes.by_name import RECIPES
from trainer.recipes.fashion import CRITICS
from trainer.run.claim import claim
from trainer.run.distributed import TORCHRUN_VARIABLES
from trainer.stages import planning, training

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_of_mixed_pictures_becomes_an_engine_that_makes_an_image(made):
    assert made.code == 0, made.progress
    engine, manifest = load_engine(made.out / "student" / "engine"), read_manifest(made.out / "student" / "engine")
    assert manifest.class_names == ("bricks", "cats & dogs")
    bound = lambda x, sigma: engine.denoiser(x, sigma, np.array([1]))  # noqa: E731
    images = sample_dpdm(bound, noise_for([7], (3, 32, 32)), manifest.levels[4]).images
    assert images.shape == (1, 3, 32, 32) and np.isfinite(images).all() and np.ptp(images) > 0


def test_what_to_expect_is_said_before_the_work_and_noise_is_not_called_ready(made):
    plan, _, end = made.said.partition("this plan, export, report")
    assert "24 of 32x32, RGB, 2 classes of 12 to 12" in plan and re.search(r"teacher +\S+ +[\d,]+ +\S+", plan)
    assert "24 pictures: will be memorised; 2,000 or more are better" in end
    assert end.count("NOT usable, noise or blurs at 32x32: the teacher sees") == 2  # in the plan, and at the end
    assert "A budget of about" in end and "is ready" not in end
    assert f"fewstep serve --engine '{made.out}/student/engine'".replace("'", "") in end.replace("'", "")


def test_every_training_stage_has_progress_from_its_first_update_on(made):
    for stage in ("measuring teacher", "teacher", "dpdm"):  # whether dpdm is measured depends on the machine's speed
        first = next(line for line in made.progress.splitlines() if line.startswith(f"{stage}  "))
        assert re.search(r"\d+ %  8 of [\d,]+ images  \S+ images/s", first), first


def test_the_device_is_said_once_in_the_plan(made):
    assert made.said.count("machine   cpu, ") == 1 and "device cpu" not in made.said + made.progress


def test_the_journal_and_the_card_list_every_stage_with_its_parents_and_seconds(made):
    journal = json.loads((made.out / "stages.json").read_text())
    assert list(journal["stages"]) == ["data", "teacher", "dpdm", "export", "report"]
    done, card = journal["stages"], read_card(made.out / "student")
    assert done["dpdm"]["parents"] == {"data": done["data"]["result"], "teacher": done["teacher"]["result"]}
    assert card.training["stages"].keys() == {"data", "teacher", "dpdm"}
    assert card.training["stages"]["teacher"]["images"] == journal["plan"]["images"]["teacher"]
    assert all(done["seconds"] > 0 for done in card.training["stages"].values())


def test_the_report_is_one_file_with_pictures_distances_and_commands(made):
    page = (made.out / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    for words in (
        "NOT usable",
        "8 steps",
        "real images",
        "Nearest training images",
        "images/s",
        "fewstep train",
    ):
        assert words in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_student_has_a_model_card_with_the_distances_of_the_report(made):
    text = (made.out / "student" / "README.md").read_text()
    assert text.startswith("---\n") and f"# Model Card for {made.out.name}" in text
    rows = [line.split("|")[1].strip() for line in text.partition("### Results")[2].splitlines() if line[:2] == "| "]
    assert rows[:6] == ["calls", "1", "2", "4", "8", "real"]


def test_the_same_command_does_nothing_again(made):
    before = contents(made.out)
    again = made.again()
    assert again.code == 0 and "NOT usable" in again.said
    assert not re.search(r"images/s", again.progress), "no update is made"
    assert contents(made.out) == before


def test_a_run_of_other_settings_is_refused_naming_them(made):
    before = contents(made.out)
    other = made.again("--budget", "9s")
    assert other.code == 2 and "--budget in seconds was 2.0, now 9.0" in other.progress
    other = made.again("--seed", "3")
    assert other.code == 2 and "--seed was 0, now 3" in other.progress
    assert contents(made.out) == before


def test_pictures_that_were_moved_are_those_of_the_run_and_others_are_not(made, tmp_path):
    out, moved = tmp_path / "run", tmp_path / "moved" / "my photos"
    shutil.copytree(made.out, out)
    shutil.copytree(made.photos, moved)
    assert command(moved, out).code == 0
    assert json.loads((out / "stages.json").read_text())["order"]["photos"] == str(moved)
    before = contents(out)
    (moved / "bricks" / "0.png").unlink()
    other = command(made.photos.parent / "my photos" / "bricks", out)
    assert other.code == 2 and f"PHOTOS was {moved}, now {made.photos}" in other.progress
    assert command(moved, out).code == 0, "what is read already is not read again"
    assert contents(out) == before


def test_a_second_run_in_the_same_folder_exits_2(made):
    with claim(made.out):
        second = made.again()
    assert second.code == 2 and "another run" in second.progress


def test_going_back_makes_a_stage_and_what_follows_anew(made, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "_export", lambda model, out: {})
    out = tmp_path / "copy"
    shutil.copytree(made.out, out)
    assert command(made.photos, out, "--from", "nothing").code == 2
    assert contents(out) == contents(made.out)
    teacher = contents(out / "teacher")
    again = command(made.photos, out, "--from", "dpdm", "--budget", "1s")
    assert again.code == 0 and contents(out / "teacher") == teacher
    assert re.search(r"^dpdm  ", again.progress, re.M) and not re.search(r"^teacher  ", again.progress, re.M)
    assert re.search(r"^teacher .* complete$", again.said, re.M), "the new budget is not for the teacher"


def test_going_back_to_the_data_makes_everything_anew_also_what_was_cut_off(made, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "_export", lambda model, out: {})
    photos, out = tmp_path / "photos", tmp_path / "copy"
    shutil.copytree(made.photos, photos)
    assert command(photos, out, "--budget", "1s").code == 0
    journal = json.loads((out / "stages.json").read_text())
    for stage in ("dpdm", "export", "report"):  # as if it had been killed in the stage dpdm
        del journal["stages"][stage]
    (out / "stages.json").write_text(json.dumps(journal))
    shutil.rmtree(photos / "bricks")
    assert command(photos, out, "--from", "data").code == 0
    assert len(read_image_set(out / "data.zip").images) == 12 and read_card(out / "student").dataset.images == 12


def test_a_full_disk_is_said_and_the_same_command_goes_on(made, tmp_path, monkeypatch):
    out, sync, calls = tmp_path / "copy", os.fsync, []
    shutil.copytree(made.out, out)

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 12:  # the plan is written, and a part of the student
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(command_line, "_export", lambda model, out: {})
        patch.setattr(os, "fsync", full)
        failed = command(made.photos, out, "--from", "dpdm")
    assert failed.code == 2 and "the disk is full" in failed.progress and "go on from here with" in failed.progress
    monkeypatch.setattr(command_line, "_export", lambda model, out: {})
    assert command(made.photos, out).code == 0
    assert read_card(out / "dpdm").role == "student" and not list(out.rglob("*.part"))


def test_ctrl_c_in_a_training_stage_exits_130_and_the_same_command_goes_on(made, tmp_path, monkeypatch):
    out, update, calls = tmp_path / "copy", Student.update, []
    shutil.copytree(made.out, out)

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == UPDATES + 1:  # the first that is no measurement
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    monkeypatch.setattr(command_line, "_export", lambda model, out: {})
    with monkeypatch.context() as patch:
        patch.setattr(Student, "update", interrupted)
        patch.setattr(planning, "MEASURING_SHARE", math.inf)  # measured however slow the machine is
        patch.setattr(planning, "plan", lambda *a, **facts: replace(plan(*a, **facts), images={"dpdm": 48}))
        stopped = command(made.photos, out, "--from", "dpdm")
    assert stopped.code == 130 and "interrupted in the stage dpdm; go on with: fewstep train" in stopped.progress
    assert read_card(out / "dpdm").training["images"] == 8
    going_on = command(made.photos, out, "--from", "export")  # and nothing that is not complete is exported
    assert going_on.code == 0 and re.search(r"^dpdm  +\d+ % ", going_on.progress, re.M)
    assert read_card(out / "student").training["images"] == 48


def test_a_dry_run_prints_the_plan_and_writes_nothing(mixed_pictures, tmp_path):
    dry = command(mixed_pictures, tmp_path / "dry", "--budget", "5m", "--dry-run")
    assert dry.code == 0 and "budget    5 min for everything" in dry.said
    assert not list(tmp_path.iterdir())


def test_processes_share_the_stages_and_are_in_the_plan(mixed_pictures, tmp_path, monkeypatch):
    asked = []

    def here(count, device, refusals, work, *arguments):
        asked.append((count, device, arguments[1]))
        return work(*arguments)

    monkeypatch.setattr(training, "in_processes", here)
    planned = command(mixed_pictures, tmp_path / "run", "--budget", "2s", "--processes", "2", "--dry-run")
    assert planned.code == 0 and re.search(r"2 processes that share \d+ thread", planned.said), planned.progress
    assert set(asked) == {(2, "cpu", False)}


def test_processes_that_cannot_be_had_are_refused_in_words(mixed_pictures, tmp_path, monkeypatch):
    odd = command(mixed_pictures, tmp_path / "run", "--processes", "3", "--dry-run")
    assert odd.code == 2 and "--processes 3: they share batches of 8 images evenly" in odd.progress
    for name in TORCHRUN_VARIABLES:
        monkeypatch.setenv(name, "2")
    twice = command(mixed_pictures, tmp_path / "run")
    assert twice.code == 2 and "torchrun has started 2 processes, and fewstep train starts its own" in twice.progress
    assert not (tmp_path / "run").exists()


def test_a_zip_of_the_folder_is_read_like_the_folder(mixed_pictures, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in mixed_pictures.rglob("*.*"):
            archive.write(file, Path("my photos") / file.relative_to(mixed_pictures))
        archive.writestr("__MACOSX/my photos/bricks/._1.png", b"not a picture")
    dry = command(tmp_path / "photos.zip", tmp_path / "out", "--budget", "5m", "--dry-run")
    assert dry.code == 0 and "24 of 32x32, RGB, 2 classes of 12 to 12" in dry.said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budget", "4"), "'4' has no unit; write 4s, 4m or 4h"),
        (("--budget", "0m"), "not a duration above 0"),
        (("--budget", "soon"), "not a duration above 0; write 90s, 30m or 6h"),
        (("--budget", "1h", "--preset", "quick"), "exclude each other"),
        (("--seed", "-1"), "must be a whole number from 0"),
    ],
)
def test_a_number_without_sense_is_refused_in_words(options, said, tmp_path, mixed_pictures):
    refused = command(mixed_pictures, tmp_path / "out", *options)
    assert refused.code == 2 and said in refused.progress and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("photos", "said"),
    [("nowhere", "nowhere does not exist; name a folder of pictures"), ("photos", "no pictures of its own")],
)
def test_pictures_that_are_not_there_are_refused_in_words(photos, said, tmp_path):
    refused = command(photos, tmp_path / "out", "--budget", "5s")
    assert refused.code == 2 and said in refused.progress


def test_help_does_not_load_torch():
    run = "import sys, fewstep.__main__ as command\ntry: command.main(['train', '--help'])"
    code = f"{run}\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--budget" in done.stdout


def test_every_stage_of_the_shipped_student_runs_unattended_from_nothing_to_its_card(
    fashion_2000, tmp_path, monkeypatch
):
    monkeypatch.setitem(RECIPES, "fashion", replace(RECIPES["fashion"], network=replace(TINY, channels=1), batch=8))
    monkeypatch.setitem(READERS, "fashion", lambda source, split: fashion_2000)
    monkeypatch.setattr(command_line, "_export", lambda model, out: {})
    monkeypatch.chdir(tmp_path)
    made = command("fashion", tmp_path / "out", "--budget", "1s")
    assert made.code == 0, made.progress
    done = read_card(tmp_path / "out" / "student").training["stages"]
    assert list(done) == ["data", *(stage.name for stage in RECIPES["fashion"].stages)]
    assert done["adversarial-other-calls"]["parents"].keys() == {"data", "teacher", "self-distill-one-call-2", *CRITICS}
    assert done["adversarial-one-call"]["facts"]["switches"]["trained_steps"] == "first"


def test_the_data_are_kept_as_they_were_read(made):
    images = read_image_set(made.out / "data.zip", verify=True)
    assert images.name == "my photos" and images.images.shape == (24, 32, 32, 3)


def test_a_place_among_the_pictures_or_over_other_results_is_refused(made, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(made.photos, photos)
    (tmp_path / "link").symlink_to(photos)
    others = tmp_path / "others"
    (others / "student").mkdir(parents=True)  # not written by this command
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(made.out / "data.zip", own / "data.zip")
    before = contents(tmp_path)
    for pictures, out, said in (
        (photos, photos, "lies in"),
        (photos, photos / "run", "name a folder outside it"),
        (photos, tmp_path / "link" / "run", "lies in"),
        (photos, Path("/"), "is the root of all folders"),
        (photos, others, "already holds student and no run of this command"),
        (own / "data.zip", own, "would be overwritten"),
    ):
        for options in (("--budget", "1s"), ("--dry-run",), ("--from", "data")):
            refused = command(pictures, out, *options)
            assert refused.code == 2 and said in refused.progress and refused.progress.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("count", "said"), [(1, "holds 1 image; a model learns from several"), (3, "the same value")])
def test_pictures_that_no_model_can_learn_are_refused_before_the_work(count, said, tmp_path):
    (tmp_path / "blank").mkdir()
    for number in range(count):
        Image.new("RGB", (40, 30), "red" if count == 1 else "gray").save(tmp_path / "blank" / f"{number}.png")
    refused = command(tmp_path / "blank", tmp_path / "out", "--budget", "1s")
    assert refused.code == 2 and said in refused.progress and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "empty"),
    [
        (("train", "photos", "--out", ""), "--out"),
        (("train", "", "--out", "runs/x"), "an argument"),
        (("train", "photos", "--out="), "--out"),
        (("generate", "--inputs", "", "--out", "large"), "--inputs"),
        (("generate", "--seeds", "0", "--out="), "--out"),
        (("remake", ""), "an argument"),
        (("remake", "a.png", "--engine", ""), "--engine"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(line, empty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(line)
    assert stop.value.code == 2 and f"error: {empty} is empty; give a value" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_only_an_interrupted_run_says_that_it_goes_on(options, monkeypatch, tmp_path, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_train", stop)
    assert main(["train", "photos", "--out", str(tmp_path / "run"), *options]) == 130
    assert ("goes on" in capsys.readouterr().err) == (not options)
