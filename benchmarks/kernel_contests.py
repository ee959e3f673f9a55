"""What the kernels are compared with on a GPU, for `kernel_speed.py`.

"reference" is the kernel's own reference: the same numbers, bit for bit in the noise. "eager" is what one would write
in torch for a full batch, with torch's own generator, which is fused and fast; "compiled" is that after torch.compile.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.precond import edm_scalings
from fewstep.schedule import student_levels
from kernels.group_norm_silu import group_norm_silu_reference, launch_group_norm_silu
from kernels.initial_noise import initial_noise_reference, launch_initial_noise
from kernels.rows import Rows, Tile
from kernels.step import launch_step, step_reference, to_pixels_reference

DTYPE = torch.bfloat16
SETS = 4  # of buffers: together far more than a cache holds, where the images are large
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
TILES = {
    "NCHW": (Tile(1, 512, 4), Tile(1, 512, 4, 2), Tile(1, 512, 4, 8), Tile(1, 1024, 4), Tile(1, 1024, 8, 4)),
    "NHWC": (
        Tile(4, 64, 2, 4), Tile(4, 128, 4, 2), Tile(4, 128, 4, 4), Tile(4, 128, 4, 8), Tile(4, 128, 2, 4),
        Tile(4, 256, 4, 4), Tile(4, 256, 8, 4), Tile(4, 512, 8, 4), Tile(4, 512, 16, 2),
        Tile(4, 32, 1, 4), Tile(1, 512, 4, 4),
        Tile(4, 128, 1, 4, rgb=True), Tile(4, 256, 2, 1, rgb=True), Tile(4, 256, 2, 4, rgb=True),
        Tile(4, 512, 4, 1, rgb=True), Tile(4, 512, 4, 2, rgb=True), Tile(4, 512, 2, 2, rgb=True),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Contest:
    """One operation: the kernel, the bytes it must move, and who else does it."""

    operation: str
    shape: tuple[int, ...]
    layout: str
    moved_bytes: int
    calls: dict[str, Callable[[], Any]]  # "kernel", and some of "eager", "compiled", "reference"


@dataclass
class Buffers:
    """A network's static inputs."""

    x: Tensor
    c_noise: Tensor
    onehot: Tensor


def copy_contest() -> Contest:
    """What the memory gives: 1 GiB copied, read and written."""
    source = torch.empty(2**28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return Contest("copy", (2**28,), "-", 2 * source.nbytes, {"kernel": lambda: target.copy_(source)})


def contests(shapes: tuple[tuple[int, int, int, int], ...], sigma_data: float, tiles: bool) -> Iterator[Contest]:
    """All operations in all shapes [N, C, H, W] and both layouts; tiles: the step in every tile of TILES as well."""
    for shape in shapes:
        for layout in FORMATS:
            yield from _steps(shape, layout, sigma_data, tiles)
            yield _norm((shape[0], 64, *shape[2:]), layout)


def _rows(count: int, last: bool, sigma_data: float) -> Rows:
    """Rows in the middle of eight levels, or all on their last step."""
    levels = torch.tensor((*student_levels(8), 0.0), device="cuda")
    call = torch.arange(count, device="cuda") % 7 + 1
    if last:
        call = torch.full_like(call, 8)
    index = torch.arange(count, dtype=torch.int32, device="cuda")
    before, after = edm_scalings(levels[call - 1], sigma_data), edm_scalings(levels[call], sigma_data)
    return Rows(
        slot=index, source=index, target=index, c_skip=before.c_skip, c_out=before.c_out, sigma_next=levels[call],
        c_in=after.c_in, c_noise=after.c_noise, seed=torch.arange(count, device="cuda"), call=call.int(),
        label=index % 10, flags=torch.zeros_like(index),
    )  # fmt: skip


class Places:
    """What a step reads and writes, in `SETS` places in turn: of one step after another none finds its data cached."""

    def __init__(self, shape: tuple[int, int, int, int], layout: str) -> None:
        count, channels, *sides = shape
        form = FORMATS[layout]
        normal = lambda dtype: torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=form)  # noqa: E731
        self.states = [normal(torch.float32) for _ in range(SETS)]
        self.outputs = [normal(DTYPE) for _ in range(SETS)]
        c_noise, onehot = (torch.zeros(count, *rest, device="cuda") for rest in ((), (10,)))
        self.inputs = [Buffers(normal(DTYPE), c_noise, onehot.to(DTYPE)) for _ in range(SETS)]
        self.pixels = [torch.zeros(count, *sides, channels, dtype=torch.uint8, device="cuda") for _ in range(SETS)]
        self.broken = torch.zeros(count, dtype=torch.int32, device="cuda")
        self.turns = itertools.cycle(range(SETS))

    def step(self, run: Callable[..., None], rows: Rows, **more: Any) -> Callable[[], None]:
        def call() -> None:
            i = next(self.turns)
            x, output, into, pixels = self.states[i], self.outputs[i], self.inputs[i], self.pixels[i]
            run(x, output, rows, into, pixels, self.broken, stamp=1, **more)

        return call

    def start(self, run: Callable[..., None], rows: Rows) -> Callable[[], None]:
        def call() -> None:
            i = next(self.turns)
            run(self.states[i], rows, self.inputs[i])

        return call


