"""How many images a budget pays for on this machine, measured with a few updates of every stage.

A run is planned in images once, at its start, so that a resumed run equals an uninterrupted one. The budget covers the
whole command: measuring, sample sheets, the export and the report are subtracted, and the stages share the rest.
"""

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fewstep.checkpoint import load_denoiser
from fewstep.precond import Denoiser
from fewstep.scratch import scratch
from trainer.data.format import ImageSet
from trainer.data.shards import ShardedImages
from trainer.recipes.recipe import NetworkSize, Recipe, Stage
from trainer.run.compute import Precision
from trainer.run.progress import format_bytes, format_seconds
from trainer.run.state import read_facts

UPDATES = 4  # of every stage while measuring; the first two warm up
MEASURING_SHARE = 0.2  # of the budget: when measuring has taken it, the remaining stages are estimated
# Speed of a stage that is not measured, as a fraction of the teacher's. DPDM, the slowest, has had 0.27 to 0.39.
ESTIMATED_SPEED = 0.27
TIMED = 20  # images of the timed call, from which the times of sheets, export and report are estimated
TEACHER_CALLS = 100 * 19  # images times network calls of a teacher's sample sheet
STUDENT_CALLS = 20 * 15  # the same of a student's sample sheet
SHEET_CALLS = {"teacher": TEACHER_CALLS, "classifier": 0}
EXPORT_CALLS = 2 * 16 * 36  # the same of the parity check of an export
EXPORT_S = 10.0  # seconds of an export without its network calls
REPORT_CALLS = 1 + 2 + 4 + 8  # student calls per image of the report; the teacher embeds five times as many images
REPORT_SHARE = 0.03  # of the budget
LONG_RUN_SPEED = 0.97  # speed of a long run, as a fraction of the measured one
COMPILED_FROM_S = 3600.0  # compiling takes minutes per stage, and saves time in a long run only (docs/adr/0005)


class Needed(NamedTuple):
    """Training images of the teacher and of the first distillation. They decide what to expect (docs/training.md)."""

    teacher: int
    student: int


class Level(NamedTuple):
    side: int  # for images of up to this many pixels
    usable: Needed  # with fewer training images, generated images are noise or blurs
    good: Needed  # more training images improve little


LEVELS = (
    Level(8, Needed(20_000, 10_000), Needed(200_000, 100_000)),
    Level(16, Needed(50_000, 20_000), Needed(400_000, 200_000)),
    Level(32, Needed(100_000, 40_000), Needed(800_000, 400_000)),
    Level(64, Needed(140_000, 60_000), Needed(1_000_000, 600_000)),
)
FEW_PICTURES, TOO_FEW_PICTURES = 2_000, 500


@dataclass(frozen=True)
class Measured:
    """The speed of one stage."""

    images_per_s: float
    fixed_s: float  # seconds without updates: set-up, compiling, one checkpoint without its sheet


@dataclass(frozen=True)
class Plan:
    budget_s: float
    recipe: str
    network: NetworkSize
    device: str
    precision: Precision
    compile: bool
    parameters: int
    images: dict[str, int]  # by stage
    batch: dict[str, int]
    seconds: dict[str, float]  # expected, by stage
    images_per_s: dict[str, float]
    checkpoint_s: dict[str, float]  # between two checkpoints
    overhead_s: float  # measuring, setting up, export and report
    report_images: int
    memory_mb: int
    disk_mb: int
    measuring_s: float = 0.0  # what making this plan took
    estimated: tuple[str, ...] = ()  # stages that were not measured, as measuring had taken its share of the budget
    complete: tuple[str, ...] = ()  # stages that were complete before: the budget is for the others
    processes: int = 1  # that share the batches


@dataclass(frozen=True)
class Rehearsal:
    """What a short trial of all stages measured."""

    stages: dict[str, Measured]
    call_s: float  # one network call for one image of a sheet
    precision: Precision
    parameters: int
    memory_mb: int
    disk_mb: int
    estimated: tuple[str, ...] = ()  # stages whose speed is a fraction of the teacher's, not measured


@torch.no_grad()
def _call_s(teacher: Denoiser, shape: tuple[int, int, int], device: str) -> float:
    """Seconds for one image in one call: the faster of two calls."""
    x, sigma = torch.randn(TIMED, *shape, device=device), torch.ones(TIMED, device=device)
    labels = torch.zeros(TIMED, dtype=torch.long, device=device) if teacher.classes else None
    taken, teacher = [], teacher.filled(x)
    for _ in range(2):
        began = time.monotonic()
        teacher(x, sigma, labels).sum().item()
        taken.append(time.monotonic() - began)
    return min(taken) / TIMED


# (stage, folder of all stages, images, label of the progress) -> MB of memory at most
TrainStage = Callable[[Stage, Path, int, str], int]


