"""The mean of checkpoints: its weights, its card, and what has none."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from fewstep.card import Card, CheckpointError, Dataset
from fewstep.checkpoint import load_checkpoint, load_denoiser, save_checkpoint
from fewstep.network import UNet
from tests.trainer.tiny import TINY, lively
from trainer.average import average
from trainer.run.artifacts import describe

DATASET = Dataset("thumbnails", "0" * 64, "CC0-1.0", 8)
CLASSES = tuple(map(str, range(10)))


@pytest.fixture
def snapshots(tmp_path) -> list[Path]:
    for seed in range(3):
        network = lively(TINY, seed=seed, std=0.1)
        card = Card(
            "student", describe(network), 0.5, "", DATASET, CLASSES, {1: (2.5,)}, "its teacher",
            {"images": 10 * seed, "seconds": 1.0 + seed, "start": None}, {"distance": 1.0},
        )  # fmt: skip
        save_checkpoint(tmp_path / str(seed), network.state_dict(), card)
    return [tmp_path / str(seed) for seed in range(3)]


def test_an_average_is_the_mean_of_every_weight_under_the_card_of_the_first(snapshots, tmp_path):
    average(snapshots, tmp_path / "out")
    parts = [load_checkpoint(folder) for folder in snapshots]
    mean, card = load_checkpoint(tmp_path / "out")
    for name, value in mean.items():
        expected = torch.stack([weights[name] for weights, _ in parts]).mean(0)
        torch.testing.assert_close(value, expected)
        assert not torch.equal(value, parts[0][0][name]) or value.std() == 0
    names = [one.weights for _, one in parts]
    assert card.training == {"images": 20, "seconds": 3.0, "start": None, "average_of": names}  # of one run, the last
    assert (card.levels, card.parent, card.metrics) == ({1: (2.5,)}, "its teacher", {})
    assert isinstance(load_denoiser(tmp_path / "out")[0].network, UNet)


def change_training(folder: Path, **training) -> str:
    weights, card = load_checkpoint(folder)
    save_checkpoint(folder, weights, replace(card, training={**card.training, **training}))
    return card.weights


def test_every_run_behind_an_average_is_counted_once(snapshots, tmp_path):
    start = change_training(snapshots[1])
    change_training(snapshots[0], start=start, seconds=7.0, top=0.75)  # continues a snapshot of the other run
    average(snapshots, tmp_path / "out")
    training = load_checkpoint(tmp_path / "out")[1].training
    assert (training["images"], training["seconds"], training["start"]) == (0 + 20, 7.0 + 3.0, None)
    average([snapshots[0], snapshots[2]], tmp_path / "other")
    assert load_checkpoint(tmp_path / "other")[1].training["start"] == start  # no part of this one, and still named


def test_a_silent_card_leaves_the_cost_unknown(snapshots, tmp_path):
    weights, card = load_checkpoint(snapshots[2])
    save_checkpoint(snapshots[2], weights, replace(card, training={"images": 5}))
    average(snapshots, tmp_path / "out")
    assert not {"images", "seconds"} & set(load_checkpoint(tmp_path / "out")[1].training)


@pytest.mark.parametrize("fact", ["role", "network", "sigma_data", "parent"])
def test_what_differs_has_no_average(fact, snapshots, tmp_path):
    _, card = load_checkpoint(snapshots[1])
    wider = replace(TINY, width=TINY.width * 2)
    other = {"role": "teacher", "network": asdict(wider), "sigma_data": 0.4, "parent": "another"}[fact]
    network = lively(wider if fact == "network" else TINY)
    save_checkpoint(snapshots[1], network.state_dict(), replace(card, **{fact: other}))
    with pytest.raises(CheckpointError, match=f"another {fact} than"):
        average(snapshots, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_checkpoint_is_no_average(snapshots, tmp_path):
    with pytest.raises(CheckpointError, match="two checkpoints or more"):
        average(snapshots[:1], tmp_path / "out")
