"""`fewstep train` from an index of shards: nothing is copied, a stopped run goes on to the same student, and changed
shards are refused."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from fewstep.card import read_card
from fewstep.commands import train as command_line
from tests.command.conftest import Made, command
from tests.command.tiny_command import few_images
from tests.trainer.data.archives import write_shards
from trainer import report
from trainer.data.shards import read_index
from trainer.data.sources.shards import write_index
from trainer.methods.edm import Teacher
from trainer.plan import UPDATES
from trainer.stages import planning

COUNT = 40
NAMES = ("cats & dogs", "bricks")


def write(folder: Path, seed: int = 0) -> Path:
    """40 pictures of two classes in three tars, and their index."""
    pixels = np.random.default_rng(seed).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    write_shards(folder, pixels, np.arange(COUNT) % 2, 16)
    write_index(folder, folder / "index.zip", name="noise", licence="CC0-1.0", class_names=NAMES)
    return folder / "index.zip"


def without_engine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(command_line, "_export", lambda model, out: {})


def stopped(index: Path, out: Path) -> Made:
    """A run that Ctrl-C ends in the first update of its teacher that is no measurement."""
    update, calls = Teacher.update, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == UPDATES + 1:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "update", interrupted)
        patch.setattr(planning, "plan", few_images(planning.plan))
        return command(index, out, "--budget", "2s")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Path]:
    """A run that was stopped and went on, and the folder of one with its plan that was not stopped."""
    root = tmp_path_factory.mktemp("shards")
    index, out, straight = write(root), root / "runs" / "stopped", root / "runs" / "straight"
    with pytest.MonkeyPatch.context() as patch:
        without_engine(patch)
        patch.setattr(report, "SEARCHED", 30)
        first = stopped(index, out)
        assert first.code == 130 and "interrupted in the stage teacher" in first.progress
        shutil.copytree(out, straight)
        shutil.rmtree(straight / "teacher")
        made, other = command(index, out), command(index, straight)
    assert made.code == other.code == 0, made.progress + other.progress
    return made, straight


def test_a_run_that_was_stopped_makes_the_student_of_one_that_was_not(runs):
    made, straight = runs
    assert read_card(made.out / "student").weights == read_card(straight / "student").weights


def test_the_plan_says_how_many_images_in_how_many_files_and_how_often_each_is_seen(runs):
    made, _ = runs
    size = sum(file.stat().st_size for file in made.photos.parent.glob("*.tar"))
    assert "pictures  40 of 32x32, RGB, 2 classes of 20 to 20" in made.said
    assert f"shards    3 files of {size / 1e6:.1f} MB in all, which stay where they are" in made.said
    [teacher] = [line.split() for line in made.said.splitlines() if line.startswith("teacher ")]
    assert teacher[2:4] == ["48", "1.2"]


def test_no_image_is_copied_and_the_run_is_known_by_the_hash_of_the_index(runs):
    made, _ = runs
    data, kept = read_index(made.photos), [file.name for file in made.out.rglob("*") if file.is_file()]
    assert "data.zip" not in kept and not [name for name in kept if name.endswith((".tar", ".zip"))]
    stage = json.loads((made.out / "stages.json").read_text())["stages"]["data"]
    assert stage["facts"] == {"index": "index.zip"} and stage["result"] == data.sha256()
    card = read_card(made.out / "student")
    assert card.dataset == data.provenance() and card.class_names == NAMES and card.training["shards"]
    assert str(made.photos.parent) not in (made.out / "student" / "card.json").read_text(), "a path of this machine"


def test_the_report_says_that_it_looked_among_some_of_the_images(runs):
    made, _ = runs
    said = "The nearest was looked for among 30 of the 40 training images"
    assert said in (made.out / "report.html").read_text()
    assert "nearest training image of 30 that were looked at" in (made.out / "student" / "README.md").read_text()


def test_changed_shards_and_an_index_of_other_images_are_refused_and_the_same_images_are_not(
    runs, tmp_path, monkeypatch
):
    without_engine(monkeypatch)
    made, folder, out = runs[0], tmp_path / "shards", tmp_path / "run"
    folder.mkdir()
    index = write(folder)
    shutil.copytree(made.out, out)
    assert command(index, out).code == 0, "the same images in another place"
    assert json.loads((out / "stages.json").read_text())["order"]["photos"] == str(index)
    index.unlink()
    assert write(folder) == index and command(index, out).code == 0, "made again of the same images"
    with (folder / "p-000001.tar").open("ab") as file:
        file.write(bytes(512))
    changed = command(index, out)
    assert changed.code == 2 and "p-000001.tar has changed since" in changed.progress
    assert write(folder, seed=1) == index
    other = command(index, out)
    assert other.code == 2 and f"{index} lists other images than those {out} was begun with" in other.progress
    anew = command(index, out, "--from", "data", "--dry-run", "--budget", "1s")
    assert anew.code == 0 and "shards    3 files" in anew.said, anew.progress
    (folder / "p-000002.tar").unlink()
    gone = command(index, out, "--from", "data")
    assert gone.code == 2 and "p-000002.tar is missing" in gone.progress


def test_shards_without_an_index_and_another_size_are_refused_in_words(runs, tmp_path):
    made, _ = runs
    for path, called in ((made.photos.parent, "folder of shards"), (made.photos.parent / "p-000000.tar", "shard")):
        refused = command(path, tmp_path / "out", "--budget", "1s")
        assert refused.code == 2 and f"{path} is a {called}; make an index of it first" in refused.progress
        name = path.name.removesuffix(".tar")
        assert f"fewstep trainer data shards {path} --out {name}.zip" in refused.progress
    sized = command(made.photos, tmp_path / "out", "--size", "64", "--budget", "1s")
    assert sized.code == 2 and "holds images of 32x32; leave --size 64 out" in sized.progress
    assert not (tmp_path / "out").exists()