def _steps(shape: tuple[int, int, int, int], layout: str, sigma_data: float, tiles: bool) -> Iterator[Contest]:
    places, count = Places(shape, layout), shape[0]
    x, output, into, pixels = places.states[0], places.outputs[0], places.inputs[0], places.pixels[0]
    state, half = x.nbytes, output.nbytes
    middle, last = _rows(count, False, sigma_data), _rows(count, True, sigma_data)
    c_skip, c_out, sigma_next, c_in = (
        row[:, None, None, None] for row in (middle.c_skip, middle.c_out, middle.sigma_next, middle.c_in)
    )

    def eager() -> None:
        noisy = c_skip * x + c_out * output.float() + sigma_next * torch.randn_like(x)
        x.copy_(noisy)
        into.x.copy_(c_in * noisy)

    def eager_last() -> None:
        pixels.copy_(to_pixels_reference(c_skip * x + c_out * output.float()))

    def eager_start() -> None:
        x.copy_(sigma_next * torch.randn_like(x))
        into.x.copy_(c_in * x)

    few = x.numel() < 10**6  # the reference takes 100 bytes an element
    small = {"reference": places.step(step_reference, middle)} if few else {}
    kernel = places.step(launch_step, middle)
    yield Contest(
        "step", shape, layout, 2 * state + 2 * half,
        {"kernel": kernel, "eager": eager, "compiled": torch.compile(eager, dynamic=False), **small},
    )  # fmt: skip
    for tile in TILES[layout] if tiles else ():
        name = f"step, {tile.parts} x {tile.channels} x {tile.positions} by {tile.warps} warps{', rgb' * tile.rgb}"
        tiled = places.step(launch_step, middle, tile=tile)
        yield Contest(name, shape, layout, 2 * state + 2 * half, {"kernel": tiled})
    yield Contest(
        "last step", shape, layout, state + half + pixels.nbytes,
        {"kernel": places.step(launch_step, last), "eager": eager_last},
    )  # fmt: skip
    small = {"reference": places.start(initial_noise_reference, middle)} if few else {}
    yield Contest(
        "initial noise", shape, layout, state + half,
        {"kernel": places.start(launch_initial_noise, middle), "eager": eager_start, **small},
    )  # fmt: skip


def _norm(shape: tuple[int, int, int, int], layout: str) -> Contest:
    x = torch.randn(shape, device="cuda").to(DTYPE).contiguous(memory_format=FORMATS[layout])
    channels = shape[1]
    weight, bias = torch.ones(channels, device="cuda"), torch.zeros(channels, device="cuda")
    add = torch.randn(shape[0], channels, device="cuda").to(DTYPE)
    groups = channels // 4

    def eager() -> Tensor:
        shifted = x + add[:, :, None, None]
        return functional.silu(functional.group_norm(shifted, groups, weight.to(DTYPE), bias.to(DTYPE), 1e-6))

    run = lambda norm: lambda: norm(x, groups, weight, bias, 1e-6, add=add)  # noqa: E731
    return Contest(
        "group norm + SiLU", shape, layout, 2 * x.nbytes,
        {
            "kernel": run(launch_group_norm_silu), "eager": eager, "compiled": torch.compile(eager, dynamic=False),
            "reference": run(group_norm_silu_reference),
        },
    )  # fmt: skip
