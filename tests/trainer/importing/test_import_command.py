"""`import` on the command line: what it writes, what it prints, and that a refusal writes nothing."""

import os
from pathlib import Path
from typing import Any

import pytest

from fewstep.card import CheckpointError, read_card
from fewstep.checkpoint import load_denoiser
from tests.trainer.importing.edm_pickles import Persistent, snapshot, write
from tests.trainer.importing.edm_reference import NETWORKS, reference
from trainer.importing import command


def run(*arguments: object) -> None:
    command.run([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = snapshot(reference("ddpm++"), *NETWORKS["ddpm++"])
    return write(tmp_path_factory.mktemp("edm") / "edm-cifar10.pkl", content)


def test_the_card_says_what_is_known_and_that_the_rest_is_not(pickled: Path, tmp_path: Path, capsys: Any):
    run(pickled, "--out", tmp_path / "teacher")
    card = read_card(tmp_path / "teacher")
    assert (card.role, card.sigma_data, card.levels, card.parent) == ("teacher", 0.5, {}, None)
    assert (card.dataset.name, card.dataset.images) == ("cifar10-32x32", 50000)
    assert (card.dataset.licence, card.dataset.sha256) == ("unknown", "unknown")
    assert card.class_names == ("class 0", "class 1", "class 2", "class 3")
    imported = card.training["imported"]
    assert imported["file"] == "edm-cifar10.pkl" and imported["class"] == "SongUNet"
    assert imported["licence"] == "unknown"
    printed = capsys.readouterr().out
    assert "dropped map_augment.weight" in printed and "does not state the licence of the weights" in printed
    assert load_denoiser(tmp_path / "teacher")[0].classes == 4


def test_flags_and_a_file_of_names_go_into_the_card(pickled: Path, tmp_path: Path, capsys: Any):
    (tmp_path / "names.txt").write_text("plane\ncar\n\nbird \ncät\n", "utf-8")
    run(
        pickled, "--out", tmp_path / "teacher", "--data-name", "CIFAR-10", "--licence", "MIT",
        "--weights-licence", "CC BY-NC-SA 4.0", "--class-names", tmp_path / "names.txt",
    )  # fmt: skip
    card = read_card(tmp_path / "teacher")
    assert card.class_names == ("plane", "car", "bird", "cät")
    assert (card.dataset.name, card.dataset.licence) == ("CIFAR-10", "MIT")
    assert card.training["imported"]["licence"] == "CC BY-NC-SA 4.0"
    assert "licence of the weights" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere.pkl", "--out", "{tmp}/out"], "nowhere.pkl does not exist"),
        (["{tmp}", "--out", "{tmp}/out"], "it is no diffusers folder"),
        (["{pkl}", "--out", "{tmp}/out", "--sigma-data", "1"], "--sigma-data is for other networks"),
        (["{pkl}", "--out", "{pkl}"], "is a file; name a folder"),
        (["{pkl}", "--out", "{tmp}/out", "--class-names", "{tmp}/two.txt"], "2 class names, .* 4 classes"),
        (["{pkl}", "--out", "{tmp}/out", "--class-names", "{tmp}/binary"], "is not a text file in UTF-8"),
        (["{tmp}/unsafe.pkl", "--out", "{tmp}/out"], "is not safe to read: it names posix.system"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_is_a_sentence_and_writes_nothing(
    arguments: list[str], message: str, pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    write(tmp_path / "unsafe.pkl", {"ema": Persistent("EDMPrecond", inner=Runs())})
    monkeypatch.chdir(tmp_path)  # where a command that ran would leave its file
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        run(*(argument.format(tmp=tmp_path, pkl=pickled) for argument in arguments))
    assert sorted(tmp_path.iterdir()) == before


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch it-ran",)


def test_a_checkpoint_that_is_there_is_left_alone(pickled: Path, tmp_path: Path):
    run(pickled, "--out", tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"already holds a model\.safetensors"):
        run(pickled, "--out", tmp_path, "--data-name", "another")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
