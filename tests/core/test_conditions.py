"""The bundle of conditions: what a network takes, in files and in calls."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.card import Card, CheckpointError, Dataset, read_card
from fewstep.checkpoint import at_resolution, load_denoiser, save_checkpoint
from fewstep.conditions import Condition, Conditions, conditions_from_json, guidance_weight, low_image
from fewstep.network import UNet
from fewstep.precond import Denoiser, edm_scalings, guided
from fewstep.unet_config import UNetConfig, config_fields

# A number, a vector, a map to be enlarged and one of the image's size: every way into a network.
EVERY = (
    guidance_weight(4.0), Condition("text", (5,), -1.0, 1.0), low_image(3, 4), Condition("mask", (1, 16, 16), 0.0, 1.0),
)  # fmt: skip
CONFIG = UNetConfig(16, 3, classes=2, width=8, mult=(1, 2), blocks=1, patch=2, conditions=EVERY)
ENLARGING = replace(
    CONFIG, classes=0, inner_attention=False, conditions=EVERY[2:3], precond="residual", sigma_data=0.1
)  # fmt: skip


def network(config: UNetConfig, seed: int = 0) -> UNet:
    """With weights that are nowhere zero, so that every input matters."""
    torch.manual_seed(seed)
    made = UNet(config).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    return made


def values(conditions: Conditions, rows: int, seed: int = 1) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        each.name: each.low + (each.high - each.low) * torch.rand(rows, *each.shape, generator=rng)
        for each in conditions
    }


def saved(folder: Path, config: UNetConfig, sigma_data: float = 0.5) -> Path:
    data = Dataset("random", "0" * 64, "MIT", 0)
    card = Card("student", config_fields(config), sigma_data, "", data, (), {1: (1.0,)})
    save_checkpoint(folder, network(config).state_dict(), card)
    return folder


@pytest.mark.parametrize("name", [condition.name for condition in EVERY])
def test_every_condition_reaches_the_output_of_its_own_row_alone(name: str):
    denoiser, given = Denoiser(network(CONFIG), 0.5, 2, EVERY), values(EVERY, 2)
    x, sigma, labels = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 2.0]), torch.tensor([0, 1])
    before = denoiser.given(**given)(x, sigma, labels)
    changed = given[name].clone()
    changed[1] = values(EVERY, 2, seed=2)[name][1]
    after = denoiser.given(**{**given, name: changed})(x, sigma, labels)
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-3


def test_an_absent_condition_has_its_default_or_is_asked_for():
    denoiser = Denoiser(network(CONFIG), 0.5, 2, EVERY)
    given = values(EVERY, 1)
    del given["guidance"]
    x, sigma = torch.randn(1, 3, 16, 16), torch.ones(1)
    expected = denoiser.given(**given, guidance=torch.ones(1))(x, sigma)
    assert torch.equal(denoiser.given(**given)(x, sigma), expected)
    filled = denoiser.filled(x).bound
    assert {name: value.mean().item() for name, value in filled.items()} == {
        "guidance": 1,
        "text": 0,
        "low": 0,
        "mask": 0.5,
    }
    with pytest.raises(ValueError, match=r"needs text, of shape \(1, 5\)"):
        denoiser(x, sigma)
    with pytest.raises(ValueError, match=r"low has the shape \(1, 3, 8, 8\); this network takes \(1, 3, 4, 4\)"):
        denoiser.given(**{**given, "low": torch.zeros(1, 3, 8, 8)})(x, sigma)
    with pytest.raises(ValueError, match="takes guidance, low, mask, text, not weight"):
        denoiser.given(weight=torch.ones(1))


def test_a_network_without_conditions_is_stored_as_before(tmp_path: Path):
    plain = replace(CONFIG, conditions=())
    assert not {"conditions", "inner_attention"} & config_fields(plain).keys()
    assert not any("conditions" in name for name in UNet(plain).state_dict())
    saved(tmp_path, plain)
    assert "conditions" not in (tmp_path / "card.json").read_text()
    assert read_card(tmp_path).conditions == ()


def test_a_checkpoint_brings_its_conditions_back(tmp_path: Path):
    denoiser, card = load_denoiser(saved(tmp_path, CONFIG))
    assert denoiser.conditions == card.conditions == EVERY
    assert conditions_from_json(json.loads(json.dumps([asdict(each) for each in EVERY]))) == EVERY
    changed = (tmp_path / "card.json").read_text().replace('"guidance"', '"onehot"')
    (tmp_path / "card.json").write_text(changed)
    with pytest.raises(CheckpointError, match="a condition cannot be called 'onehot'"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (("x", (), 0.0, 1.0), "cannot be called 'x'"),
        (("Text", (3,), 0.0, 1.0), "cannot be called 'Text'"),
        (("low", (3, 4), 0.0, 1.0), r"a number .*, a vector .* or a map"),
        (("low", (3, 0, 4), 0.0, 1.0), "not \\(3, 0, 4\\)"),
        (("low", (), 1.0, 1.0), "from a lower to a higher number"),
        (("low", (), 0.0, float("nan")), "from a lower to a higher number"),
        (("low", (), 0.0, 1.0, 2.0), "the default 2.0 of low is not from 0.0 to 1.0"),
        (("low", (), 0.0, 1.0, None, "int64"), "has the type int64"),
    ],
)
def test_what_no_network_can_take_is_refused(condition: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Condition(*condition)


def test_an_enlarging_network_is_preconditioned_for_what_the_enlarged_image_lacks():
    inner, given = network(ENLARGING), values(EVERY[2:3], 3)
    raw = network(replace(ENLARGING, precond="edm"))  # the same weights
    x, sigma = torch.randn(3, 3, 16, 16), torch.tensor([0.01, 0.1, 1.0])
    enlarged = torch.nn.functional.interpolate(given["low"], size=(16, 16), mode="bilinear")
    scalings = edm_scalings(sigma, 0.1)
    c_skip, c_out, c_in = (factor[:, None, None, None] for factor in scalings[:3])
    lacking = raw(c_in * (x - enlarged), scalings.c_noise, torch.zeros(3, 0), given["low"])
    unknown = enlarged + c_skip * (x - enlarged) + c_out * lacking
    squares = lambda image: torch.nn.functional.avg_pool2d(image, 4)  # noqa: E731
    expected = unknown + (given["low"] - squares(unknown)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    denoiser = Denoiser(inner, 0.1, 0, EVERY[2:3])
    found = denoiser.given(**given)(x, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(squares(found), given["low"], rtol=0, atol=1e-5)


def test_convolutions_alone_run_at_another_resolution(tmp_path: Path):
    denoiser, card = load_denoiser(saved(tmp_path, ENLARGING, sigma_data=0.1))
    large, of_large = at_resolution(denoiser, card, 64)
    assert of_large.image_shape == (3, 64, 64) and of_large.weights == card.weights
    assert [condition.shape for condition in of_large.conditions] == [(3, 16, 16)]
    made = large.given(low=torch.zeros(1, 3, 16, 16))(torch.randn(1, 3, 64, 64), torch.ones(1))
    assert made.shape == (1, 3, 64, 64)
    with pytest.raises(CheckpointError, match="cannot make images of 18x18"):
        at_resolution(denoiser, card, 18)
    attending = saved(tmp_path / "attending", CONFIG)
    with pytest.raises(CheckpointError, match="has attention and makes images of 16 pixels a side alone"):
        at_resolution(*load_denoiser(attending), 64)


def test_guidance_goes_beyond_the_class():
    def unlike(x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray) -> np.ndarray:
        return np.broadcast_to(onehot.sum(axis=1)[:, None, None, None], x.shape)  # 1 with a class, 0 without

    denoiser = Denoiser(unlike, 0.5, 2)
    x, sigma, labels = np.zeros((2, 1, 2, 2)), np.ones(2), np.array([1, -1])
    alone, told = denoiser(x, sigma), denoiser(x, sigma, np.array([1, 1]))
    found = guided(denoiser, np.array([3.0, 3.0]))(x, sigma, labels)
    np.testing.assert_allclose(found[0], alone[0] + 3 * (told[0] - alone[0]))
    np.testing.assert_allclose(found[1], alone[1])  # a row without a class is not guided
    np.testing.assert_allclose(guided(denoiser, 1.0)(x, sigma, labels), denoiser(x, sigma, labels))
