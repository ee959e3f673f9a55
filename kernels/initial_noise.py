"""The noisy images before the first call: sigma times the initial noise of each seed, on an image where there is one.

That call's input is written as well. `fewstep.step.begin` is the same in numpy.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.network_input import (
    element_offset,
    rgb_quads,
    write_condition,
    write_latent,
    write_network_input_reference,
    write_noisy,
)
from kernels.philox import STREAM_NOISE, normals_reference, normals_rgb, normals_tile
from kernels.rows import STARTED, Inpainting, NetworkInput, Rows, Tile, check_state, layout

NOISE = tl.constexpr(STREAM_NOISE)
FLAG_STARTED = tl.constexpr(STARTED)


def initial_noise(
    x: Tensor, rows: Rows, network_input: NetworkInput, *, inpainting: Inpainting | None = None
) -> None:  # fmt: skip
    """Write x[rows.slot] and row rows.target of the network's input, in place.

    x [slots, C, H, W] float32, NCHW or channels_last; rows: `sigma_next` is the first level, `call` is 0; `source`,
    `c_skip` and `c_out` are not read. Rows flagged STARTED begin at their image in `inpainting`, in [-1, 1]. No
    synchronisation. Raises ValueError when the buffers do not fit.
    """
    run = launch_initial_noise if x.is_cuda else initial_noise_reference
    run(x, rows, network_input, inpainting=inpainting)


def initial_noise_reference(
    x: Tensor, rows: Rows, network_input: NetworkInput, *, inpainting: Inpainting | None = None
) -> None:  # fmt: skip
    """`initial_noise` in torch."""
    check_state(x, network_input)
    noisy = normals_reference(rows.seed, rows.call, STREAM_NOISE, tuple(x.shape[1:]))
    noisy *= rows.sigma_next[:, None, None, None]
    if inpainting is not None:
        started = ((rows.flags & STARTED) != 0)[:, None, None, None]
        noisy = torch.where(started, inpainting.image[rows.slot.long()] + noisy, noisy)
    x[rows.slot.long()] = noisy
    write_network_input_reference(noisy, rows, network_input)


def launch_initial_noise(
    x: Tensor, rows: Rows, network_input: NetworkInput, *,
    inpainting: Inpainting | None = None, tile: Tile | None = None,
) -> None:  # fmt: skip
    """`initial_noise` as one kernel; tile: for tuning."""
    check_state(x, network_input)
    if not len(rows):
        return
    orders = layout(x), layout(network_input.x)
    if inpainting is not None:
        inpainting.check(x)
    channels, area = x.shape[1], x.shape[2] * x.shape[3]
    extra, classes = network_input.x.shape[1] - channels, network_input.onehot.shape[1]
    tile = Tile.checked(tile, channels, extra, area, *orders)
    kernel: Any = initial_noise_kernel
    kernel[tile.grid(channels, extra, area, len(rows))](
        x, network_input.x, network_input.c_noise, network_input.onehot,
        None if inpainting is None else inpainting.image,
        rows.slot, rows.target, rows.sigma_next, rows.c_in, rows.c_noise, rows.seed, rows.call, rows.label, rows.flags,
        CHANNELS=channels, EXTRA=extra, AREA=area, CLASSES=classes,
        CLASS_TILE=min(triton.next_power_of_2(max(classes, 1)), 1024), X_LAST=orders[0] == "channels_last",
        INPUT_LAST=orders[1] == "channels_last", TILE_C=tile.channels, TILE_P=tile.positions, PARTS=tile.parts,
        RGB=tile.rgb, num_warps=tile.warps, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def initial_noise_kernel(
    x_ptr, input_ptr, c_noise_ptr, onehot_ptr, known_ptr,
    slot_ptr, target_ptr, sigma_next_ptr, c_in_ptr, row_c_noise_ptr, seed_ptr, call_ptr, label_ptr, flags_ptr,
    CHANNELS: tl.constexpr, EXTRA: tl.constexpr, AREA: tl.constexpr, CLASSES: tl.constexpr, CLASS_TILE: tl.constexpr,
    X_LAST: tl.constexpr, INPUT_LAST: tl.constexpr, TILE_C: tl.constexpr, TILE_P: tl.constexpr, PARTS: tl.constexpr,
    RGB: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of positions, groups of image channels and behind them of latent channels, rows."""
    first_position, group, row = tl.program_id(0) * (TILE_P * PARTS), tl.program_id(1), tl.program_id(2)
    target = tl.load(target_ptr + row).to(tl.int64)
    seed, call = tl.load(seed_ptr + row), tl.load(call_ptr + row)
    image_groups: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C

    if group < image_groups:
        slot = tl.load(slot_ptr + row).to(tl.int64)
        sigma, c_in, flags = tl.load(sigma_next_ptr + row), tl.load(c_in_ptr + row), tl.load(flags_ptr + row)
        x_ptr += slot * (CHANNELS * AREA)
        if known_ptr is not None:
            known_ptr += slot * (CHANNELS * AREA)
        image_input_ptr = input_ptr + target * ((CHANNELS + EXTRA) * AREA)
        first_channel = group * TILE_C
        for part in range(PARTS):
            first = first_position + part * TILE_P
            if RGB:
                quad, a = rgb_quads(first, TILE_P)
                b, c = a + 128, a + 256
                in_a, in_b, in_c = a < 3 * AREA, b < 3 * AREA, c < 3 * AREA
                na, nb, nc = normals_rgb(seed, call, NOISE, quad, AREA)
                xa = begun_tile(known_ptr, a, sigma * na, in_a, flags)
                xb = begun_tile(known_ptr, b, sigma * nb, in_b, flags)
                xc = begun_tile(known_ptr, c, sigma * nc, in_c, flags)
                write_noisy(x_ptr, image_input_ptr, a, a, xa, c_in, in_a)
                write_noisy(x_ptr, image_input_ptr, b, b, xb, c_in, in_b)
                write_noisy(x_ptr, image_input_ptr, c, c, xc, c_in, in_c)
            else:
                channel = first_channel + tl.arange(0, TILE_C)[:, None]
                position = first + tl.arange(0, TILE_P)[None, :]
                inside = (channel < CHANNELS) & (position < AREA)
                noise = sigma * normals_tile(seed, call, NOISE, first_channel, first, AREA, TILE_C, TILE_P)
                at = element_offset(channel, position, CHANNELS, AREA, X_LAST)
                x = begun_tile(known_ptr, at, noise, inside, flags)
                input_at = element_offset(channel, position, CHANNELS + EXTRA, AREA, INPUT_LAST)
                write_noisy(x_ptr, image_input_ptr, at, input_at, x, c_in, inside)
        if (group == 0) & (first_position == 0):
            c_noise, label = tl.load(row_c_noise_ptr + row), tl.load(label_ptr + row)
            write_condition(c_noise_ptr, onehot_ptr, target, c_noise, label, CLASSES, CLASS_TILE)
    elif EXTRA:
        first_channel = (group - image_groups) * TILE_C
        write_latent(
            input_ptr, target, seed, call, first_channel, first_position, CHANNELS, EXTRA, AREA, INPUT_LAST,
            TILE_C, TILE_P, PARTS,
        )  # fmt: skip


@triton.jit
def begun_tile(known_ptr, at, noise, inside, flags):
    """Noise, on the image at these offsets where the row has one."""
    if known_ptr is not None:  # noqa: SIM102 - decided when compiling, unlike the next
        if (flags & FLAG_STARTED) != 0:
            noise += tl.load(known_ptr + at, mask=inside, other=0.0)
    return noise
