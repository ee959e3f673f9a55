"""What the host adds to an update: keys of draws, decisions, and numbers such as learning rates.

A replayed CUDA graph repeats the work of its recording (trainer.run.recorded). So what differs between updates goes by
a tape: an entry for every key, decision and number of an update, in their order, with the function that tells its
value. Before a replay the functions are called again: decisions choose the recording, keys and numbers are written to
memory that it reads. An update without a tape calls the same functions in the same order when it needs them.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=Hashable)
Kind = Literal["key", "decision", "number"]


class Entry(NamedTuple):
    kind: Kind
    tell: Callable[[], Any]  # a key is an int of 64 bits, a number a float


@dataclass
class Told:
    """The first entries of an update, and their values for the update to come."""

    entries: list[Entry] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    complete: bool = False  # whether these are all entries of the update

    def of(self, kind: Kind) -> tuple[Any, ...]:
        """The values of one kind, in their order."""
        return tuple(value for entry, value in zip(self.entries, self.values, strict=True) if entry.kind == kind)

    def add(self, entry: Entry) -> Any:
        self.entries.append(entry)
        self.values.append(entry.tell())
        return self.values[-1]


class Script:
    """The entries of all updates so far. What comes next depends on the decisions before, and on nothing else."""

    def __init__(self) -> None:
        self._next: dict[tuple[Hashable, ...], list[Entry]] = {}  # decisions -> entries up to the next decision

    def learn(self, told: Told) -> None:
        """Add a complete update."""
        decisions: list[Hashable] = []
        part: list[Entry] = []
        for entry, value in zip(told.entries, told.values, strict=True):
            part.append(entry)
            if entry.kind == "decision":
                self._next.setdefault(tuple(decisions), part)
                decisions.append(value)
                part = []
        self._next.setdefault(tuple(decisions), part)

    def tell(self) -> Told:
        """What is known of the next update. Each function is called once: the update must not call it again."""
        told = Told()
        decisions: list[Hashable] = []
        while (part := self._next.get(tuple(decisions))) is not None:
            for entry in part:
                told.add(entry)
            if not part or part[-1].kind != "decision":
                told.complete = True
                break
            decisions.append(told.values[-1])
        return told


class Memory:
    """Keys and numbers of an update on the device, where a recording reads them."""

    def __init__(self, told: Told, device: torch.device) -> None:
        self.keys = torch.empty(len(told.of("key")), dtype=torch.int64, device=device)
        self.numbers = torch.empty(len(told.of("number")), device=device)
        self.write(told)

    def write(self, told: Told) -> None:
        self._copy(self.keys, torch.tensor(told.of("key"), dtype=torch.int64))
        self._copy(self.numbers, torch.tensor(told.of("number")))

    def _copy(self, to: Tensor, values: Tensor) -> None:
        # Fresh pinned memory every time: the host may be several updates ahead of the device's copies. PyTorch gives
        # it out again when its copy is done.
        if len(values):
            to.copy_(values.pin_memory() if to.is_cuda else values, non_blocking=True)


class Tape:
    """The host's part in one run of an update, behind `trainer.run.draws.Draws` and `number_at`.

    told: entries whose values are known; those behind them are told when they are asked for. With `memory`, keys and
    numbers are views of it, so that a recording reads what is written there later.
    """

    def __init__(self, told: Told, device: torch.device, memory: Memory | None = None) -> None:
        self.told, self.device, self.memory = told, device, memory
        self._known, self._read = len(told.entries), 0
        self._slots: dict[Kind, int] = {"key": 0, "number": 0}

    def key(self, draw: Callable[[], int]) -> Tensor:
        """[1] int64."""
        value = self._take(Entry("key", draw))
        if self.memory is None:
            return torch.tensor([value], device=self.device)
        slot = self._slot("key")
        return self.memory.keys[slot : slot + 1]

    def number(self, of: Callable[[], float]) -> Tensor:
        """A float32 scalar."""
        value = self._take(Entry("number", of))
        if self.memory is None:
            return torch.tensor(value, device=self.device)
        return self.memory.numbers[self._slot("number")]

    def decide(self, of: Callable[[], T]) -> T:
        return self._take(Entry("decision", of))

    def close(self) -> None:
        """At the end of the update. Raises RuntimeError when it asked for less than is known of it."""
        if self._read < self._known:
            raise RuntimeError(f"an update asked for {self._read} of {self._known} entries after the same decisions")
        self.told.complete = True

    def _take(self, entry: Entry) -> Any:
        at, self._read = self._read, self._read + 1
        if at >= self._known:
            if self.memory is not None:
                raise RuntimeError(f"an update asked for more than {self._known} entries after the same decisions")
            return self.told.add(entry)
        if self.told.entries[at].kind != entry.kind:
            raise RuntimeError(f"an update asked for a {entry.kind} where it asked for a {self.told.entries[at].kind}")
        return self.told.values[at]

    def _slot(self, kind: Kind) -> int:
        self._slots[kind] += 1
        return self._slots[kind] - 1


@dataclass
class Now:
    """How far the run is, 0 to 1: what the functions of a tape read."""

    progress: float = 0.0


@dataclass(frozen=True)
class TapedProgress:
    """Stands for the `progress` of an update with a tape: comparisons are decisions. Arithmetic, whose result a
    recording would keep, is a TypeError; `number_at` is for that."""

    tape: Tape
    now: Now

    def __lt__(self, other: float) -> bool:
        return self.tape.decide(lambda: self.now.progress < other)

    def __le__(self, other: float) -> bool:
        return self.tape.decide(lambda: self.now.progress <= other)

    def __gt__(self, other: float) -> bool:
        return self.tape.decide(lambda: self.now.progress > other)

    def __ge__(self, other: float) -> bool:
        return self.tape.decide(lambda: self.now.progress >= other)


def number_at(progress: float, of: Callable[[float], float]) -> float | Tensor:
    """The function's value at this share of the run: a scalar in memory of the device for an update with a tape."""
    if isinstance(progress, TapedProgress):
        now = progress.now
        return progress.tape.number(lambda: of(now.progress))
    return of(progress)
