"""Another average of a finished run: its width, its card, and a run that stores none."""

import shutil

import pytest
import torch

from fewstep.card import CheckpointError
from fewstep.checkpoint import load_checkpoint
from tests.trainer.tiny import run_options
from trainer.average import average
from trainer.commands import train_teacher


def test_any_width_is_made_after_a_run_under_its_card(thumbnails, tmp_path, tiny_recipe):
    assert train_teacher(run_options(tmp_path / "run", images=800), thumbnails)
    served, card = load_checkpoint(tmp_path / "run")
    average(tmp_path / "run", card.training["ema_width"], tmp_path / "same")
    average(tmp_path / "run", 0.2, tmp_path / "wide")
    same, (wide, wider_card) = load_checkpoint(tmp_path / "same")[0], load_checkpoint(tmp_path / "wide")
    for name, value in served.items():
        torch.testing.assert_close(same[name], value, atol=2e-3, rtol=2e-3)  # stored as float16
    assert any(not torch.allclose(wide[name], served[name], atol=2e-3) for name in served)
    assert (wider_card.training["ema_width"], wider_card.training["average_of"]) == (0.2, card.weights)
    with pytest.raises(CheckpointError, match="already holds"):
        average(tmp_path / "run", 0.2, tmp_path / "wide")


def test_a_run_without_stored_averages_is_refused(tiny_teacher, tmp_path):
    shutil.copytree(tiny_teacher, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "averages")
    with pytest.raises(CheckpointError, match="holds no averages"):
        average(tmp_path / "run", 0.1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
