"""A GPU's memory as a kernel sees it, and what its accesses cost."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.arithmetic import UNSIGNED

SECTOR = 32  # bytes: the least that a GPU moves


class Memory:
    """Buffers of bytes, each at an address of its own, with gaps between them that belong to nobody."""

    def __init__(self, *buffers: NDArray[np.uint8]) -> None:
        """Copies of the buffers, which begin at multiples of 256."""
        self.starts: list[int] = []
        end = 0
        for buffer in buffers:
            self.starts.append((end // 256 + 2) * 256)
            end = self.starts[-1] + len(buffer)
        size = (end // 256 + 2) * 256
        self._bytes, self._owned = np.zeros(size, np.uint8), np.zeros(size, bool)
        for start, buffer in zip(self.starts, buffers, strict=True):
            self._bytes[start : start + len(buffer)] = buffer
            self._owned[start : start + len(buffer)] = True

    def content(self, buffer: int, size: int) -> NDArray[np.uint8]:
        """The first bytes of the buffer with this number, as they are now."""
        return self._bytes[self.starts[buffer] :][:size]

    def load(self, address: NDArray[Any], size: int, parts: int = 1) -> NDArray[Any]:
        """[threads, parts] words of `size` bytes, side by side. Raises IndexError as `_at` does."""
        return self._bytes.view(UNSIGNED[8 * size])[self._at(address, size, parts)]

    def store(self, address: NDArray[Any], values: NDArray[Any], size: int) -> None:
        """What `load` reads. Raises IndexError as `_at` does, RuntimeError where threads store different values."""
        at = self._at(address, size, values.shape[1])
        words = self._bytes.view(UNSIGNED[8 * size])
        words[at] = values
        if (words[at] != values).any():
            raise RuntimeError("two threads store different values in one place")

    def _at(self, address: NDArray[Any], size: int, parts: int) -> NDArray[Any]:
        """Numbers of words. Raises IndexError outside all buffers, and where a GPU would fault for alignment."""
        address, reach = address.astype(np.int64), np.arange(size * parts)
        if (address % len(reach)).any():
            raise IndexError(f"an access of {len(reach)} bytes at an address that is no multiple of that")
        if (address + len(reach) > len(self._owned)).any() or not self._owned[address[:, None] + reach].all():
            raise IndexError(f"an access of {len(reach)} bytes reaches outside all buffers")
        return address[:, None] // size + np.arange(parts)


@dataclass
class Traffic:
    """What warps ask of memory in sectors, without what is one address for all threads of a warp."""

    asked: int = 0  # summed over accesses
    moved: set[tuple[bool, int]] = field(default_factory=set)  # those that are asked for at all, to write or to read

    def count(self, address: NDArray[Any], warp: NDArray[Any], size: int, write: bool) -> None:
        """One instruction: an access of `size` bytes by every thread of address, and the warp each belongs to."""
        for each in np.unique(warp):
            mine = address[warp == each]
            if (mine != mine[0]).any():
                touched = set(np.concatenate([mine, mine + (size - 1)]).astype(int) // SECTOR)
                self.asked += len(touched)
                self.moved |= {(write, sector) for sector in touched}

    @property
    def times(self) -> float:
        """How often a sector is asked for: 1 where every access is of whole sectors and none comes twice."""
        return self.asked / len(self.moved)
