"""Sentences where tracebacks were: exit 2, what was given, what is allowed."""

import os
import sys
from dataclasses import replace

import pytest
import torch

from fewstep.card import CheckpointError
from tests.trainer.run.test_loop import interrupt_after
from tests.trainer.tiny import run_options
from trainer.__main__ import main
from trainer.commands import train_teacher
from trainer.data.format import DataError, write_image_set
from trainer.data.sources.folder import read_folder
from trainer.methods.edm import Teacher
from trainer.run.loop import DivergedError


@pytest.fixture
def run(monkeypatch, capsys, thumbnails, tmp_path):
    """A teacher command with these further flags: its exit status and what it said."""
    write_image_set(tmp_path / "thumbnails.zip", thumbnails)

    def command(*flags, data=tmp_path / "thumbnails.zip"):
        line = ["teacher", "--recipe", "digits", "--data", data, "--images", 8, "--batch", 8, "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["trainer", *map(str, line), *flags])
        code = main()
        return code, capsys.readouterr().err

    return command


def test_a_size_that_does_not_fit_the_network(run, thumbnails, tmp_path):
    odd = replace(thumbnails, images=thumbnails.images[:, :7, :7])
    write_image_set(tmp_path / "odd.zip", odd)
    code, said = run(data=tmp_path / "odd.zip")
    assert code == 2 and "is 7x7" in said and "multiples of 2" in said and "--resolution 6 or 8" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(run):
    code, said = run("--device", "cuda")
    assert code == 2 and "--device cuda: " in said and "--device cpu" in said


def test_a_device_that_does_not_exist(run):
    code, said = run("--device", "tpu")
    assert code == 2 and "choose cpu or cuda" in said


@pytest.mark.parametrize("size", ["2", "many", "0"])
def test_a_world_size_that_is_left_over(run, monkeypatch, size):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", size)
    code, said = run("--device", "cpu")
    assert code == 2 and f"WORLD_SIZE is {size}" in said.replace("'", "") and "nset" in said


def test_a_class_name_that_is_not_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(DataError, match="is not UTF-8; rename it"):
        read_folder(tmp_path)


@pytest.mark.usefixtures("tiny_recipe")
def test_divergence_before_the_first_checkpoint_names_none(thumbnails, tmp_path, monkeypatch):
    monkeypatch.setattr(Teacher, "update", lambda *_: {"loss": torch.tensor(float("nan"))})
    with pytest.raises(DivergedError, match=r"there is no checkpoint yet\. Start again") as caught:
        train_teacher(run_options(tmp_path), thumbnails)
    assert "--resume" not in str(caught.value) and "intact" not in str(caught.value)


@pytest.mark.usefixtures("tiny_recipe")
@pytest.mark.parametrize("content", [b"nothing of the kind", b""])
def test_no_two_refusals_send_the_user_in_a_circle(thumbnails, tmp_path, monkeypatch, content):
    interrupt_after(2, Teacher, monkeypatch)
    train_teacher(run_options(tmp_path), thumbnails)
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="choose another --out") as resumed:
        train_teacher(run_options(tmp_path, resume=True), thumbnails)
    assert "without --resume" not in str(resumed.value)
