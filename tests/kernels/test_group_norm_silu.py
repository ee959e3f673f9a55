"""Fused group norm, scale and shift, SiLU: kernel against reference, reference against torch in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kernels import group_norm_silu as module
from kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference, launch_group_norm_silu
from tests.kernels.cases import DEVICE, FORMATS

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHAPES = [(2, 8, 4, 4, 2), (1, 6, 5, 7, 2), (2, 12, 3, 3, 4), (3, 4, 1, 1, 1), (1, 5, 2, 3, 5)]  # B, C, H, W, groups


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: str = "channels_first"
) -> tuple[tuple[Tensor, int, Tensor, Tensor, float], dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, breadth, groups = shape
    normal = lambda *size: torch.randn(*size, generator=generator).to(DEVICE, dtype)  # noqa: E731
    x = (normal(batch, channels, height, breadth) * 3 + 1).contiguous(memory_format=FORMATS[layout])
    scale, shift = normal(batch, 2 * channels).chunk(2, dim=1)
    return (x, groups, normal(channels), normal(channels), 1e-5), {
        "add": normal(batch, channels), "scale": scale, "shift": shift,
    }  # fmt: skip


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[actual.dtype], atol=TOLERANCE[actual.dtype])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_equals_the_reference_in_ragged_shapes(shape: tuple[int, ...], layout: str):
    arguments, more = inputs(shape, layout=layout)
    close(launch_group_norm_silu(*arguments, **more), group_norm_silu_reference(*arguments, **more))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("given", [(), ("add",), ("scale", "shift")], ids=str)
@pytest.mark.parametrize("activate", [True, False])
def test_the_kernel_equals_the_reference_with_whatever_is_given(dtype: torch.dtype, given: tuple[str, ...], activate):
    arguments, more = inputs((2, 8, 3, 4, 2), dtype, "channels_last")
    more = {name: more[name] for name in given}
    actual = launch_group_norm_silu(*arguments, **more, activate=activate)
    close(actual, group_norm_silu_reference(*arguments, **more, activate=activate))


@pytest.mark.parametrize("layout", FORMATS)
def test_a_map_of_several_tiles_equals_the_reference(layout: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_TILE", 64)
    arguments, more = inputs((1, 8, 9, 7, 2), layout=layout)
    close(launch_group_norm_silu(*arguments, **more), group_norm_silu_reference(*arguments, **more))


def test_a_large_mean_costs_no_accuracy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_TILE", 64)
    (x, groups, weight, bias, eps), _ = inputs((1, 4, 8, 8, 1))
    x = (x - 1) / 3 + 1000
    expected = functional.silu(functional.group_norm(x.double(), groups, weight.double(), bias.double(), eps))
    for run in (launch_group_norm_silu, group_norm_silu_reference):
        torch.testing.assert_close(run(x, groups, weight, bias, eps), expected.float(), rtol=1e-3, atol=5e-4)


def test_the_reference_is_the_formula():
    (x, groups, weight, bias, eps), more = inputs((2, 8, 4, 4, 2))
    add, scale, shift = (value[:, :, None, None].double() for value in more.values())
    normed = functional.group_norm(x.double() + add, groups, weight.double(), bias.double(), eps)
    expected = functional.silu(normed * (1 + scale) + shift).float()
    close(group_norm_silu_reference(x, groups, weight, bias, eps, **more), expected)


def test_an_empty_batch_gives_an_empty_map():
    arguments, more = inputs((0, 8, 4, 4, 2))
    assert launch_group_norm_silu(*arguments, **more).shape == (0, 8, 4, 4)
    assert group_norm_silu(*arguments, **more).shape == (0, 8, 4, 4)


def test_what_does_not_fit_is_refused_in_a_sentence():
    (x, _, weight, bias, eps), more = inputs((1, 6, 2, 2, 2))
    with pytest.raises(ValueError, match="do not divide into 4 groups"):
        group_norm_silu(x, 4, weight, bias, eps)
    with pytest.raises(ValueError, match="come together"):
        group_norm_silu(x, 2, weight, bias, eps, scale=more["scale"])
    with pytest.raises(ValueError, match="neither contiguous nor channels_last"):
        launch_group_norm_silu(torch.zeros(1, 6, 2, 4, device=DEVICE).transpose(2, 3), 2, weight, bias, eps)