def rehearse(
    stages: Sequence[Stage], batches: Mapping[str, int], run: TrainStage, device: str, compiled: bool,
    limit_s: float,
) -> Rehearsal:  # fmt: skip
    """Run every stage for a few updates in a folder that is removed again.

    Compiled stages run twice, and the second run is measured: the first one compiles, also in the middle of its
    updates where a method has several kinds of them, and the real stage will find what that has left on disk.

    The first stage, the teacher, is always measured. A stage that would begin more than `limit_s` seconds after the
    first one is not run but estimated from the teacher: its speed, its seconds without updates and its disk space.
    """
    started = time.monotonic()
    with scratch(Path(tempfile.gettempdir()), "fewstep-plan-") as folder:
        measured: dict[str, Measured] = {}
        memory = 0
        for stage in stages:
            if measured and time.monotonic() - started > limit_s:
                break
            images = UPDATES * batches[stage.name]
            if compiled:
                run(stage, folder, images, f"compiling {stage.name}")
                shutil.rmtree(folder / stage.name)
            began = time.monotonic()
            memory = max(memory, run(stage, folder, images, f"measuring {stage.name}"))
            speed = read_facts(folder / stage.name)["images_per_s"]
            fixed = time.monotonic() - began - images / speed
            measured[stage.name] = Measured(speed, max(fixed, 0.0))
        teacher, card = load_denoiser(folder / "teacher", device)
        call_s = _call_s(teacher, card.image_shape, device)
        disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    estimated = tuple(stage.name for stage in stages if stage.name not in measured)
    disk += 2 * len(estimated) * disk // len(measured)  # a distillation keeps two networks, the student and its critic
    by_teacher = replace(measured["teacher"], images_per_s=measured["teacher"].images_per_s * ESTIMATED_SPEED)
    measured |= dict.fromkeys(estimated, by_teacher)
    network = teacher.network
    parameters = sum(p.numel() for p in network.parameters())  # pyright: ignore[reportFunctionMemberAccess]
    precision = card.training["precision"]
    return Rehearsal(measured, call_s, precision, parameters, max(memory, memory_mb()), round(disk / 1e6), estimated)


