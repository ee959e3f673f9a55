"""Group norm (Wu & He 2018), scale and shift, SiLU in one pass over the map; statistics in float32.

    y = silu(group_norm(x + add) * (1 + scale) + shift)

add, scale and shift are per image and channel, each optional: DDPM++ adds the noise embedding before the norm, ADM
scales and shifts with it behind (Karras et al. 2022, Table 7).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels.rows import layout

_SECTOR = 32  # bytes that a GPU moves at least
_TILE = 4096  # elements of a group held in registers at a time


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activate: bool = True,
) -> Tensor:
    """x [B, C, H, W] of any float dtype, NCHW or channels_last -> the same shape, dtype and memory order.

    weight, bias [C]; add, scale, shift [B, C]; scale and shift come together. activate: False leaves out the SiLU.
    Not differentiable. Raises ValueError when shapes do not fit.
    """
    run = launch_group_norm_silu if x.is_cuda else group_norm_silu_reference
    return run(x, groups, weight, bias, eps, add=add, scale=scale, shift=shift, activate=activate)


def group_norm_silu_reference(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *,
    add: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None, activate: bool = True,
) -> Tensor:  # fmt: skip
    """`group_norm_silu` in torch."""
    _check(x, groups, scale, shift)
    y = x.float() if add is None else x.float() + add.float()[:, :, None, None]
    y = functional.group_norm(y, groups, weight.float(), bias.float(), eps)
    if scale is not None and shift is not None:
        y = y * (1 + scale.float()[:, :, None, None]) + shift.float()[:, :, None, None]
    y = functional.silu(y) if activate else y
    return y.to(x.dtype).contiguous(memory_format=_format(x))


def launch_group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *,
    add: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None, activate: bool = True,
) -> Tensor:  # fmt: skip
    """`group_norm_silu` as one kernel."""
    _check(x, groups, scale, shift)
    batch, channels, height, breadth = x.shape
    last = layout(x) == "channels_last"
    y = torch.empty_like(x)
    if not x.numel():
        return y
    width, area = channels // groups, height * breadth
    tile_c = triton.next_power_of_2(width)
    # In channels_last a group is a narrow stripe: one program takes as many as fill a sector.
    tile_g = min(triton.next_power_of_2(groups), max(_SECTOR // (tile_c * x.element_size()), 1)) if last else 1
    tile_p = min(triton.next_power_of_2(area), max(_TILE // (tile_c * tile_g), 1))
    rows = [None if extra is None else _rows(extra) for extra in (add, scale, shift)]
    if rows[1] is not None and rows[2] is not None and rows[1].stride(0) != rows[2].stride(0):
        rows[1:] = [rows[1].contiguous(), rows[2].contiguous()]
    kernel: Any = group_norm_silu_kernel
    kernel[(triton.cdiv(groups, tile_g), batch)](
        x, y, weight, bias, *rows,
        0 if rows[0] is None else rows[0].stride(0), 0 if rows[1] is None else rows[1].stride(0), eps,
        GROUPS=groups, WIDTH=width, AREA=area, CHANNELS_LAST=last, ACTIVATE=activate,
        TILE_G=tile_g, TILE_C=tile_c, TILE_P=tile_p,
        num_warps=max(1, min(tile_g * tile_c * tile_p // 256, 8)), enable_fp_fusion=False,
    )  # fmt: skip
    return y


def _check(x: Tensor, groups: int, scale: Tensor | None, shift: Tensor | None) -> None:
    if x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels do not divide into {groups} groups")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift come together; give both or neither")


def _rows(extra: Tensor) -> Tensor:
    """[B, C] with neighbouring channels side by side; half of a wider row, as chunk gives it, is fine as it is."""
    return extra if extra.stride(1) == 1 else extra.contiguous()


def _format(x: Tensor) -> Any:
    return torch.channels_last if layout(x) == "channels_last" else torch.contiguous_format


@triton.jit
def sum_of_group(x, CHANNELS_LAST: tl.constexpr):
    """A tile's sum over the channels and positions of each group, both axes kept."""
    inner = tl.sum(x, axis=2, keep_dims=True)
    return tl.sum(inner, axis=0 if CHANNELS_LAST else 1, keep_dims=True)


