"""The comparison of networks: its errors against a closed form, and a row from one update of training."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import inputs, networks
from fewstep.card import Card
from fewstep.checkpoint import save_checkpoint
from fewstep.pixels import from_pixels
from trainer.data.format import write_image_set
from trainer.run.artifacts import describe
from trainer.run.compute import Compute

DATA = inputs.some_of(inputs.fixture(), 64)
SHAPE = "patch 4, width 64, (1, 2), 2 blocks"


def test_errors_of_an_untrained_network_are_those_of_its_skip_connection(tmp_path: Path) -> None:
    network = networks.new_network(SHAPE, DATA, seed=0)
    card = Card("teacher", describe(network), 0.5, "", DATA.provenance(), DATA.class_names)
    save_checkpoint(tmp_path, network.state_dict(), card)
    found = networks.denoising_errors_of(tmp_path, DATA)
    second_moment = float(np.mean(from_pixels(DATA.images) ** 2))
    for sigma in networks.SIGMAS:
        skip = 0.5**2 / (sigma**2 + 0.5**2)  # D(x) = skip x, as the last layer starts at zero
        expected = (skip**2 * sigma**2 + (1 - skip) ** 2 * second_moment) ** 0.5 / sigma
        assert found[f"error_{sigma:g}"] == pytest.approx(expected, rel=0.05)


def test_a_network_is_trained_for_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "COMPUTE", Compute("cpu", "fp32", compile=False))
    monkeypatch.setattr(networks, "TIMED", 1)
    monkeypatch.setattr(networks, "seconds_of_update", lambda *_: 0.5)
    write_image_set(tmp_path / "data.zip", DATA)
    args = argparse.Namespace(
        data=tmp_path / "data.zip", held_out=tmp_path / "data.zip", minutes=1 / 60, keep=tmp_path, seed=0, smoke=True
    )
    row = networks.measured(args, SHAPE)
    assert row["images"] == 128, "one second holds two updates of half a second, of 64 images each"
    assert row["loss"] < 1.5 and row["network"] == SHAPE
    networks.row_file(tmp_path, SHAPE).write_text(json.dumps(row))
    args.networks, args.cores = [SHAPE], []
    assert networks.side_by_side(args) == [row], "what is kept is not trained again"
    assert networks.milliseconds_of_calls(tmp_path, [SHAPE])[0] > 0


def test_a_process_that_fails_is_named(tmp_path: Path) -> None:
    args = argparse.Namespace(
        data=tmp_path / "none.zip", held_out=tmp_path / "none.zip", minutes=1.0, keep=tmp_path, seed=0, cores=[],
        networks=[SHAPE], smoke=True,
    )  # fmt: skip
    with pytest.raises(SystemExit, match=r"patch 4, width 64.*ended with.*\.log"):
        networks.side_by_side(args)
