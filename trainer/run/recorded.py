"""Whole updates as CUDA graphs: losses, gradients, optimisers and averages of an update are recorded once and replayed.

A replay costs the host one call, where the same update launches thousands of kernels. A graph holds one course of an
update, so there is a recording for every combination of the host's decisions (trainer.run.tape). Each is made when its
combination comes up again after WARM_UPS updates without a graph, in which kernels are compiled and moments made.
"""

import sys
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.run.draws import Draws
from trainer.run.tape import Memory, Now, Script, Tape, TapedProgress, Told
from trainer.settings import MachineError

T = TypeVar("T")
Update = Callable[[Tensor, Tensor, float, Draws], dict[str, Tensor]]  # as trainer.run.loop.Method has it
WARM_UPS = 2  # updates of a combination before it is recorded
MOST = 128  # recordings


class Recorder(Protocol):
    """How work is recorded: CudaGraphs, and something else in tests."""

    def warm_up(self, work: Callable[[], T]) -> T:
        """Do the work without recording it."""
        ...

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], object]]:
        """Do the work once. Returns what it returned, and a function that does it again: from the same memory into
        the same memory."""
        ...


class CudaGraphs:
    """On an NVIDIA GPU. All graphs share their memory: nothing in it is needed after its update but the scalars, which
    are copied out."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], T]) -> T:
        """On the stream of the recordings, as PyTorch's notes on whole networks ask."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], object]]:
        """Raises MachineError for work that cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the thread that makes batches pins memory meanwhile.
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                outputs = work()
        except RuntimeError as error:
            raise MachineError(
                f"this update cannot be recorded as a CUDA graph ({error}); continue without --cuda-graphs"
            ) from error
        graph.replay()  # recording computes nothing
        return outputs, graph.replay


@dataclass(frozen=True)
class Recording:
    memory: Memory
    scalars: tuple[str, ...]
    values: Tensor  # [scalars], overwritten by every replay
    replay: Callable[[], object]


class RecordedUpdates:
    """The same updates, with recordings made as they are needed. Weights and moments must stay where they are.

    Images and labels have one shape. An update must be made of tensors of the device, of draws and decisions of its
    `rng`, of comparisons of `progress` and of `trainer.run.tape.number_at`. Its gradients are given up at its end.
    """

    def __init__(self, update: Update, optimizers: dict[str, Optimizer], recorder: Recorder) -> None:
        self._update, self._recorder = update, recorder
        self._script, self._now = Script(), Now()
        self._seen: Counter[tuple[Hashable, ...]] = Counter()
        self._recordings: dict[tuple[Hashable, ...], Recording] = {}
        self._inputs: tuple[Tensor, Tensor] | None = None
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["capturable"] = True  # without it, PyTorch refuses to record a step

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        self._now.progress = progress
        told = self._script.tell()
        decisions = told.of("decision")
        if recording := self._recordings.get(decisions) if told.complete else None:
            self._take(images, labels)
            recording.memory.write(told)
            recording.replay()
        elif told.complete and self._seen[decisions] >= WARM_UPS and len(self._recordings) < MOST:
            recording = self._record(told, images, labels, rng)
        else:
            tape = Tape(told, images.device)
            scalars = self._recorder.warm_up(lambda: self._taped(tape, images, labels, rng))
            self._script.learn(told)
            self._count(told.of("decision"))
            return scalars
        return dict(zip(recording.scalars, recording.values.clone().unbind(), strict=True))

    def _record(self, told: Told, images: Tensor, labels: Tensor, rng: Draws) -> Recording:
        inputs, memory = self._take(images, labels), Memory(told, images.device)

        def work() -> tuple[tuple[str, ...], Tensor]:
            scalars = self._taped(Tape(told, images.device, memory), *inputs, rng)
            return tuple(scalars), torch.stack([value.detach().float() for value in scalars.values()])

        (scalars, values), replay = self._recorder.record(work)
        return self._recordings.setdefault(told.of("decision"), Recording(memory, scalars, values, replay))

    def _taped(self, tape: Tape, images: Tensor, labels: Tensor, rng: Draws) -> dict[str, Tensor]:
        progress = cast(float, TapedProgress(tape, self._now))
        scalars = self._update(images, labels, progress, replace(rng, tape=tape))
        tape.close()
        return scalars

    def _take(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Copy a batch to where recordings read it."""
        if self._inputs is None:
            self._inputs = torch.empty_like(images), torch.empty_like(labels)
        for kept, given in zip(self._inputs, (images, labels), strict=True):
            kept.copy_(given)
        return self._inputs

    def _count(self, decisions: tuple[Hashable, ...]) -> None:
        self._seen[decisions] += 1
        if self._seen[decisions] == WARM_UPS + 1 and decisions not in self._recordings:
            print(f"{MOST} CUDA graphs are recorded; rarer kinds of updates go without", file=sys.stderr, flush=True)
