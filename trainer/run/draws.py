"""Random numbers that do not depend on how a batch is shared out among processes.

Every process draws for the whole global batch from the same generator and keeps its own rows, so that one process
and eight make the same noise for the same image and a run may be resumed with another number of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """A generator shared by `ranks` processes, seen from one of them. Counts are of this process's rows."""

    generator: torch.Generator
    rank: int = 0
    ranks: int = 1

    def normal_like(self, x: Tensor) -> Tensor:
        """Unit normals of the shape [B, ...] and device of x."""
        return self._own(torch.randn(self.ranks * x.shape[0], *x.shape[1:], **self._options))

    def uniform(self, count: int) -> Tensor:
        """[count] in [0, 1)."""
        return self._own(torch.rand(self.ranks * count, **self._options))

    def normal(self, count: int) -> Tensor:
        """[count] unit normals."""
        return self._own(torch.randn(self.ranks * count, **self._options))

    def integers(self, high: int, count: int) -> Tensor:
        """[count] in [0, high)."""
        return self._own(torch.randint(high, (self.ranks * count,), **self._options))

    def shared(self) -> float:
        """One number in [0, 1), the same in every process."""
        return torch.rand(1, **self._options).item()

    @property
    def _options(self) -> dict:
        return {"generator": self.generator, "device": self.generator.device}

    def _own(self, drawn: Tensor) -> Tensor:
        rows = len(drawn) // self.ranks
        return drawn[self.rank * rows : (self.rank + 1) * rows]
