"""What a GPU engine offers to the step kernels: static buffers, and one call per bucket that reads them.

No import of torch at run time: the CPU server reads this module too.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class DeviceNetwork(Protocol):
    """F on a device. Whoever steps the slots writes the inputs in place and calls `run`; nothing is copied."""

    @property
    def device(self) -> "torch.device": ...

    @property
    def dtype(self) -> "torch.dtype":
        """Of x, onehot and the output."""
        ...

    @property
    def capacity(self) -> int:
        """Rows of the buffers."""
        ...

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes that `run` takes, ascending; the last is the capacity."""
        ...

    @property
    def x(self) -> "Tensor":
        """[capacity, C + extra, H, W], in the network's memory format, which may be channels_last."""
        ...

    @property
    def c_noise(self) -> "Tensor":
        """[capacity] float32."""
        ...

    @property
    def onehot(self) -> "Tensor":
        """[capacity, columns], as the manifest counts them; may be 0."""
        ...

    @property
    def conditions(self) -> "Mapping[str, Tensor]":
        """[capacity, *shape] float32 each, as the manifest names them, in its order."""
        ...

    @property
    def adapter(self) -> "Tensor | None":
        """[capacity] int64, the number of each row's adapter; None: the network takes none."""
        ...

    def run(self, bucket: int) -> "Tensor":
        """F of the rows [:bucket], as [bucket, C, H, W] in the memory format of x.

        Runs on the current stream. The result is valid until the next run: all buckets share memory.
        """
        ...
