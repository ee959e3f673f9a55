"""The training loop of all methods: batches, averages, progress, checkpoints, resume. The method makes the updates."""

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from fewstep.card import CheckpointError
from fewstep.outputs import STATE_FILE
from fewstep.ranges import COUNT, POSITIVE, SEED, check_ranges
from trainer.run.budget import STAGES, images_within
from trainer.run.checkpoints import Checkpoints, Write
from trainer.run.clock import Clock, Speed
from trainer.run.distributed import average_over_processes, rank, ranks, synchronise_clock
from trainer.run.draws import Draws
from trainer.run.ema import FOLDER as AVERAGES
from trainer.run.ema import WIDTHS, Averages, power_decay
from trainer.run.older import current_settings
from trainer.run.progress import Progress
from trainer.run.recorded import WARM_UPS, RecordedUpdates, Recorder, Update
from trainer.run.sharding import divide
from trainer.run.state import Parts, load_state, read_facts
from trainer.run.tape import number_at

# Images already seen, device -> endless batches of images [B, C, H, W] in [-1, 1] and labels [B].
Batches = Callable[[int, torch.device], Iterator[tuple[Tensor, Tensor]]]


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class Method(Protocol):
    """An algorithm of trainer.methods or trainer.critics."""

    networks: dict[str, nn.Module]  # everything that is optimised
    optimizers: dict[str, Optimizer]
    served: str  # the network whose average is sampled, saved and served
    ema_width: float  # of that average (trainer.run.ema)

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """One optimiser step on images [B, C, H, W] in [-1, 1] and labels [B]; progress 0 -> 1 over the run.

        Under torchrun every process calls it with its own rows. Returns scalars to log.
        """
        ...


@dataclass(frozen=True)
class LoopConfig:
    batch: int = 64  # over all processes
    images: int | None = None  # stop after this many training images
    budget_s: float | None = None  # or after the images that fit into these seconds, measured at the start
    checkpoint_s: float = 300.0
    snapshot_images: int | None = None  # images between two checkpoints that are kept
    log_every: int = 50  # updates between two log lines
    seed: int = 0
    flip: bool = False  # mirror half of the images
    label: str = "training"  # names the run in progress lines

    def __post_init__(self) -> None:
        check_ranges(self, batch=COUNT, images=COUNT, log_every=COUNT, seed=SEED, budget_s=POSITIVE)


def train(
    method: Method,
    batches: Batches,
    config: LoopConfig,
    out: Path,
    save: Write,  # writes the checkpoint of the averaged network to a folder
    *,
    draw: Write | None = None,  # after the checkpoint, draws a sample sheet
    resume: bool = False,
    identity: dict[str, Any],  # what a resumed run must share with the run it continues
    shard: bool = False,  # divide networks, moments and averages among the processes (trainer.run.sharding)
    recorder: Callable[[], Recorder] | None = None,  # makes what records whole updates
) -> bool:
    """Train until a limit is reached. Returns False when interrupted; either way the checkpoint is usable.

    Raises DivergedError when a loss stops being finite (the last checkpoint stays), CheckpointError when there is
    nothing to resume or the state is another run's.
    """
    device = next(method.networks[method.served].parameters()).device
    if not resume and rank() == 0:
        shutil.rmtree(out / AVERAGES, ignore_errors=True)  # of an earlier run without a checkpoint
    averages = Averages(method.networks[method.served])
    if shard:
        divide(method.networks, method.optimizers.values(), averages.kept.values(), method.served, device)
    generator = torch.Generator().manual_seed(config.seed)
    rng = Draws(generator, rank(), ranks(), device)
    parts = Parts({**method.networks, **averages.kept}, method.optimizers, generator)
    if resume:
        clock, budget_s = _resume(out, parts, config, identity)
    else:
        measure = lambda: _measure(method, batches(0, device), config, parts, rng, recorder)  # noqa: E731
        clock, budget_s = Clock(planned=_plan(config, measure)), config.budget_s
    facts = {"budget_s": budget_s, "identity": identity}
    checkpoints = Checkpoints(out, parts, averages, method.ema_width, facts, save, draw, shard)
    update = _with_averages(method, averages, clock, config.batch)
    if recorder:
        update = RecordedUpdates(update, method.optimizers, recorder()).update
    return _update_to_the_end(update, batches(clock.images, device), config, clock, checkpoints, rng)


