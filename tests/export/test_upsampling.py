"""Convolutions of enlarged maps: the same function, computed on the small map."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from export.to_onnx import network_to_onnx
from export.upsampling import ThenEnlarged, enlarged_last
from fewstep.ddpm_network import DDPMNetwork, Upsampler
from fewstep.network import Conv, UNet
from fewstep.unet_config import UNetConfig
from tests.export.conftest import CONFIGS
from tests.export.test_half import DDPM, network, rows


@pytest.mark.parametrize(("width", "height"), [(8, 8), (5, 3), (1, 1)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_is_the_same_before_enlarging(kernel: int, width: int, height: int):
    torch.manual_seed(0)
    conv = Conv(3, 5, kernel, "up")
    for tensor in conv.parameters():  # a fresh bias is zero
        nn.init.normal_(tensor)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    net = nn.Sequential(conv).double().requires_grad_(False)
    form = enlarged_last(net)
    assert isinstance(form[0], ThenEnlarged if kernel == 1 else nn.ConvTranspose2d)
    torch.testing.assert_close(form(x), net(x), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_network_is_the_same_function_and_is_not_changed_itself(kind: str):
    net = network(kind)
    form = enlarged_last(net)
    inputs = rows(net)
    torch.testing.assert_close(form(*inputs), net(*inputs), atol=2e-5, rtol=1e-4)
    assert not any(isinstance(module, nn.ConvTranspose2d | ThenEnlarged) for module in net.modules())


def test_only_nearest_neighbour_upsampling_is_moved():
    """A longer filter would make kernels of 6x6, and a convolution of the small map sees nothing twice."""
    for config in (UNetConfig(16, 1, 0, 8, (1, 1), 1, resample=(1, 3, 3, 1)), UNetConfig(16, 1, 0, 8, (1,), 1)):
        form = enlarged_last(UNet(config))
        assert not any(isinstance(module, nn.ConvTranspose2d | ThenEnlarged) for module in form.modules())


def test_diffusers_upsamplers_are_moved_too():
    torch.manual_seed(0)
    net = DDPMNetwork(DDPM).eval()
    assert any(isinstance(module, Upsampler) for module in net.modules())
    form = enlarged_last(net)
    assert not any(isinstance(module, Upsampler) for module in form.modules())
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([-0.5, 0.3]), torch.zeros(2, 0)
    torch.testing.assert_close(form(*inputs), net(*inputs), atol=2e-5, rtol=1e-4)


def test_files_for_cpus_have_it(checkpoint: Callable[[str], Path]):
    assert "ConvTranspose" in operators(onnx.load(checkpoint("adm") / "engine" / "network.onnx"))


def test_files_in_half_precision_have_it_not():
    net = UNet(UNetConfig(8, 1, 0, 8, (1, 1), 1, style="adm"))
    found = operators(onnx.load_from_string(network_to_onnx(net, weights_dtype="float32", dtype="float16")))
    assert "Resize" in found and "ConvTranspose" not in found


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}
