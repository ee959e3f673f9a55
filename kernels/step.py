"""One step of every image in flight, after a network call and before the next: denoise, re-noise, next input or pixels.

Rows differ in level, step, seed and label; arrays on the device hold these values. `fewstep.step` is the same in numpy.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.initial_noise import NOISE
from kernels.network_input import (
    element_offset,
    rgb_quads,
    write_condition,
    write_latent,
    write_network_input_reference,
    write_noisy,
)
from kernels.philox import STREAM_NOISE, normals_reference, normals_rgb, normals_tile
from kernels.rows import CLAMP, KNOWN, Inpainting, NetworkInput, Rows, Tile, check_state, layout

FLAG_CLAMP, FLAG_KNOWN = tl.constexpr(CLAMP), tl.constexpr(KNOWN)


def step(
    x: Tensor,
    output: Tensor,
    rows: Rows,
    network_input: NetworkInput,
    pixels: Tensor,
    broken: Tensor,
    *,
    stamp: int,
    inpainting: Inpainting | None = None,
) -> None:
    """Advance every row by the call whose output is given, in place and without synchronisation.

    x [slots, C, H, W] float32: updated where more calls follow. output [*, C, H, W], any float dtype. These and the
    network's input are NCHW or channels_last, each for itself. Rows with more calls to come get their row `target` of
    the network's input; on its last step an image goes to row `target` of pixels [*, H, W, C] uint8.

    broken [>= n] int32: entry i becomes `stamp` where the output of row i is not finite, and stays as it is elsewhere,
    so that with a stamp of its own for every step it never has to be cleared. Raises ValueError when the buffers do
    not fit together.
    """
    run = launch_step if x.is_cuda else step_reference
    run(x, output, rows, network_input, pixels, broken, stamp=stamp, inpainting=inpainting)


def step_reference(
    x: Tensor, output: Tensor, rows: Rows, network_input: NetworkInput, pixels: Tensor, broken: Tensor, *,
    stamp: int, inpainting: Inpainting | None = None,
) -> None:  # fmt: skip
    """`step` in torch."""
    check_state(x, network_input)
    slot, target = rows.slot.long(), rows.target.long()
    f = output[rows.source.long()].float()
    broken[: len(rows)][~f.isfinite().flatten(1).all(dim=1)] = stamp

    denoised = rows.c_skip[:, None, None, None] * x[slot] + rows.c_out[:, None, None, None] * f
    clamp = ((rows.flags & CLAMP) != 0)[:, None, None, None]
    denoised = torch.where(clamp, denoised.clamp(-1.0, 1.0), denoised)
    if inpainting is not None:
        known = ((rows.flags & KNOWN) != 0)[:, None, None, None] & inpainting.mask[slot]
        denoised = torch.where(known, inpainting.image[slot], denoised)

    more = rows.sigma_next > 0
    pixels[target[~more]] = to_pixels_reference(denoised[~more])
    rows = rows[more]
    noise = normals_reference(rows.seed, rows.call, STREAM_NOISE, tuple(x.shape[1:]))
    noisy = denoised[more] + rows.sigma_next[:, None, None, None] * noise
    x[rows.slot.long()] = noisy
    write_network_input_reference(noisy, rows, network_input)


def to_pixels_reference(images: Tensor) -> Tensor:
    """[n, C, H, W] nominally in [-1, 1] -> uint8 [n, H, W, C]; values outside are clipped (`fewstep.pixels`)."""
    return (images * 127.5 + 128.0).floor().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def launch_step(
    x: Tensor, output: Tensor, rows: Rows, network_input: NetworkInput, pixels: Tensor, broken: Tensor, *,
    stamp: int, inpainting: Inpainting | None = None, tile: Tile | None = None,
) -> None:  # fmt: skip
    """`step` as one kernel; tile: for tuning."""
    check_state(x, network_input)
    if output.shape[1:] != x.shape[1:]:
        raise ValueError(f"the network gave {tuple(output.shape)} for images of {tuple(x.shape[1:])}")
    if not len(rows):
        return
    orders = layout(x), layout(network_input.x), layout(output)
    if inpainting is not None:
        inpainting.check(x)
    channels, area = x.shape[1], x.shape[2] * x.shape[3]
    extra, classes = network_input.x.shape[1] - channels, network_input.onehot.shape[1]
    tile = Tile.checked(tile, channels, extra, area, *orders)
    kernel: Any = step_kernel
    kernel[tile.grid(channels, extra, area, len(rows))](
        x, output, network_input.x, network_input.c_noise, network_input.onehot, pixels, broken,
        None if inpainting is None else inpainting.mask,
        None if inpainting is None else inpainting.image,
        rows.slot, rows.source, rows.target, rows.c_skip, rows.c_out, rows.sigma_next, rows.c_in, rows.c_noise,
        rows.seed, rows.call, rows.label, rows.flags, stamp,
        CHANNELS=channels, EXTRA=extra, AREA=area, CLASSES=classes,
        CLASS_TILE=min(triton.next_power_of_2(max(classes, 1)), 1024),
        X_LAST=orders[0] == "channels_last", INPUT_LAST=orders[1] == "channels_last",
        OUTPUT_LAST=orders[2] == "channels_last", TILE_C=tile.channels, TILE_P=tile.positions, PARTS=tile.parts,
        RGB=tile.rgb, num_warps=tile.warps, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["stamp"])
def step_kernel(
    x_ptr, output_ptr, input_ptr, c_noise_ptr, onehot_ptr, pixels_ptr, broken_ptr, mask_ptr, known_ptr,
    slot_ptr, source_ptr, target_ptr, c_skip_ptr, c_out_ptr, sigma_next_ptr, c_in_ptr, row_c_noise_ptr,
    seed_ptr, call_ptr, label_ptr, flags_ptr, stamp,
    CHANNELS: tl.constexpr, EXTRA: tl.constexpr, AREA: tl.constexpr, CLASSES: tl.constexpr, CLASS_TILE: tl.constexpr,
    X_LAST: tl.constexpr, INPUT_LAST: tl.constexpr, OUTPUT_LAST: tl.constexpr, TILE_C: tl.constexpr,
    TILE_P: tl.constexpr, PARTS: tl.constexpr, RGB: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of positions, groups of image channels and behind them of latent channels, rows."""
    first_position, group, row = tl.program_id(0) * (TILE_P * PARTS), tl.program_id(1), tl.program_id(2)
    target = tl.load(target_ptr + row).to(tl.int64)
    sigma_next = tl.load(sigma_next_ptr + row)
    seed, call = tl.load(seed_ptr + row), tl.load(call_ptr + row)
    image_groups: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C

    if group < image_groups:
        slot, source = tl.load(slot_ptr + row).to(tl.int64), tl.load(source_ptr + row).to(tl.int64)
        c_skip, c_out, c_in = tl.load(c_skip_ptr + row), tl.load(c_out_ptr + row), tl.load(c_in_ptr + row)
        flags = tl.load(flags_ptr + row)
        x_ptr += slot * (CHANNELS * AREA)
        if mask_ptr is not None:
            mask_ptr += slot * (CHANNELS * AREA)
            known_ptr += slot * (CHANNELS * AREA)
        output_ptr += source * (CHANNELS * AREA)
        pixels_ptr += target * (CHANNELS * AREA)
        broken_ptr += row
        image_input_ptr = input_ptr + target * ((CHANNELS + EXTRA) * AREA)
        first_channel = group * TILE_C
        for part in range(PARTS):
            first = first_position + part * TILE_P
            if RGB:
                step_rgb_tile(
                    x_ptr, output_ptr, image_input_ptr, pixels_ptr, broken_ptr, mask_ptr, known_ptr, first,
                    c_skip, c_out, c_in, sigma_next, seed, call, flags, stamp, AREA, TILE_P,
                )  # fmt: skip
            else:
                channel = first_channel + tl.arange(0, TILE_C)[:, None]
                position = first + tl.arange(0, TILE_P)[None, :]
                inside = (channel < CHANNELS) & (position < AREA)
                at = element_offset(channel, position, CHANNELS, AREA, X_LAST)
                output_at = element_offset(channel, position, CHANNELS, AREA, OUTPUT_LAST)
                x, f = load_tile(x_ptr, output_ptr, at, output_at, inside)
                stamp_if_broken(broken_ptr, is_finite(f), stamp)
                x = denoised_tile(x, f, mask_ptr, known_ptr, at, inside, c_skip, c_out, flags)
                if sigma_next > 0:  # the same for all programs of a row
                    x += sigma_next * normals_tile(seed, call, NOISE, first_channel, first, AREA, TILE_C, TILE_P)
                    input_at = element_offset(channel, position, CHANNELS + EXTRA, AREA, INPUT_LAST)
                    write_noisy(x_ptr, image_input_ptr, at, input_at, x, c_in, inside)
                else:
                    write_pixels(pixels_ptr, position * CHANNELS + channel, x, inside)
        if (sigma_next > 0) & (group == 0) & (first_position == 0):
            c_noise, label = tl.load(row_c_noise_ptr + row), tl.load(label_ptr + row)
            write_condition(c_noise_ptr, onehot_ptr, target, c_noise, label, CLASSES, CLASS_TILE)
    elif EXTRA:  # noqa: SIM102 - decided when compiling, unlike the next
        if sigma_next > 0:
            first_channel = (group - image_groups) * TILE_C
            write_latent(
                input_ptr, target, seed, call, first_channel, first_position, CHANNELS, EXTRA, AREA, INPUT_LAST,
                TILE_C, TILE_P, PARTS,
            )  # fmt: skip


