"""Random numbers that do not depend on how a batch is divided among processes.

Every draw has a key, which all processes take from the same generator. A row of a draw depends on the key and on the
row's index in the global batch (Philox 4x32-10, as in `fewstep.noise`). So one process and eight make the same noise
for the same image, each process makes only its own rows, and a run may be resumed with another number of processes.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fewstep import noise, noise_torch
from trainer.run.tape import Tape

T = TypeVar("T", bound=Hashable)

STREAM_TRAINING = 3  # after those of `fewstep.noise`
_PIECE = 2**20  # numbers made at a time on a GPU: the generator works with 64-bit integers, many for each


@dataclass(frozen=True)
class Draws:
    """Random numbers of one process. The generator is on the CPU and has the same state in all `ranks` processes.

    Counts are those of this process's rows. Results are on `device`, or on the device of the argument.
    """

    generator: torch.Generator
    rank: int = 0
    ranks: int = 1
    device: torch.device | str = "cpu"
    tape: Tape | None = None  # of an update that is recorded (trainer.run.recorded)

    def normal_like(self, x: Tensor) -> Tensor:
        """Unit normals of the shape [B, ...] and device of x."""
        key, rows = self._key(x.device), self._rows(len(x), x.device)
        made = keyed_normals if self.tape is None else normals_in_pieces  # numpy cannot be recorded
        return made(key.expand_as(rows), rows, tuple(x.shape[1:]))

    def uniform(self, count: int) -> Tensor:
        """[count] in [0, 1)."""
        return (self._words(count) >> 8).float() * 2.0**-24

    def normal(self, count: int) -> Tensor:
        """[count] unit normals."""
        return self.normal_like(torch.empty(count, device=self.device))

    def integers(self, high: int, count: int) -> Tensor:
        """[count] in [0, high), for high up to 2^31."""
        return (self._words(count) * high) >> 32

    def shared_uniform(self) -> float:
        """One number in [0, 1), the same in every process."""
        if self.tape is not None:
            raise RuntimeError("an update that is recorded needs shared_choice, not shared_uniform")
        return self._uniform()

    def shared_choice(self, choose: Callable[[float], T]) -> T:
        """What `choose` makes of one number in [0, 1), the same in every process. The rest of the update may depend on
        it in any way: each of the choices is recorded by itself."""
        return self.decide(lambda: choose(self._uniform()))

    def decide(self, of: Callable[[], T]) -> T:
        """What `of` returns: a decision of the host. `of` is called once for an update, and must not depend on
        what is local to one."""
        return of() if self.tape is None else self.tape.decide(of)

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator).numpy())  # not item(), which waits for a device

    def _words(self, count: int) -> Tensor:
        """[count] in [0, 2^32)."""
        rows = self._rows(count, self.device)
        return noise_torch.random_words(self._key(self.device).expand_as(rows), rows, STREAM_TRAINING, 1)[:, 0, 0]

    def _key(self, device: torch.device | str) -> Tensor:
        if self.tape is not None:
            return self.tape.key(lambda: int(self._draw_key().numpy()[0]))
        return self._draw_key().to(device)

    def _draw_key(self) -> Tensor:
        return torch.randint(-(2**63), 2**63 - 1, (1,), generator=self.generator)

    def _rows(self, count: int, device: torch.device | str) -> Tensor:
        """The indices [count] of this process's rows in the global batch."""
        return torch.arange(self.rank * count, (self.rank + 1) * count, device=device)


def seeded(seed: int) -> Draws:
    """Random numbers of a process on its own, on the CPU."""
    return Draws(torch.Generator().manual_seed(seed))


def keyed_normals(keys: Tensor, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unit normals [B, *shape] of these keys and rows [B]: by numpy on a CPU, where it is three times faster."""
    if keys.device.type == "cpu":
        return torch.from_numpy(noise.normals(keys.numpy().view("uint64"), rows.numpy(), shape, STREAM_TRAINING))
    return normals_in_pieces(keys, rows, shape)


def normals_in_pieces(keys: Tensor, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    step = max(_PIECE // max(math.prod(shape), 1), 1)
    parts = zip(keys.split(step), rows.split(step), strict=True)
    return torch.cat([noise_torch.normals(key, row, shape, STREAM_TRAINING) for key, row in parts])
