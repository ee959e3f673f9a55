"""The search for levels in an extractor's features: the distance is the table's, and the command writes the card."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.calibrate import BATCH, ExtractorSpace
from fewstep.card import Card, read_card
from fewstep.checkpoint import save_checkpoint
from fewstep.metrics.cache import Cache
from fewstep.metrics.extractors.fashion128 import load_extractor
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.network import UNet
from fewstep.unet_config import UNetConfig
from tests.benchmarks.worlds import image_set, pixel_net, reference
from trainer.data.format import ImageSet, sigma_data
from trainer.run.artifacts import describe

ROOT = Path(__file__).resolve().parents[2]


def test_the_distance_is_that_of_all_images_to_the_training_images(tmp_path):
    against = reference(Cache(tmp_path), replace(pixel_net(), axes=3))
    some = image_set(BATCH + 7, 5)
    features, _ = against.features(some.images)
    expected = frechet_distance(Moments.of(features), against.moments)
    seeds = range(len(some.images))
    assert ExtractorSpace(against).distance(some.images, some.labels, seeds) == pytest.approx(expected, rel=1e-5)
    darker = (some.images // 2).astype(np.uint8)
    assert ExtractorSpace(against).distance(darker, some.labels, seeds) > 10 * expected


@pytest.fixture
def student(fashion_2000: ImageSet, tmp_path: Path) -> Path:
    """A tiny one, untrained."""
    torch.manual_seed(1)
    network = UNet(UNetConfig(resolution=32, channels=1, classes=10, width=16, mult=(1,), blocks=1, patch=4))
    for parameter in network.parameters():  # outputs of a fresh U-Net are zero
        torch.nn.init.normal_(parameter, std=0.1)
    deviation, data = sigma_data(fashion_2000.images), fashion_2000.provenance()
    card = Card("student", describe(network), deviation, "", data, fashion_2000.class_names)
    levels = {1: (80.0,), 2: (80.0, 3.5)}
    card = replace(card, levels=levels, parent="0" * 64, metrics={"distance": {"2": 1.0}}, training={})
    save_checkpoint(tmp_path / "student", network.state_dict(), card)
    return tmp_path / "student"


def calibrate(model: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/calibrate.py", "--model", str(model), "--device", "cpu", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_the_command_leaves_a_card_that_names_its_judge(student, zips, tmp_path):
    before = read_card(student)
    done = calibrate(student, "--steps", "2", "--images", "140", "--cache", str(tmp_path / "cache"), *zips)
    assert done.returncode == 0, done.stderr
    card = read_card(student)
    note = card.training["calibration"]["2"]
    assert note["space"] == f"fashion128 {load_extractor().facts['network_sha256']}" and "second" not in note
    assert note["after"] <= note["before"] and note["images"] == 140
    assert card.levels[2] == (tuple(note["found"]) if note["accepted"] else before.levels[2])
    assert card.levels[1] == before.levels[1] and card.weights == before.weights
    assert f"{note['before']:.4g} -> {note['after']:.4g}" in done.stdout


def test_what_does_not_fit_is_refused_with_a_sentence(student, zips, tmp_path):
    cache = ["--cache", str(tmp_path / "cache")]
    for more, sentence in (
        (["--steps", "3"], "no levels to search for 3 calls; choose --steps from 1, 2"),
        (["--extractor", "inception-2015"], "inception-2015 needs its weight file"),
        (["--inception", "weights.pt"], "--inception is for --extractor inception-2015"),
        (["--extractor", "fashion128", "effl0-pca64", "inception-2015"], "one judge and one that may object"),
        (["--images", "1"], "--images must be at least 2"),
    ):
        done = calibrate(student, *more, *cache, *zips)
        assert done.returncode and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr
    card = json.loads((student / "card.json").read_text())
    card["sigma_data"] *= 2
    (student / "card.json").write_text(json.dumps(card))
    done = calibrate(student, *cache, *zips)
    assert done.returncode and "Traceback" not in done.stderr and "made for other images" in done.stderr, done.stderr
