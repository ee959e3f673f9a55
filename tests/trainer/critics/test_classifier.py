"""The classifier of noised images: what it learns, what it takes, what a file of it holds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewstep.card import CheckpointError
from fewstep.outputs import CLASSIFIER_FILE
from tests.trainer.tiny import copied, draws, equal, normals, run_options
from trainer.classify import train_classifier
from trainer.critics.classifier import (
    Classification,
    ClassifierConfig,
    HalvingBlock,
    NoisyClassifier,
    classifier_hash,
    load_classifier,
    save_classifier,
)
from trainer.data.format import DataError, ImageSet
from trainer.data.named import load_recipe_dataset
from trainer.run.compute import Compute
from trainer.settings import AdamConfig

CONFIG = ClassifierConfig(8, 1, 2, 0.5, width=8, features=16, shift=1)
ADAM = AdamConfig(3e-3, (0.9, 0.999), warmup=0.0)


def fresh(**changes) -> NoisyClassifier:
    torch.manual_seed(0)
    return NoisyClassifier(replace(CONFIG, **changes))


def halves(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [count, 1, 8, 8] that are brighter above (class 0) or below (class 1), whatever else is in them."""
    labels = torch.arange(count) % 2
    images = 0.2 * normals(count, 1, 8, 8, seed=seed)
    images[labels == 0, :, :4] += 0.8
    images[labels == 1, :, 4:] += 0.8
    return images, labels


def test_it_learns_to_tell_classes_apart_at_every_level_of_noise():
    method, rng = Classification(fresh(), Compute(), ADAM), draws(1)
    scalars = {}
    for step in range(80):
        images, labels = halves(32, seed=step)
        scalars = method.update(images, labels, step / 80, rng)
    assert scalars["right"] > 0.85
    network = method.networks["classifier"].eval()
    images, labels = halves(64, seed=1000)
    for sigma in (0.03, 0.5):
        noisy = images + sigma * normals(64, 1, 8, 8, seed=7)
        right = (network(noisy, torch.full((64,), sigma)).argmax(dim=1) == labels).float().mean()
        assert right > 0.9, sigma


@pytest.mark.parametrize(
    ("side", "sides"), [(8, (1,)), (16, (4, 1)), (32, (8, 4, 1)), (28, (7, 4, 1)), (64, (16, 8, 4, 1))]
)
def test_maps_halve_down_to_four_and_end_in_one_vector(side, sides):
    network = fresh(resolution=side).eval()
    maps = network.features(normals(3, 1, side, side), torch.full((3,), 0.2))
    assert tuple(found.shape[-1] for found in maps) == sides
    assert tuple(found.shape[1] for found in maps) == network.feature_widths
    assert network(normals(3, 1, side, side), torch.full((3,), 0.2)).shape == (3, 2)


def test_it_is_told_the_level():
    network = fresh(resolution=16).eval()
    (block,) = (part for part in network.blocks if isinstance(part, HalvingBlock))
    torch.nn.init.normal_(block.level_embedding.weight)  # it begins by ignoring it
    x = normals(1, 1, 16, 16).repeat(2, 1, 1, 1)
    scale = (torch.tensor([0.1, 0.4]) ** 2 + 0.25).sqrt()[:, None, None, None]
    first, second = network(x * scale, torch.tensor([0.1, 0.4]))  # at unit variance both images are the same
    assert not torch.allclose(first, second)


def test_a_file_gives_back_the_network_frozen(tmp_path):
    network = fresh(resolution=16)
    save_classifier(tmp_path, network, {"images": 3})
    loaded = load_classifier(tmp_path)
    assert equal(loaded, copied(network)) and loaded.config == network.config
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    before = classifier_hash(tmp_path)
    save_classifier(tmp_path, loaded, {"images": 4})
    assert classifier_hash(tmp_path) != before


def test_no_file_another_file_and_a_damaged_one_are_sentences(tmp_path):
    with pytest.raises(CheckpointError, match="fewstep trainer classifier"):
        load_classifier(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / CLASSIFIER_FILE)
    with pytest.raises(CheckpointError, match="no readable classifier"):
        load_classifier(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / CLASSIFIER_FILE, metadata={"config": json.dumps({"format": 99})})
    with pytest.raises(CheckpointError, match="another version"):
        load_classifier(tmp_path)
    (tmp_path / CLASSIFIER_FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="train it again"):
        load_classifier(tmp_path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> ImageSet:
    return load_recipe_dataset("digits", tmp_path_factory.mktemp("data"))


def test_the_command_trains_one_and_refuses_its_folder_to_another_run(digits, tmp_path):
    assert train_classifier(run_options(tmp_path), digits)
    config = load_classifier(tmp_path).config
    assert (config.resolution, config.channels, config.classes) == (8, 1, 10)
    with pytest.raises(CheckpointError, match="--resume"):
        train_classifier(run_options(tmp_path), digits)
    assert train_classifier(run_options(tmp_path, images=96, resume=True), digits)


def test_images_without_classes_and_of_odd_sides_are_refused(digits, tmp_path):
    nameless = replace(digits, labels=np.full_like(digits.labels, -1))
    with pytest.raises(DataError, match="without a class"):
        train_classifier(run_options(tmp_path), nameless)
    odd = replace(digits, images=np.ascontiguousarray(digits.images[:, :7, :7]))
    with pytest.raises(DataError, match="even side"):
        train_classifier(run_options(tmp_path), odd)


def test_shifts_are_the_batchs_and_dropout_the_images_whatever_the_number_of_processes(monkeypatch):
    images, labels = halves(8, seed=3)

    def seen(rank: int, ranks: int) -> list[torch.Tensor]:
        method, fed = Classification(fresh(dropout=0.5), Compute(), ADAM), []
        logits = method.logits
        monkeypatch.setattr(method, "logits", lambda *inputs: (fed.extend(inputs), logits(*inputs))[1])
        rows = 8 // ranks
        own = slice(rank * rows, (rank + 1) * rows)
        method.update(images[own], labels[own], 0.5, replace(draws(5), rank=rank, ranks=ranks))
        return fed

    alone, parts = seen(0, 1), [seen(rank, 2) for rank in range(2)]
    for one, several in zip(alone, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(several), one)
    kept = alone[2]
    assert set(kept.unique().tolist()) == {0.0, 2.0} and 0.3 < (kept > 0).float().mean() < 0.7
