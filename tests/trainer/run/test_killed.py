"""A run that dies at any point of a checkpoint goes on from the last complete one: to the weights of a run that did
not die, and before that with weights, card and state of one moment."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.card import CheckpointError
from fewstep.checkpoint import load_checkpoint
from tests.trainer.tiny import run_options
from trainer import classify, commands, runs
from trainer.critics.classifier import load_classifier
from trainer.data.format import ImageSet
from trainer.run.state import read_facts, settle_state


class KilledError(BaseException):
    """Stands for SIGKILL: nothing after it is run but what the system does itself."""


def dying(calls: int) -> tuple[Callable, list[str]]:
    """`Path.replace` that dies after so many calls, and what it has renamed."""
    rename, done = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if len(done) >= calls:
            raise KilledError
        done.append(Path(target).name)
        return rename(self, target)

    return replace, done


def train(out: Path, images: ImageSet, *, resume: bool = False) -> bool:
    return commands.train_teacher(run_options(out, checkpoint_s=0.0, resume=resume), images)


@pytest.fixture(scope="module")
def straight(thumbnails, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        from tests.trainer.tiny import TINY_RECIPE

        patch.setattr(commands, "recipe", lambda name: TINY_RECIPE)
        folder = tmp_path_factory.mktemp("straight")
        train(folder, thumbnails)
    return folder


@pytest.mark.usefixtures("tiny_recipe")
@pytest.mark.parametrize("calls", range(1, 9))
def test_a_killed_run_goes_on_from_the_last_complete_checkpoint(calls, straight, thumbnails, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "write_sheet", lambda *_: None)  # in its own time, and tested below
    replace, done = dying(calls)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Path, "replace", replace)
        train(tmp_path, thumbnails)
    assert len(done) == calls
    settle_state(tmp_path)
    if done.count("model.safetensors") == 0:  # before the first one is complete, there is nothing to go on from
        with pytest.raises(CheckpointError, match="nothing to resume; start without --resume"):
            train(tmp_path, thumbnails, resume=True)
        assert train(tmp_path, thumbnails)
    else:
        _, card = load_checkpoint(tmp_path)
        assert read_facts(tmp_path)["images"] == card.training["images"]
        assert train(tmp_path, thumbnails, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("tiny_recipe")
def test_a_run_killed_in_its_first_sample_sheet_can_be_resumed(straight, thumbnails, tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(runs, "write_sheet", killed)
        train(tmp_path, thumbnails)
    assert train(tmp_path, thumbnails, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


@pytest.mark.parametrize("calls", [3, 4, 5])
def test_a_killed_classifier_goes_on_too(calls, thumbnails, tmp_path, monkeypatch):
    def run(**changes) -> bool:
        return classify.train_classifier(run_options(tmp_path, images=24, checkpoint_s=0.0, **changes), thumbnails)

    replace, _ = dying(calls)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Path, "replace", replace)
        run()
    settle_state(tmp_path)
    content = (tmp_path / "classifier.safetensors").read_bytes()
    facts = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["facts"])
    assert read_facts(tmp_path)["images"] == facts["images"]
    assert run(resume=True)
    assert load_classifier(tmp_path).config.resolution == 8
