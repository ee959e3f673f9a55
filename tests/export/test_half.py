"""Half precision with its islands, the forms for runtimes and GPUs: the same function as the network itself."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from export.fusible import FusibleAttention, FusibleGroupNorm, fusible
from export.half import Float32Norm, network_in
from export.to_onnx import network_to_onnx
from fewstep.card import CheckpointError
from fewstep.ddpm_network import DDPMConfig, DDPMNetwork
from fewstep.network import Attention, UNet
from fewstep.unet_config import UNetConfig
from tests.export.conftest import CONFIGS, TINY

DDPM = DDPMConfig(8, 1, (32, 32), (False, False), (False, False), groups=8, middle_groups=8, middle_attention=False)


def network(kind: str) -> UNet:
    return filled(CONFIGS[kind])


def filled(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    net = UNet(config).eval().requires_grad_(False)
    for tensor in net.parameters():  # a fresh network returns zeros
        tensor += (
            0.1 * torch.randn_like(tensor)
            if tensor.ndim == 1
            else tensor[0].numel() ** -0.5 * torch.randn(tensor.shape)
        )
    return net


def rows(net: UNet, dtype: torch.dtype = torch.float32):
    config = net.config
    x = torch.randn(3, config.channels + config.extra, config.resolution, config.resolution)
    onehot = torch.eye(max(config.classes, 3))[:3, : config.classes]
    return x.to(dtype), torch.tensor([-1.5, 0.0, 1.1]), onehot.to(dtype)


def relative_rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).pow(2).mean().sqrt() / b.double().pow(2).mean().sqrt())


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_fusible_form_is_the_same_function(kind):
    net = network(kind)
    form = fusible(net)
    assert any(isinstance(module, FusibleGroupNorm) for module in form.modules())
    kinds = {type(module) for module in form.modules()}
    assert FusibleAttention in kinds and Attention not in kinds
    norms = [module for module in form.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == sum(isinstance(module, FusibleGroupNorm) for module in form.modules()), "one was left out"
    assert not any(isinstance(module, FusibleGroupNorm) for module in net.modules()), "the network itself was changed"
    inputs = rows(net)
    torch.testing.assert_close(form(*inputs), net(*inputs), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.05), ("float16", 0.006)])
@pytest.mark.parametrize("kind", CONFIGS)
def test_half_precision_stays_close_and_keeps_its_islands(kind, dtype, bound):
    net = network(kind)
    half = network_in(copy.deepcopy(net), dtype)
    inputs = rows(net)
    output = half(inputs[0].to(getattr(torch, dtype)), inputs[1], inputs[2].to(getattr(torch, dtype)))
    assert output.dtype == getattr(torch, dtype)
    assert relative_rms(output, net(*inputs)) < bound
    inner = half.network
    assert isinstance(inner, UNet) and inner.embedding.linear0.weight.dtype == torch.float32
    norms = [module for module in half.modules() if isinstance(module, nn.GroupNorm)]
    assert norms and all(norm.weight.dtype == torch.float32 for norm in norms)
    assert all(
        module.weight.dtype == getattr(torch, dtype) for module in half.modules() if isinstance(module, nn.Conv2d)
    )


def test_float32_is_the_network_itself():
    net = network("patch")
    assert network_in(net, "float32") is net


def test_a_network_that_predicts_noise_has_no_half_precision():
    with pytest.raises(CheckpointError, match="--dtype float32"):
        network_in(DDPMNetwork(DDPM), "float16")


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("kind", CONFIGS)
def test_fused_blocks_are_the_same_function(kind, dtype, bound):
    pytest.importorskip("triton")
    from export.fused import FusedBlock, fused_network

    net = network(kind)
    fused = fused_network(copy.deepcopy(net), dtype)
    blocks = sum(isinstance(module, FusedBlock) for module in fused.modules())
    assert blocks == len(net.encoder) + len(net.middle) + len(net.decoder)
    assert not any(isinstance(module, Float32Norm) for module in fused.modules())
    inputs = rows(net)
    half = getattr(torch, dtype)
    output = fused(inputs[0].to(half), inputs[1], inputs[2].to(half))
    assert output.dtype == half
    assert relative_rms(output, net(*inputs)) < bound


def test_an_operator_that_onnx_has_not_is_refused_in_words():
    net = filled(replace(TINY, mult=(1,)))

    class Unusual(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    net.out_norm = Unusual()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(CheckpointError, match=r"cannot be written as ONNX of opset 20 .*bessel_j0.*--backend torch"):
        network_to_onnx(net, weights_dtype="float32")
