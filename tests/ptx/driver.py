"""A driver that stands in for a GPU's: what is launched is compiled for it, and runs in `tests.ptx`.

Triton's interpreter and the compiler part ways when a kernel is imported, so this is for a process that was started
with KERNELS=sm_90, say, as tests/kernels/test_compiled.py does.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.ptx.machine import Kernel
from tests.ptx.memory import Memory

_compile: Any = JITFunction.run
_kernels: dict[str, Kernel] = {}


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


def _run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    """What a launch does in place of `JITFunction.run`."""
    compiled = _compile(self, *args, grid=grid, warmup=True, **options)
    ptx = compiled.asm["ptx"]
    if ptx not in _kernels:
        _kernels[ptx] = Kernel(ptx, compiled.metadata.shared)
    given = dict(zip(self.arg_names, args, strict=False)) | options
    values = [given[name] for name, kind in compiled.src.signature.items() if kind != "constexpr"]
    storages = {value.untyped_storage().data_ptr(): _bytes(value) for value in values if isinstance(value, Tensor)}
    memory, places = Memory(*storages.values()), {start: place for place, start in enumerate(storages)}
    _kernels[ptx].run(grid, memory, [_argument(value, memory, places) for value in values])
    for start, content in storages.items():
        content[:] = memory.content(places[start], len(content))
    return compiled


def _bytes(tensor: Tensor) -> np.ndarray:
    """All of the storage that a tensor views; writing to it writes to the tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()


def _argument(value: Any, memory: Memory, places: dict[int, int]) -> int | float:
    if not isinstance(value, Tensor):
        return value
    start = value.untyped_storage().data_ptr()
    return memory.starts[places[start]] + value.data_ptr() - start


def stand_in(capability: int) -> None:
    """From here on launches need no GPU. capability: 90 for sm_90."""
    driver.set_active(_Driver(capability))  # pyright: ignore[reportArgumentType]
    JITFunction.run = _run