def _with_averages(method: Method, averages: Averages, clock: Clock, batch: int) -> Update:
    """The method's update, after which the averages are moved on. Both are recorded together."""

    def decay(width: float) -> Callable[[float], float]:
        return lambda _: power_decay(width, batch, clock.images + batch)

    def update(images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        scalars = method.update(images, labels, progress, rng)
        averages.move([number_at(progress, decay(width)) for width in WIDTHS])
        return scalars

    return update


def _measure(
    method: Method, stream: Iterator[tuple[Tensor, Tensor]], config: LoopConfig, parts: Parts, rng: Draws,
    recorder: Callable[[], Recorder] | None,
) -> int:  # fmt: skip
    """The images within the budget. Recordings are made for it alone: moments are elsewhere afterwards."""
    updating = RecordedUpdates(method.update, method.optimizers, recorder()) if recorder else method
    first = STAGES * (WARM_UPS + 1) if recorder else STAGES
    return images_within(config.budget_s or 0, updating, stream, config.batch, parts, rng, first)


def _resume(out: Path, parts: Parts, config: LoopConfig, identity: dict[str, Any]) -> tuple[Clock, float | None]:
    """Restore the parts of a stored run. Returns how far it is, and its budget in seconds if it has one."""
    facts = read_facts(out)
    stored = current_settings(facts["identity"])
    if stored != identity:  # checked before the tensors, whose shapes may then differ
        raise CheckpointError(f"{out} was trained with other settings: {_differences(stored, identity)}")
    load_state(out, parts)
    clock = Clock(facts["images"], facts["elapsed_s"], _resumed_plan(config, facts))
    if rank():  # the stored generator is the first process's
        torch.manual_seed(config.seed + clock.images + rank())
    return clock, config.budget_s if config.images or config.budget_s else facts["budget_s"]


def _update_to_the_end(
    update: Update, stream: Iterator[tuple[Tensor, Tensor]], config: LoopConfig, clock: Clock,
    checkpoints: Checkpoints, rng: Draws,
) -> bool:  # fmt: skip
    """Make updates until the clock is at its end. Returns False when interrupted; the checkpoint is written."""
    out, scalars = checkpoints.out, {}
    log, speed = _Log(out, clock), Speed(config.batch, torch.device(rng.device))
    shown = Progress(config.label, clock.planned)
    shown.begin(clock.progress, clock.images)
    saved_s = started_s = clock.elapsed_s
    since, stopped = time.monotonic(), False
    with _interruptible() as interrupted, closing(shown), closing(log):
        for updates, (images, labels) in enumerate(stream, start=1):
            # One clock for all processes, so that decisions by time are the same in all.
            clock.elapsed_s, stopped = synchronise_clock(started_s + time.monotonic() - since, interrupted())
            if clock.progress >= 1 or stopped:
                break
            if clock.elapsed_s - saved_s >= config.checkpoint_s:
                _finite(scalars, clock, out)
                checkpoints.write(clock)
                saved_s = clock.elapsed_s
            scalars = update(images, labels, clock.progress, rng)
            clock.images += config.batch
            clock.images_per_s = speed.after_update()
            checkpoints.store_averages(clock, config.batch)
            if config.snapshot_images and clock.images % config.snapshot_images < config.batch:
                _finite(scalars, clock, out)
                checkpoints.keep(clock)
            if rank() == 0:
                shown.update(clock.progress, clock.images, partial(_numbers, scalars))
            if updates % config.log_every == 0:
                log.write(_finite(scalars, clock, out), clock)
        _finite(scalars, clock, out)
        checkpoints.write(clock)
    return not stopped


def _plan(config: LoopConfig, measured: Callable[[], int]) -> int:
    """The images of a run that begins, at whichever limit comes first."""
    limits = [config.images] if config.images else []
    if config.budget_s:
        limits.append(measured())
    return min(limits)


def _resumed_plan(config: LoopConfig, facts: dict[str, Any]) -> int:
    """The images of a resumed run: as planned, unless another limit is set. They are proportional to the budget."""
    planned, budget_s = facts["planned"], facts["budget_s"]
    limits = [config.images] if config.images else []
    if config.budget_s and budget_s:
        limits.append(planned if config.budget_s == budget_s else round(planned * config.budget_s / budget_s))
    elif config.budget_s:  # the run had no budget: at the speed that it had
        limits.append(max(round(facts["images"] * config.budget_s / max(facts["elapsed_s"], 1e-9)), 1))
    return min(limits, default=planned)


def _finite(scalars: dict[str, Tensor], clock: Clock, out: Path) -> dict[str, Tensor]:
    """The means over the processes. Raises DivergedError where one is no number."""
    means = average_over_processes(scalars)
    bad = [name for name, value in means.items() if not math.isfinite(float(value))]
    if bad:
        kept = (out / STATE_FILE).exists()
        state = "the last checkpoint is intact" if kept else "there is no checkpoint yet"
        ways = "Continue from it with --resume --precision fp32, or start again" if kept else "Start again"
        raise DivergedError(
            f"{', '.join(bad)} stopped being finite after {clock.images:,} images; {state}. "
            f"{ways} in another --out with a lower learning rate"
        )
    return means


def _numbers(scalars: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in scalars.items()}


class _Log:
    """Scalars of a run for TensorBoard, in OUT/events, with the speed since the line before. One process writes."""

    def __init__(self, out: Path, clock: Clock) -> None:
        # What was logged after the last checkpoint will be logged again.
        self.writer = SummaryWriter(out / "events", purge_step=clock.images + 1) if rank() == 0 else None
        self.before = clock.images, clock.elapsed_s

    def write(self, scalars: dict[str, Tensor], clock: Clock) -> None:
        images, elapsed_s = self.before
        passed = clock.elapsed_s - elapsed_s  # 0 at a first update
        per_s = (clock.images - images) / passed if passed else clock.images_per_s
        self.before = clock.images, clock.elapsed_s
        if self.writer:
            for name, value in {**_numbers(scalars), "images_per_s": per_s}.items():
                self.writer.add_scalar(name, value, clock.images)

    def close(self) -> None:
        if self.writer:
            self.writer.close()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """While open, SIGINT and SIGTERM only set a flag: the current update is finished, and its checkpoint saved. An
    update may take a minute, so the first process says so at once."""
    caught: list[int] = []

    def catch(number: int, _: Any) -> None:
        if not caught and rank() == 0:
            before = b"\n" if os.isatty(2) else b""  # behind the line of progress
            os.write(2, before + b"stopping after the update under way\n")  # print() may be under way itself
        caught.append(number)

    previous = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    keys = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    return "; ".join(f"{key} was {theirs.get(key)}, now {ours.get(key)}" for key in keys)
