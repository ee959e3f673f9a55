"""Launches to test the step kernels with: buffers of every layout and dtype, rows in every state.

Without a GPU the kernels run in Triton's interpreter on CPU tensors; with one, compiled; with KERNELS=sm_90 in the
environment compiled and in `tests.ptx`, on CPU tensors again. The tests are the same.
"""

import copy
import os
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.precond import edm_scalings
from fewstep.schedule import student_levels
from kernels.rows import Inpainting, Layout, Rows

DEVICE = "cuda" if torch.cuda.is_available() and not os.environ.get("KERNELS") else "cpu"
SIGMA_DATA = 0.5
FORMATS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Buffers:
    """A network's static inputs."""

    x: Tensor
    c_noise: Tensor
    onehot: Tensor


@dataclass
class Launch:
    """The arguments of one step, and what it may write to."""

    x: Tensor
    output: Tensor
    rows: Rows
    network_input: Buffers
    pixels: Tensor
    broken: Tensor
    options: dict = field(default_factory=dict)

    def through(self, step, **more) -> "Launch":
        """Run a step on a copy of the buffers and return them."""
        mine = copy.deepcopy(self)
        step(
            mine.x, mine.output, mine.rows, mine.network_input, mine.pixels, mine.broken,
            **{"stamp": 7, **self.options, **more},
        )  # fmt: skip
        return mine

    def written(self) -> dict[str, Tensor]:
        into = self.network_input
        return {
            "x": self.x, "input": into.x, "c_noise": into.c_noise, "onehot": into.onehot,
            "pixels": self.pixels, "broken": self.broken,
        }  # fmt: skip


def rows_of(steps: list[int], calls: list[int], seeds: list[int] | None = None, **more: list[int]) -> Rows:
    """Image i has steps[i] levels and has just made call calls[i] - 1. Slots, sources and targets default to i."""
    count = len(steps)
    levels = [(*student_levels(k), 0.0) for k in steps]
    seeds = seeds if seeds is not None else [2**63 + 11 * row for row in range(count)]

    def ints(name: str, default: list[int]) -> Tensor:
        return torch.tensor(more.get(name, default), dtype=torch.int32, device=DEVICE)

    made = torch.tensor([level[max(call - 1, 0)] for level, call in zip(levels, calls, strict=True)])
    following = torch.tensor([level[call] for level, call in zip(levels, calls, strict=True)])
    before, after = (edm_scalings(sigma.to(DEVICE), SIGMA_DATA) for sigma in (made, following))
    return Rows(
        slot=ints("slot", list(range(count))),
        source=ints("source", list(range(count))),
        target=ints("target", list(range(count))),
        c_skip=before.c_skip,
        c_out=before.c_out,
        sigma_next=following.to(DEVICE),
        c_in=after.c_in,
        c_noise=after.c_noise,
        seed=torch.tensor([(s + 2**63) % 2**64 - 2**63 for s in seeds], dtype=torch.int64, device=DEVICE),
        call=ints("call", calls),
        label=ints("label", [row % 3 for row in range(count)]),
        flags=ints("flags", [0] * count),
    )


def launch(
    rows: Rows,
    shape: tuple[int, int, int],
    *,
    capacity: int = 5,
    extra: int = 0,
    classes: int = 3,
    dtype: torch.dtype = torch.float32,
    x: Layout = "channels_first",
    output: Layout = "channels_first",
    network: Layout = "channels_first",
    inpainting: bool = False,
) -> Launch:
    """Random state and output; every buffer starts with values that show where nothing was written."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(DEVICE)

    state = (4 * normal(capacity, *shape)).contiguous(memory_format=FORMATS[x])
    made = normal(capacity, *shape).to(dtype).contiguous(memory_format=FORMATS[output])
    options = {}
    if inpainting:
        mask = (normal(capacity, *shape) > 0).contiguous(memory_format=FORMATS[x])
        options["inpainting"] = Inpainting(mask, normal(capacity, *shape).contiguous(memory_format=FORMATS[x]))
    buffers = Buffers(
        torch.full((capacity, channels + extra, height, width), 9.0, dtype=dtype, device=DEVICE).contiguous(
            memory_format=FORMATS[network]
        ),
        torch.full((capacity,), 9.0, device=DEVICE),
        torch.full((capacity, classes), 9.0, dtype=dtype, device=DEVICE),
    )
    return Launch(
        state,
        made,
        rows,
        buffers,
        torch.full((capacity, height, width, channels), 99, dtype=torch.uint8, device=DEVICE),
        torch.full((capacity,), 3, dtype=torch.int32, device=DEVICE),
        options,
    )


def assert_same(actual: Launch, expected: Launch, dtype: torch.dtype = torch.float32) -> None:
    """Equal up to the noise's 1e-6 at sigmas of 80 at most, and up to one rounding of the network's dtype."""
    rounding = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for name, values in actual.written().items():
        wanted = expected.written()[name]
        assert values.dtype == wanted.dtype and values.stride() == wanted.stride()
        if name in ("pixels", "broken", "onehot"):
            assert torch.equal(values, wanted), name
        else:
            rtol, atol = (1e-6, 8e-5) if name == "x" else (rounding, 4e-6)
            torch.testing.assert_close(values, wanted, rtol=rtol, atol=atol, msg=f"{name} differs")
