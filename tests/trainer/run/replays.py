"""What stands for CUDA graphs on a CPU: operations are noted when work is done, and done again on the same memory.

Like a graph, a replay knows nothing of the host: what the host computed is what it was at the recording. Work that
reads a number of a tensor, or makes a tensor of numbers of the host, is refused, as a GPU refuses to record it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")
REFUSED = ("_local_scalar_dense", "nonzero", "equal", "lift_fresh", "masked_select")


class Noted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], Any, dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in REFUSED:
            raise RuntimeError(f"{func} needs the host")
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations.append((func, args, kwargs or {}, tensors(found)))
        return found

    def again(self) -> None:
        for func, args, kwargs, before in self.operations:
            for old, new in zip(before, tensors(func(*args, **kwargs)), strict=True):
                if old is not new:  # the operation wrote to memory of its own
                    old.copy_(new)


def tensors(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


class Replays:
    """A trainer.run.recorded.Recorder."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def warm_up(self, work: Callable[[], T]) -> T:
        return work()

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], object]]:
        self.recorded += 1
        with Noted() as noted:
            outputs = work()

        def replay() -> None:
            self.replayed += 1
            with torch.no_grad():
                noted.again()

        return outputs, replay
