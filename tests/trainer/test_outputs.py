"""No command writes over a finished model: exit 2, a sentence, every file as it was."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.card import CheckpointError
from fewstep.outputs import check_file, check_folder
from tests.trainer.tiny import run_options
from trainer.classify import train_classifier
from trainer.data.format import ImageSet, write_image_set

Command = Callable[..., int]


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    from trainer.__main__ import main

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
        return main()

    return run


@pytest.fixture
def data(thumbnails: ImageSet, tmp_path: Path) -> Path:
    write_image_set(tmp_path / "thumbnails.zip", thumbnails)
    return tmp_path / "thumbnails.zip"


@pytest.fixture
def finished(tiny_teacher: Path, command: Command, tmp_path: Path) -> Path:
    """A published teacher: weights and card, and no state to resume from."""
    assert command("publish", "--model", tiny_teacher, "--out", tmp_path / "finished") == 0
    return tmp_path / "finished"


COMMANDS = {
    "teacher": "teacher --recipe digits --data {data} --images 8 --out {model}",
    "teacher continued": "teacher --recipe digits --data {data} --images 8 --init {model} --out {model}",
    "student": "student --recipe digits --data {data} --images 8 --teacher {model} --out {model}",
    "classifier": "classifier --recipe digits --data {data} --images 8 --out {model}",
    "average": "average --model {model} --width 0.1 --out {model}",
    "publish": "publish --model {model} --out {model}",
    "import": "import {model}/model.safetensors --out {model}",
    "data": "data digits --out {model}/model.safetensors",
    "data into the folder": "data digits --out {model}",
    "contact sheet": "data show {data} --png {model}/card.json",
}


@pytest.mark.parametrize("resume", ["", " --resume"])
@pytest.mark.parametrize("line", COMMANDS.values(), ids=list(COMMANDS))
@pytest.mark.usefixtures("tiny_recipe")
def test_a_finished_model_is_left_as_it_is(line, resume, finished, data, command, capsys):
    if resume and not line.startswith(("teacher", "student", "classifier")):
        pytest.skip("only runs are resumed")
    before = hashes(finished)
    capsys.readouterr()
    assert command(*(line + resume).format(data=data, model=finished).split()) == 2
    assert hashes(finished) == before
    said = capsys.readouterr().err
    assert str(finished) in said and "without --resume" not in said


def test_a_classifier_is_a_finished_model_too(thumbnails, tmp_path):
    train_classifier(run_options(tmp_path / "run", images=8), thumbnails)
    (tmp_path / "run" / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"already holds a classifier\.safetensors"):
        train_classifier(run_options(tmp_path / "run", images=8), thumbnails)


def test_a_data_set_replaces_a_data_set_and_no_other_zip(command, data, tmp_path, capsys):
    (tmp_path / "photos.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    assert command("data", "digits", "--out", tmp_path / "photos.zip") == 2
    assert (tmp_path / "photos.zip").read_bytes() == b"PK\x05\x06" + bytes(18)
    assert command("data", "digits", "--out", data) == 0


def test_places_where_nothing_can_be_written_are_known_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="file"):
            check_folder(place)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(CheckpointError, match="no permission"):
        check_folder(tmp_path / "new")
    with pytest.raises(CheckpointError, match="no permission"):
        check_file(tmp_path / "new" / "result.json", ".json")
