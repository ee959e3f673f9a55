"""What F is called with next: c_in * x, behind it the latent, c_noise and the class. Reference, then device functions.

Both the initial noise and the step end with this, each within its own kernel, so there is no launcher.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.philox import STREAM_LATENT, normals_reference, normals_tile
from kernels.rows import NetworkInput, Rows

LATENT = tl.constexpr(STREAM_LATENT)


def write_network_input_reference(x: Tensor, rows: Rows, out: NetworkInput) -> None:
    """Write rows.target of out for x [n, C, H, W], one image per row."""
    target, channels = rows.target.long(), x.shape[1]
    out.x[target, :channels] = (rows.c_in[:, None, None, None] * x).to(out.x.dtype)
    latent_shape = (out.x.shape[1] - channels, *x.shape[2:])
    if latent_shape[0]:
        out.x[target, channels:] = normals_reference(rows.seed, rows.call, STREAM_LATENT, latent_shape).to(out.x.dtype)
    out.c_noise[target] = rows.c_noise
    classes = torch.arange(out.onehot.shape[1], device=x.device)
    out.onehot[target] = (rows.label[:, None] == classes).to(out.onehot.dtype)


@triton.jit
def element_offset(
    channel, position, CHANNELS: tl.constexpr, AREA: tl.constexpr, CHANNELS_LAST: tl.constexpr
):  # fmt: skip
    """Where an image of CHANNELS x AREA holds an element: NCHW or channels_last."""
    return position * CHANNELS + channel if CHANNELS_LAST else channel * AREA + position


@triton.jit
def rgb_quads(first, TILE_P: tl.constexpr):
    """TILE_P pixels, a multiple of 128, from the pixel `first` on, of a channels_last image of three channels.

    The numbers of their fours [TILE_P / 4], whose noise the threads make, and offsets into the image [TILE_P / 4, 4]: a
    warp's 128 pixels are 384 neighbours, of which a thread has four here, four that lie 128 further and four 256.
    """
    thread = tl.arange(0, TILE_P // 4)
    at = 3 * first + thread // 32 * 384 + thread % 32 * 4
    return first // 4 + thread, at[:, None] + tl.arange(0, 4)[None, :]


@triton.jit
def write_condition(
    c_noise_ptr, onehot_ptr, target, c_noise, label, CLASSES: tl.constexpr, CLASS_TILE: tl.constexpr
):  # fmt: skip
    """c_noise and the one-hot class of one row: for one program of those that share the row."""
    tl.store(c_noise_ptr + target, c_noise)
    for first in range(0, CLASSES, CLASS_TILE):
        column = first + tl.arange(0, CLASS_TILE)
        hot = tl.where(column == label, 1.0, 0.0).to(onehot_ptr.dtype.element_ty)
        tl.store(onehot_ptr + target * CLASSES + column, hot, mask=column < CLASSES)


@triton.jit
def write_latent(
    input_ptr, target, seed, call, first_channel, first_position, CHANNELS: tl.constexpr, EXTRA: tl.constexpr,
    AREA: tl.constexpr, CHANNELS_LAST: tl.constexpr, TILE_C: tl.constexpr, TILE_P: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A program's share of the latent [EXTRA, H, W], which lies behind the image's CHANNELS."""
    channel = first_channel + tl.arange(0, TILE_C)[:, None]
    for part in range(PARTS):
        first = first_position + part * TILE_P
        position = first + tl.arange(0, TILE_P)[None, :]
        z = normals_tile(seed, call, LATENT, first_channel, first, AREA, TILE_C, TILE_P)
        offset = element_offset(CHANNELS + channel, position, CHANNELS + EXTRA, AREA, CHANNELS_LAST)
        at = input_ptr + target * ((CHANNELS + EXTRA) * AREA) + offset
        tl.store(at, z.to(input_ptr.dtype.element_ty), mask=(channel < EXTRA) & (position < AREA))


@triton.jit
def write_noisy(x_ptr, input_ptr, at, input_at, x, c_in, inside):
    """A tile of the state, and c_in times it in the network's dtype. Offsets from an image and from its input."""
    tl.store(x_ptr + at, x, mask=inside)
    tl.store(input_ptr + input_at, (c_in * x).to(input_ptr.dtype.element_ty), mask=inside)