def memory_mb() -> int:
    """Peak memory of this process in MB: of the GPU if there is one, resident memory otherwise."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6)
    kilobyte = 1e-6 if sys.platform == "darwin" else 1e-3
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte)


def plan(
    rehearsal: Rehearsal, stages: Sequence[Stage], batches: Mapping[str, int], budget_s: float, spent_s: float,
    **facts: Any,
) -> Plan:  # fmt: skip
    """Divide a budget among the stages, after subtracting `spent_s` and the time that is not training.

    Every stage gets at least one batch. facts: the other fields of Plan.
    """
    calls_left = REPORT_SHARE * budget_s / (REPORT_CALLS + 5) / max(rehearsal.call_s, 1e-9)
    report_images = int(min(max(calls_left, 32), 1000))
    ends_s = EXPORT_S + rehearsal.call_s * (EXPORT_CALLS + report_images * (REPORT_CALLS + 5))
    sheets_s = {stage.name: rehearsal.call_s * SHEET_CALLS.get(stage.method, STUDENT_CALLS) for stage in stages}
    fixed_s = sum(rehearsal.stages[stage.name].fixed_s + sheets_s[stage.name] for stage in stages)
    training_s = max(budget_s - spent_s - ends_s - fixed_s, 0.0)
    whole = sum(stage.share for stage in stages)
    images, seconds, every = {}, {}, {}
    for stage in stages:
        measured, batch = rehearsal.stages[stage.name], batches[stage.name]
        share_s = training_s * stage.share / whole
        every[stage.name] = min(max(share_s / 4, 15.0), 300.0)
        updates_s = share_s / (1 + sheets_s[stage.name] / every[stage.name]) * LONG_RUN_SPEED
        images[stage.name] = max(int(updates_s * measured.images_per_s) // batch, 1) * batch
        seconds[stage.name] = images[stage.name] / measured.images_per_s + measured.fixed_s + sheets_s[stage.name]
    return Plan(
        budget_s=budget_s, precision=rehearsal.precision, parameters=rehearsal.parameters, images=images,
        batch=dict(batches), seconds=seconds, checkpoint_s=every, overhead_s=spent_s + ends_s,
        images_per_s={name: one.images_per_s for name, one in rehearsal.stages.items()},
        report_images=report_images, memory_mb=rehearsal.memory_mb, disk_mb=rehearsal.disk_mb,
        measuring_s=spent_s, estimated=tuple(name for name in rehearsal.estimated if name in images), **facts,
    )  # fmt: skip


def level_of(side: int) -> Level:
    return next((level for level in LEVELS if side <= level.side), LEVELS[-1])


def images_seen(images: Mapping[str, int], stages: Sequence[Stage]) -> Needed:
    """Training images of the teacher and of the first distillation of a recipe."""
    first = next(stage.name for stage in stages if stage.method not in ("teacher", "classifier"))
    return Needed(images["teacher"], images[first])


def too_few(side: int, images: Needed) -> str | None:
    """A sentence that says that the result will not be usable; None if it will be."""
    usable = level_of(side).usable
    short = [
        f"the {who} sees {has:,} images, and a usable result takes {needs:,}"
        for who, has, needs in zip(("teacher", "student"), images, usable, strict=True)
        if has < needs
    ]
    return f"NOT usable, noise or blurs at {side}x{side}: {'; '.join(short)}" if short else None


def wanted_s(plan: Plan, stages: Sequence[Stage], needed: Needed) -> float:
    """The approximate budget in seconds for so many images on this machine."""
    first = next(stage for stage in stages if stage.method not in ("teacher", "classifier"))
    teacher = next(stage for stage in stages if stage.method == "teacher")
    whole = sum(stage.share for stage in stages)
    training = max(
        count / plan.images_per_s[stage.name] * whole / stage.share
        for stage, count in zip((teacher, first), needed, strict=True)
    )
    fixed = sum(plan.seconds[stage.name] - plan.images[stage.name] / plan.images_per_s[stage.name] for stage in stages)
    return 1.1 * (training + fixed + plan.overhead_s)


def describe(plan: Plan, data: ImageSet, recipe: Recipe) -> str:
    """The plan, its times, and what to expect, for people."""
    count, side, _, channels = data.images.shape
    names = [stage.name for stage in recipe.stages if stage.name in plan.images]
    beside = "this plan, export, report"
    width = max(map(len, (*names, beside)))
    lines = [
        f"pictures  {count:,} of {side}x{side}, {'gray' if channels == 1 else 'RGB'}{_classes(data)}",
        f"machine   {plan.device}, {plan.precision}, {'compiled' if plan.compile else 'not compiled'}, "
        f"{_threads(plan)}; memory {format_bytes(1e6 * plan.memory_mb)}, disk {format_bytes(1e6 * plan.disk_mb)}",
        *_shards(data),
        f"recipe    {plan.recipe}, the {plan.network} network: {plan.parameters / 1e6:.2f} M parameters",
        f"budget    {format_seconds(plan.budget_s)} for everything",
        "",
        f"{'stage':<{width}}  images/s     images  passes      time",
    ]
    lines += [
        f"{name:<{width}}  {plan.images_per_s[name]:8.3g} {plan.images[name]:10,}  {plan.images[name] / count:6.3g}"
        f"  {'complete' if name in plan.complete else format_seconds(plan.seconds[name]):>8}"
        for name in names
    ]
    lines += [f"{beside:<{width}}  {'':8} {'':10}  {'':6}  {format_seconds(plan.overhead_s):>8}", ""]
    return "\n".join([*lines, *(f"expect    {sentence}" for sentence in expect(plan, data, recipe))])


def expect(plan: Plan, data: ImageSet, recipe: Recipe) -> list[str]:
    """Sentences about the quality to expect."""
    count, side = data.images.shape[:2]
    has, level = images_seen(plan.images, recipe.stages), level_of(side)
    sentences = []
    if plan.estimated:
        sentences.append(
            f"a rough plan: measuring had taken {MEASURING_SHARE:.0%} of the budget, so {', '.join(plan.estimated)} "
            f"{'was' if len(plan.estimated) == 1 else 'were'} not measured but taken as {ESTIMATED_SPEED:g} times as "
            "fast as the teacher, and memory is the measured stages' alone"
        )
    if count < FEW_PICTURES:
        certainty = "will" if count < TOO_FEW_PICTURES else "may"
        sentences.append(f"{count:,} pictures: {certainty} be memorised; {FEW_PICTURES:,} or more are better")
    ahead_s = sum(seconds for name, seconds in plan.seconds.items() if name not in plan.complete)
    if (least_s := ahead_s + plan.overhead_s) > 1.05 * plan.budget_s:
        sentences.append(f"about {format_seconds(least_s)}: even one batch a stage takes longer than the budget here")
    if sentence := too_few(side, has):
        budget = format_seconds(wanted_s(plan, recipe.stages, level.usable))
        sentences.append(f"{sentence}. A budget of about {budget} buys them on this machine")
    elif has.teacher < level.good.teacher or has.student < level.good.student:
        budget = format_seconds(wanted_s(plan, recipe.stages, level.good))
        sentences.append(f"a usable result; a good one takes about {budget} on this machine")
    else:
        sentences.append("a good result for a network of this size")
    return sentences


def _shards(data: ImageSet) -> list[str]:
    """Where the images are, unless they are in memory or in a file of the run."""
    if not isinstance(data.images, ShardedImages):
        return []
    count, size = len(data.images.files), data.images.disk_bytes
    where = f"{count:,} file{'s' * (count != 1)} of {format_bytes(size)} in all"
    return [f"shards    {where}, which stay where they are: every image is read and decoded each time it is seen"]


def _threads(plan: Plan) -> str:
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count != 1)}"
    if plan.processes == 1:
        return threads
    return f"{plan.processes} processes {'with a GPU each' if plan.device == 'cuda' else f'that share {threads}'}"


def _classes(data: ImageSet) -> str:
    counts = np.bincount(data.labels[data.labels >= 0], minlength=len(data.class_names))
    if not counts.size:
        return ", without classes"
    return f", {len(counts)} classes of {counts.min():,} to {counts.max():,}"
