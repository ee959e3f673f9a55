"""Residual factors folded into weights: the same function, without the products."""

from dataclasses import replace

import onnx
import pytest
import torch

from export.residuals import residuals_folded
from export.to_onnx import network_to_onnx
from fewstep.network import Block, UNet
from fewstep.unet_config import UNetConfig
from tests.export.conftest import CONFIGS, TINY
from tests.export.test_half import filled, rows

SONGS = {
    "small": TINY,
    "three levels": replace(TINY, resolution=16, mult=(1, 2, 2), blocks=2, attention=(8,)),
    "attention everywhere": replace(TINY, blocks=2, attention=(8, 4)),
    "long filter": replace(TINY, blocks=2, resample=(1, 3, 3, 1)),
    "one level": replace(TINY, mult=(1,), blocks=3),
    "patch": CONFIGS["patch"],
}


def factors(network: UNet) -> list[float]:
    return [module.residual_scale for module in network.modules() if isinstance(module, Block)]


@pytest.mark.parametrize("config", SONGS.values(), ids=list(SONGS))
def test_the_function_stays_and_one_factor_is_left(config: UNetConfig):
    network = filled(config).double()
    folded = residuals_folded(network)
    x, c_noise, onehot = (value.double() for value in rows(network))
    torch.testing.assert_close(folded(x, c_noise, onehot), network(x, c_noise, onehot), atol=1e-12, rtol=1e-12)
    assert sum(factor != 1 for factor in factors(folded)) == 1
    assert set(factors(network)) == {0.5**0.5}, "the network itself was changed"


def test_epsilon_counts_as_before():
    """Maps that are nearly constant, where a group norm's epsilon decides what comes out."""
    network = filled(SONGS["three levels"]).double()
    with torch.no_grad():
        network.stem.conv.weight *= 1e-4  # pyright: ignore[reportOptionalMemberAccess]
    x, c_noise, onehot = (value.double() for value in rows(network))
    folded = residuals_folded(network)
    torch.testing.assert_close(folded(x, c_noise, onehot), network(x, c_noise, onehot), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["ncsnpp", "adm"])
def test_networks_without_such_factors_come_back_as_they_are(kind: str):
    network = filled(CONFIGS[kind])
    assert residuals_folded(network) is network


def test_stored_weights_are_those_of_the_checkpoint():
    """So that float16 holds them: the factor is a product behind them, which a runtime computes once. (The exporter
    computes it for small ones.)"""
    network = filled(replace(TINY, width=32, mult=(1,))).half().float()
    model = onnx.load_from_string(network_to_onnx(network, weights_dtype="float16"))
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    assert any(name.startswith("encoder.0.conv1.") for name in stored)
    assert any(name.startswith("decoder.0.conv1.") for name in stored)