@triton.jit
def step_rgb_tile(
    x_ptr, output_ptr, input_ptr, pixels_ptr, broken_ptr, mask_ptr, known_ptr, first,
    c_skip, c_out, c_in, sigma_next, seed, call, flags, stamp, AREA: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    """What a step does to TILE_P pixels of three channels that lie side by side in all buffers: `rows.rgb_fits`.

    Of a warp's neighbours a thread has three vectors of four, one behind the other; each offset is one in every buffer.
    """
    quad, a = rgb_quads(first, TILE_P)
    b, c = a + 128, a + 256
    in_a, in_b, in_c = a < 3 * AREA, b < 3 * AREA, c < 3 * AREA
    xa, fa = load_tile(x_ptr, output_ptr, a, a, in_a)
    xb, fb = load_tile(x_ptr, output_ptr, b, b, in_b)
    xc, fc = load_tile(x_ptr, output_ptr, c, c, in_c)
    # After all loads: none of them could pass a store.
    stamp_if_broken(broken_ptr, is_finite(fa) & is_finite(fb) & is_finite(fc), stamp)
    xa = denoised_tile(xa, fa, mask_ptr, known_ptr, a, in_a, c_skip, c_out, flags)
    xb = denoised_tile(xb, fb, mask_ptr, known_ptr, b, in_b, c_skip, c_out, flags)
    xc = denoised_tile(xc, fc, mask_ptr, known_ptr, c, in_c, c_skip, c_out, flags)
    if sigma_next > 0:
        na, nb, nc = normals_rgb(seed, call, NOISE, quad, AREA)
        write_noisy(x_ptr, input_ptr, a, a, xa + sigma_next * na, c_in, in_a)
        write_noisy(x_ptr, input_ptr, b, b, xb + sigma_next * nb, c_in, in_b)
        write_noisy(x_ptr, input_ptr, c, c, xc + sigma_next * nc, c_in, in_c)
    else:
        write_pixels(pixels_ptr, a, xa, in_a)
        write_pixels(pixels_ptr, b, xb, in_b)
        write_pixels(pixels_ptr, c, xc, in_c)


@triton.jit
def load_tile(x_ptr, output_ptr, at, output_at, inside):
    """A tile of the state and of the network's output in float32, from offsets into an image's state and its output."""
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    return x, tl.load(output_ptr + output_at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def denoised_tile(x, f, mask_ptr, known_ptr, at, inside, c_skip, c_out, flags):
    """A tile of the denoised image; at: offsets into what is known of it."""
    x = c_skip * x + c_out * f
    if (flags & FLAG_CLAMP) != 0:
        x = tl.minimum(tl.maximum(x, -1.0), 1.0)
    if mask_ptr is not None:  # noqa: SIM102 - decided when compiling, unlike the next
        if (flags & FLAG_KNOWN) != 0:
            known = tl.load(mask_ptr + at, mask=inside, other=0)
            x = tl.where(known, tl.load(known_ptr + at, mask=known, other=0.0), x)
    return x


@triton.jit
def write_pixels(pixels_ptr, at, x, inside):
    """A tile of an image in uint8, rounded as EDM does and as the reference does."""
    level = tl.minimum(tl.maximum(x * 127.5 + 128.0, 0.0), 255.0)
    tl.store(pixels_ptr + at, level.to(tl.uint8), mask=inside)


@triton.jit
def is_finite(f):
    return tl.abs(f) < float("inf")


@triton.jit
def stamp_if_broken(broken_ptr, finite, stamp):
    """Store the stamp where a tile is not all finite: all stores are of one value, so none has to win.

    Each thread asks for its own four first; a reduction of the whole tile would go through shared memory.
    """
    broken = (~finite).to(tl.int32)
    if finite.shape[1] % 4 == 0:
        broken = tl.sum(tl.reshape(broken, finite.shape[0], finite.shape[1] // 4, 4), axis=2)
    tl.store(broken_ptr + tl.zeros_like(broken), stamp, mask=broken != 0)
