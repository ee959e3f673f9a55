"""Adapters: nothing at first, merged as switched, stored and read back, and refused where they do not belong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.adapters import (
    Adapter,
    AdapterCard,
    adaptable,
    adapted,
    load_adapter,
    load_posterior,
    merged,
    read_adapter_card,
    save_adapter,
    told,
)
from fewstep.ancestral import ancestral_chain
from fewstep.card import Card, CheckpointError, Dataset
from fewstep.checkpoint import save_checkpoint
from fewstep.network import UNet
from fewstep.precond import Denoiser
from fewstep.unet_config import UNetConfig
from tests.trainer.tiny import lively, normals
from trainer.run.artifacts import describe

PRIOR = UNetConfig(resolution=8, channels=1, width=16, mult=(1, 2), blocks=1)
CHAIN = ancestral_chain((20.0, 2.0, 0.2, 0.05), "small")


@pytest.fixture
def network() -> UNet:
    return lively(PRIOR).requires_grad_(False)


def trained(network: UNet, rank: int = 3, seed: int = 1) -> Adapter:
    """An adapter that changes something."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter(network, rank, CHAIN.steps, generator)
    with torch.no_grad():
        for up in adapter.up.values():
            up.normal_(0, 0.05, generator=generator)
        adapter.log_variance.normal_(0, 0.1, generator=generator)
    return adapter


def question() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return normals(2, 1, 8, 8, seed=4), normals(2, seed=5), torch.zeros(2, 0)


def stored(folder: Path, network: UNet) -> Card:
    card = Card("teacher", describe(network), 0.5, "", Dataset("none", "", "none", 0))
    return save_checkpoint(folder, network.state_dict(), card)


def test_a_new_adapter_changes_nothing_and_every_layer_has_one(network: UNet):
    adapter = Adapter(network, 4)
    assert torch.equal(adapted(network, adapter)(*question()), network(*question()))
    assert len(adapter.up) == len(adaptable(network)) > 10
    kinds = {type(network.get_submodule(name.removesuffix(".weight"))) for name in adaptable(network)}
    assert kinds == {torch.nn.Linear, torch.nn.Conv2d}
    sizes = [sum(p.numel() for p in module.parameters()) for module in (Adapter(network, 1), network)]
    assert sizes[0] < 0.1 * sizes[1]


def test_merged_is_switched_on_and_the_prior_stays(network: UNet):
    before, adapter = network(*question()), trained(network)
    on = adapted(network, adapter)(*question())
    assert float((on - before).detach().abs().max()) > 0.05
    torch.testing.assert_close(merged(network, adapter)(*question()), on, rtol=1e-6, atol=1e-6)
    assert torch.equal(network(*question()), before)


def test_gradients_reach_the_adapter_and_nothing_else(network: UNet):
    adapter = Adapter(network, 2)
    adapted(network, adapter)(*question()).square().sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert any(float(up.grad.abs().max()) > 0 for up in adapter.up.values())


def test_an_adapter_is_the_same_after_it_was_stored(network: UNet, tmp_path: Path):
    prior, adapter = stored(tmp_path / "prior", network), trained(network)
    card = save_adapter(tmp_path / "p", adapter, AdapterCard(prior.weights, 3, 0, CHAIN, "class:C:3"))
    read, read_card = load_adapter(tmp_path / "p", network)
    assert read_card == card and read_card.chain == CHAIN
    torch.testing.assert_close(read.tensors(), adapter.tensors(), rtol=0, atol=0)
    assert set(path.name for path in (tmp_path / "p").iterdir()) == {"adapter.safetensors", "adapter.json"}

    x, sigma = normals(2, 1, 8, 8, seed=7), torch.tensor([2.0, 0.2])
    expected = Denoiser(adapted(network, adapter), 0.5)(x, sigma)
    for merge in (True, False):
        loaded = load_posterior(tmp_path / "prior", tmp_path / "p", merge=merge)
        torch.testing.assert_close(loaded.posterior(x, sigma), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded.prior(x, sigma), Denoiser(network, 0.5)(x, sigma), rtol=1e-5, atol=1e-5)
        assert loaded.log_variance == pytest.approx(adapter.log_variance.tolist())


def test_a_prior_that_is_told_y_is_the_prior_until_the_adapter_is_trained(network: UNet):
    card = Card("teacher", describe(network), 0.5, "", Dataset("none", "", "none", 0))
    wider = told(network, card, 4)
    x, c_noise, _ = question()
    torch.testing.assert_close(wider(x, c_noise, torch.eye(4)[:2]), network(*question()))
    assert isinstance(wider, UNet)
    on = adapted(wider, trained(wider))
    ys = [on(x, c_noise, torch.eye(4)[[y, y]]) for y in (0, 1)]
    assert float((ys[0] - ys[1]).abs().max()) > 1e-3
    assert told(network, card, 0) is network


def test_wrong_pairs_and_damaged_files_are_refused_in_a_sentence(network: UNet, tmp_path: Path):
    prior = stored(tmp_path / "prior", network)
    save_adapter(tmp_path / "p", trained(network), AdapterCard("0" * 64, 3, 0, CHAIN, "r"))
    with pytest.raises(CheckpointError, match="was trained beside the network"):
        load_posterior(tmp_path / "prior", tmp_path / "p")
    with pytest.raises(CheckpointError, match="does not fit this network"):
        load_adapter(tmp_path / "p", lively(replace(PRIOR, width=8)))
    with pytest.raises(CheckpointError, match=r"holds no adapter\.json"):
        load_posterior(tmp_path / "prior", tmp_path)
    classes = Card("teacher", {**describe(network), "classes": 3}, 0.5, prior.weights, Dataset("none", "", "none", 0))
    with pytest.raises(CheckpointError, match="3 classes of its own"):
        told(network, classes, 2)
    path = tmp_path / "p" / "adapter.json"
    whole = json.loads(path.read_text())
    for change, words in (
        ({"levels": {"1": [-1.0]}}, "levels must be positive"),
        ({"levels": {"2": [1.0]}}, "the levels of 2 steps are 1"),
        ({"levels": {"1": ["a"]}}, "Expected `float`, got `str`"),
        ({"class_names": "ab"}, "Expected `array`, got `str`"),
        ({"rank": 0}, "it has rank 0"),
        ({"chain": {"sigmas": [1.0]}}, "missing required field `gains`"),
        ({"extra": 1}, "a field 'extra', which this version does not know"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(CheckpointError, match=f"is not a readable adapter card .*{words}"):
            read_adapter_card(tmp_path / "p")
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="it has no format number"):
        read_adapter_card(tmp_path / "p")
    path.write_text(json.dumps(whole))
    (tmp_path / "p" / "adapter.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"not the file that adapter\.json describes"):
        load_adapter(tmp_path / "p", network)
    with pytest.raises(ValueError, match="at least 1"):
        Adapter(network, 0)