@triton.jit
def load_group_tile(
    x_ptr, add_ptr, add_at, start, group, column, first, GROUPS: tl.constexpr, WIDTH: tl.constexpr, AREA: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    """x + add as a tile in float32, the offsets, and which elements exist."""
    position = first + tl.arange(0, TILE_P)
    position = position[:, None, None] if CHANNELS_LAST else position[None, None, :]
    channel = group * WIDTH + column
    inside = (group < GROUPS) & (column < WIDTH) & (position < AREA)
    offset = start + (position * (GROUPS * WIDTH) + channel if CHANNELS_LAST else channel * AREA + position)
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if add_ptr is not None:
        exists = (group < GROUPS) & (column < WIDTH)
        x += tl.load(add_ptr + add_at + channel, mask=exists, other=0.0).to(tl.float32)
    return x, offset, inside


@triton.jit
def group_norm_silu_kernel(
    x_ptr, y_ptr, weight_ptr, bias_ptr, add_ptr, scale_ptr, shift_ptr, add_stride, scale_stride, eps,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, AREA: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ACTIVATE: tl.constexpr, TILE_G: tl.constexpr, TILE_C: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of groups, images. A map that fits one tile is read once and stays in registers.

    A tile has the axes of the memory: positions, groups, channels of a group where it is channels_last, else groups,
    channels, positions. Neighbouring threads then have neighbouring elements.
    """
    image = tl.program_id(1)
    start = image.to(tl.int64) * (GROUPS * WIDTH * AREA)
    add_at, scale_at = image * add_stride, image * scale_stride
    group, column = tl.program_id(0) * TILE_G + tl.arange(0, TILE_G), tl.arange(0, TILE_C)
    group = group[None, :, None] if CHANNELS_LAST else group[:, None, None]
    column = column[None, None, :] if CHANNELS_LAST else column[None, :, None]

    mean = tl.zeros_like(group).to(tl.float32)
    squares = tl.zeros_like(mean)  # sum of squared deviations from the mean
    seen = 0.0
    x, offset, inside = load_group_tile(
        x_ptr, add_ptr, add_at, start, group, column, 0, GROUPS, WIDTH, AREA, CHANNELS_LAST, TILE_P
    )
    for first in range(0, AREA, TILE_P):
        if TILE_P < AREA:
            x, offset, inside = load_group_tile(
                x_ptr, add_ptr, add_at, start, group, column, first, GROUPS, WIDTH, AREA, CHANNELS_LAST, TILE_P
            )
        here = (tl.minimum(AREA - first, TILE_P) * WIDTH).to(tl.float32)
        tile_mean = sum_of_group(tl.where(inside, x, 0.0), CHANNELS_LAST) / here
        away = tl.where(inside, x - tile_mean, 0.0)
        tile_squares = sum_of_group(away * away, CHANNELS_LAST)
        # Chan et al. 1979: merging centred sums loses nothing to cancellation, as E[x^2] - E[x]^2 would.
        delta, total = tile_mean - mean, seen + here
        mean += delta * (here / total)
        squares += tile_squares + delta * delta * (seen * here / total)
        seen = total
    inverse = 1.0 / tl.sqrt_rn(squares / (WIDTH * AREA) + eps)

    channel = group * WIDTH + column
    exists = (group < GROUPS) & (column < WIDTH)
    factor = inverse * tl.load(weight_ptr + channel, mask=exists, other=0.0).to(tl.float32)
    offset_y = tl.load(bias_ptr + channel, mask=exists, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        scale = 1.0 + tl.load(scale_ptr + scale_at + channel, mask=exists, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + scale_at + channel, mask=exists, other=0.0).to(tl.float32)
        factor, offset_y = factor * scale, offset_y * scale + shift
    for first in range(0, AREA, TILE_P):
        if TILE_P < AREA:
            x, offset, inside = load_group_tile(
                x_ptr, add_ptr, add_at, start, group, column, first, GROUPS, WIDTH, AREA, CHANNELS_LAST, TILE_P
            )
        y = (x - mean) * factor + offset_y
        if ACTIVATE:
            y = y * tl.sigmoid(y)
        tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)
