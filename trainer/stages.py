"""A recipe's stages in order, resumable: data, training, export, report. Complete stages are not repeated.

Every stage writes its result atomically and is then recorded in OUT/stages.json. Training stages save their state while
they run; the others are short and start again after an interruption.
"""

import errno
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fewstep.card import CheckpointError, file_sha256, read_card, write_atomically
from fewstep.checkpoint import load_checkpoint, save_checkpoint
from fewstep.outputs import STATE_FILE
from fewstep.ranges import RangeError
from trainer import model_card, report
from trainer.classify import train_classifier
from trainer.commands import train_student, train_teacher
from trainer.critics.classifier import classifier_hash
from trainer.data.command import describe_unread
from trainer.data.format import DataError, ImageSet, read_image_set, write_image_set
from trainer.data.named import READERS, read_recipe
from trainer.data.shards import ShardedImages, read_index
from trainer.data.sources.given import read_given
from trainer.journal import Done, Journal, settings_hash
from trainer.options import Distillation, Order, RunOptions
from trainer.plan import (
    COMPILED_FROM_S,
    MEASURING_SHARE,
    Plan,
    Rehearsal,
    describe,
    images_seen,
    memory_mb,
    plan,
    rehearse,
    too_few,
)
from trainer.recipes.by_name import RECIPES
from trainer.recipes.recipe import NetworkSize, Recipe, Stage
from trainer.run.claim import claim
from trainer.run.compute import worth_compiling
from trainer.run.distributed import process_count
from trainer.run.loop import DivergedError
from trainer.run.progress import format_seconds
from trainer.run.spawned import in_processes
from trainer.run.state import read_facts, settle_state
from trainer.runs import fit_to_data
from trainer.settings import MachineError

DATA, EXPORT, REPORT = "data", "export", "report"
DATA_FILE = "data.zip"
INDEX = "index"  # in the facts of the stage `data`: the name of the index of shards that the images are read by
STUDENT = "student"  # folder of the exported student, with its engine inside
INTERRUPTED = 130

Export = Callable[[Path, Path], dict[str, Any]]  # (checkpoint folder, engine folder) -> measurements


@dataclass(frozen=True)
class Run:
    """Everything the stages share."""

    order: Order
    recipe: Recipe
    recipe_name: str
    data: ImageSet
    journal: Journal

    def options(self, stage: Stage, folder: Path, images: int, label: str, plan: Plan | None) -> RunOptions:
        out = folder / stage.name
        options = RunOptions(
            self.recipe_name, out, images=images, batch=self.batches[stage.name], label=label,
            seed=(self.order.seed or 0) + stage.seed, resume=(out / STATE_FILE).exists(), device=self.order.where,
            network=self.network, compile="on" if self.compiles else "off", announces=False,  # the plan says how
        )  # fmt: skip
        if plan is None:
            return replace(options, sheets=False)
        return replace(options, precision=plan.precision, checkpoint_s=plan.checkpoint_s[stage.name])

    @property
    def network(self) -> NetworkSize:
        assert self.order.network is not None, "_complete_order saw to it"
        return self.order.network

    @property
    def processes(self) -> int:
        return self.order.processes or 1

    @property
    def compiles(self) -> bool:
        long = (self.order.budget_s or 0) >= COMPILED_FROM_S
        return long and worth_compiling(self.order.where, self.order.budget_s)

    @property
    def batches(self) -> dict[str, int]:
        usual = self.recipe.batch_of(self.network)
        return {stage.name: stage.batch or usual for stage in self.recipe.stages}


def names(recipe: Recipe) -> list[str]:
    """All stages, in order."""
    return [DATA, *(stage.name for stage in recipe.stages), EXPORT, REPORT]


def train(
    order: Order, default_budget_s: float, export: Export, began: float, first: str | None = None, dry_run: bool = False
) -> int:
    """Run all stages that are not complete. Returns the exit status. Training stages have order.processes processes.

    began: start time of the command by time.monotonic, because the budget covers the whole command. first: this stage
    and all that follow are repeated. dry_run: print the plan, write nothing.
    Raises CheckpointError, DataError, MachineError or OSError with a sentence; complete stages remain.
    """
    _check_processes(order)
    if first:
        _from(first, RECIPES[order.photos if order.names_recipe else "photos"])  # before any picture is read
    journal = Journal.read(order.out)
    _check_place(order, journal)
    if dry_run:
        order = _complete_order(order, journal, default_budget_s, first)
        read = DATA in journal.stages and first != DATA
        run = _open_run(order, journal, _read_data(journal) if read else _pictures(order))
        print(describe(_make_plan(run, run.recipe.stages, began), run.data, run.recipe), flush=True)
        return 0
    with claim(order.out):
        journal = Journal.read(order.out)
        order = _complete_order(order, journal, default_budget_s, first)
        try:
            return _train(order, journal, export, first, began)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise CheckpointError(
                f"the disk is full ({error}); make room, then go on from here with: {command(order)}"
            ) from error


def _train(order: Order, journal: Journal, export: Export, first: str | None, began: float) -> int:
    _check_planned_stages(journal)
    if first == DATA and DATA in journal.stages:
        _forget(journal, names(RECIPES[journal.plan["recipe"]]) if journal.plan else [DATA])
    if DATA not in journal.stages:
        _prepare(order, journal)
    run = _open_run(order, journal, _read_data(journal))
    if first and first != DATA:
        _forget(journal, _from(first, run.recipe))
    missing = [stage for stage in run.recipe.stages if stage.name not in journal.stages]
    if not journal.plan or first in {stage.name for stage in run.recipe.stages}:
        made = _make_plan(run, missing, began)
        journal.plan, journal.order = asdict(_merge_plans(journal.plan, made)), order.facts()
        journal.write()
    planned = Plan(**journal.plan)
    _enough_disk(order.out, planned)
    print(describe(planned, run.data, run.recipe), flush=True)
    for stage in run.recipe.stages:
        if not _complete(run, stage, planned) and not _train_stage(run, stage, planned):
            print(f"interrupted in the stage {stage.name}; go on with: {command(order)}", file=sys.stderr)
            return INTERRUPTED
    if EXPORT not in journal.stages:
        _export(run, export)
    if REPORT not in journal.stages:
        _report(run, planned)
    print(ending(run, planned), flush=True)
    return 0


def _check_processes(order: Order) -> None:
    """Raise MachineError where this machine or its environment cannot have the processes that are asked for. Says so
    where it could have more."""
    if (started := process_count()) > 1:
        raise MachineError(
            f"torchrun has started {started} processes, and fewstep train starts its own: run it without torchrun, "
            f"with --processes {started}; on several machines, run its stages one by one (docs/training.md)"
        )
    gpus = torch.cuda.device_count() if order.where == "cuda" else None
    if gpus is not None and (order.processes or 1) > gpus:
        raise MachineError(f"--processes {order.processes}: each needs a GPU of its own, and this machine has {gpus}")
    if gpus is not None and gpus > 1 and order.processes is None:
        print(f"one of {gpus} GPUs is used; --processes {gpus} uses all of them", file=sys.stderr, flush=True)


def _check_planned_stages(journal: Journal) -> None:
    """Raise CheckpointError when an earlier version planned the run with other stages."""
    planned = journal.plan.get("images", {})
    if planned and planned.keys() != {stage.name for stage in RECIPES[journal.plan["recipe"]].stages}:
        raise CheckpointError(
            f"{journal.folder} was begun by another version, with the stages {', '.join(planned)}; choose another --out"
        )


def _from(first: str, recipe: Recipe) -> list[str]:
    """The stage and those that follow it. Raises CheckpointError when there is no stage of that name."""
    order = names(recipe)
    if first not in order:
        raise CheckpointError(f"there is no stage {first!r}; --from takes {', '.join(order)}")
    return order[order.index(first) :]


def _check_place(order: Order, journal: Journal) -> None:
    """Raise CheckpointError when the run would write among its pictures, or over what no run of this command made."""
    out, recipe = order.out.resolve(), RECIPES[order.photos if order.names_recipe else "photos"]
    if out == Path(out.anchor):
        raise CheckpointError(f"--out {order.out} is the root of all folders; name a folder for this run")
    results = [DATA_FILE, *(stage.name for stage in recipe.stages), STUDENT, report.FILE]
    if not order.names_recipe:
        photos = Path(order.photos).resolve()
        if photos.is_dir() and out.is_relative_to(photos):
            raise CheckpointError(
                f"--out {order.out} lies in {order.photos}, where folders are read as classes; name a folder outside it"
            )
        if any(photos.is_relative_to(out / name) for name in results):
            raise CheckpointError(
                f"{order.photos} would be overwritten: this run writes it in --out {order.out}; choose another --out"
            )
    if not journal.order and (found := [name for name in results if os.path.lexists(out / name)]):
        raise CheckpointError(
            f"--out {order.out} already holds {', '.join(found)} and no run of this command; name another folder"
        )


def _forget(journal: Journal, stages: Sequence[str]) -> None:
    """Remove stages and their results. The journal is written first, so an interruption repeats the stages."""
    journal.stages = {name: done for name, done in journal.stages.items() if name not in stages}
    if DATA in stages:
        journal.plan = {}  # the order stays: it says that the folder is this command's
    journal.write()
    places = {DATA: DATA_FILE, EXPORT: STUDENT, REPORT: report.FILE}
    for name in stages:
        path = journal.folder / places.get(name, name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _complete_order(order: Order, journal: Journal, default_budget_s: float, first: str | None) -> Order:
    """The order, with the options that the run in the folder was started with where none are given.

    Raises CheckpointError when the order differs from that run's.
    """
    before = journal.order if DATA in journal.stages else {}  # until the data are complete, nothing depends on it
    now = order.facts()
    free = {"budget_s"} if first or not journal.plan else set()  # stages that are repeated may have another budget
    differing = [name for name in now if before and name not in free and before.get(name) != now[name]]
    if differing:
        said = "; ".join(f"{_flag(name)} was {before.get(name, 'not given')}, now {now[name]}" for name in differing)
        raise CheckpointError(f"{order.out} holds another run: {said}. Choose another --out")
    stored = {name: value for name, value in before.items() if name != "photos" and getattr(order, name) is None}
    order = replace(order, **stored)
    size: NetworkSize = "large" if order.where == "cuda" else "small"
    return replace(
        order, network=order.network or size, seed=order.seed or 0, budget_s=order.budget_s or default_budget_s
    )


def _flag(name: str) -> str:
    return {"photos": "PHOTOS", "budget_s": "--budget in seconds"}.get(name, f"--{name}")


def _pictures(order: Order) -> ImageSet:
    """Raises DataError."""
    if not order.names_recipe:
        if order.half:
            raise DataError(f"--half {order.half} is of a recipe's pictures, and {order.photos} is none; leave it out")
        return read_given(Path(order.photos), order.size)
    if order.photos not in READERS:
        raise DataError(f"the recipe {order.photos} has no pictures of its own; name a folder of pictures")
    if order.size:
        raise DataError(f"the pictures of {order.photos} have a size of their own; leave --size out")
    return read_recipe(order.photos, None, half=order.half)


def _prepare(order: Order, journal: Journal) -> None:
    began = time.monotonic()
    print(f"reading {order.photos}", file=sys.stderr, flush=True)
    images = _pictures(order)
    for line in describe_unread(images):
        print(line, file=sys.stderr, flush=True)
    journal.order = order.facts()
    journal.write()  # before any result: results without a journal are not this command's
    if isinstance(images.images, ShardedImages):  # they are too many for a copy
        facts = {INDEX: Path(order.photos).name}  # where it lies is the order's: models are published with these facts
    else:
        write_image_set(order.out / DATA_FILE, images)
        facts = {"file": DATA_FILE}
    settings = settings_hash({"photos": order.photos, "size": order.size})
    seconds = round(time.monotonic() - began, 2)
    journal.stages[DATA] = Done(settings, {}, images.sha256(), seconds, facts=facts)
    journal.write()


def _read_data(journal: Journal) -> ImageSet:
    """The images of a run, as its stage `data` left them.

    Raises DataError for shards that are gone or have changed, CheckpointError for an index of other images.
    """
    done = journal.stages[DATA]
    if INDEX not in done.facts:
        return read_image_set(journal.folder / done.facts["file"])
    index = Path(journal.order["photos"])
    images = read_index(index)
    if images.sha256() != done.result:
        raise CheckpointError(
            f"{index} lists other images than those {journal.folder} was begun with; choose another --out, or begin "
            f"anew with --from {DATA}"
        )
    return images


def _open_run(order: Order, journal: Journal, data: ImageSet) -> Run:
    """Everything the stages share. Raises DataError when the recipe's network does not take such images."""
    side = data.images.shape[1]
    name = order.photos if order.names_recipe else ("photos" if side <= 32 else "photos-64")
    run = Run(order, RECIPES[name], name, data, journal)
    try:
        fit_to_data(run.recipe.network_of(run.network), data)
    except ValueError as error:
        raise DataError(f"images of {side}x{side} do not fit the network of {name}: {error}") from error
    if any(stage.method == "classifier" for stage in run.recipe.stages) and (data.labels < 0).any():
        raise DataError(f"the recipe {name} trains classifiers, and {data.name} has images without a class")
    for stage, batch in run.batches.items():
        if batch % run.processes:
            raise MachineError(
                f"--processes {run.processes}: they share batches of {batch} images evenly in the stage {stage}; "
                f"choose a number that divides {batch}"
            )
    return run


def _make_plan(run: Run, stages: Sequence[Stage], began: float) -> Plan:
    """Measure a few updates of every stage of the recipe, and share the budget among `stages`."""
    batches = run.batches

    def train_briefly(stage: Stage, folder: Path, images: int, label: str) -> int:
        options = run.options(stage, folder, images, label, None)
        if stage.method != "teacher":
            options = replace(options, precision=read_card(folder / "teacher").training["precision"])
        done = _run_stage(run, options, stage, folder)
        if not done.completed:
            raise KeyboardInterrupt
        return done.memory_mb

    budget_s = run.order.budget_s
    assert budget_s is not None, "_complete_order saw to it"
    measured: Rehearsal = rehearse(
        run.recipe.stages, batches, train_briefly, run.order.where, run.compiles, MEASURING_SHARE * budget_s
    )
    return plan(
        measured, stages, batches, budget_s, time.monotonic() - began, recipe=run.recipe_name,
        network=run.network, device=run.order.where, compile=run.compiles, processes=run.processes,
    )  # fmt: skip


def _merge_plans(before: dict[str, Any], made: Plan) -> Plan:
    """A plan of the repeated stages, with the images of the complete ones."""
    if not before:
        return made
    kept = {name: {**before[name], **getattr(made, name)} for name in ("images", "seconds", "checkpoint_s")}
    complete = tuple(name for name in before["images"] if name not in made.images)
    return replace(made, precision=before["precision"], complete=complete, **kept)


def _enough_disk(out: Path, planned: Plan) -> None:
    free_mb = shutil.disk_usage(out).free / 1e6
    done = sum(file.stat().st_size for file in out.rglob("*") if file.is_file() and file.name != DATA_FILE) / 1e6
    if free_mb < planned.disk_mb - done:
        raise CheckpointError(
            f"{out} needs {planned.disk_mb / 1e3:.1f} GB, and {free_mb / 1e3:.1f} GB are free; "
            "make room or choose another --out"
        )


class Trained(NamedTuple):
    completed: bool  # False: interrupted
    memory_mb: int  # of all processes together, at most


REFUSALS = (CheckpointError, DataError, MachineError, RangeError, DivergedError, OSError)


def _run_stage(run: Run, options: RunOptions, stage: Stage, folder: Path) -> Trained:
    """Train one stage, in as many processes as are asked for; `folder` holds the results of the others."""
    if run.processes == 1:
        return Trained(_train_with(run.data, options, stage, folder), memory_mb())
    read = DATA in run.journal.stages  # else this is a plan that writes nothing
    shared = (run.order, read, options, stage, folder)
    first = in_processes(run.processes, run.order.where, REFUSALS, train_shared, *shared)
    return Trained(first.completed, run.processes * first.memory_mb)


def train_shared(order: Order, read: bool, options: RunOptions, stage: Stage, folder: Path) -> Trained:
    """Train one stage in one of several processes, each of which reads the data itself. read: by the stage `data`."""
    data = _read_data(Journal.read(order.out)) if read else _pictures(order)
    return Trained(_train_with(data, options, stage, folder), memory_mb())


def _train_with(data: ImageSet, options: RunOptions, stage: Stage, folder: Path) -> bool:
    """False: interrupted."""
    if stage.method == "teacher":
        return train_teacher(options, data)
    if stage.method == "classifier":
        return train_classifier(options, data)
    of = lambda name: folder / name if name else None  # noqa: E731
    critics = tuple(folder / name for name in stage.critics)
    request = Distillation(
        folder / "teacher", stage.method, dict(stage.switches), of(stage.start), None, of(stage.kept), critics
    )
    return train_student(options, data, request)


def _settings(run: Run, stage: Stage, planned: Plan) -> str:
    settings = [asdict(stage), planned.images[stage.name], run.batches[stage.name], run.network, planned.precision]
    return settings_hash([*settings, run.recipe_name, run.order.seed or 0])


def _parents(run: Run, stage: Stage) -> dict[str, str]:
    return {name: run.journal.stages[name].result for name in (DATA, *stage.parents)}


def _complete(run: Run, stage: Stage, planned: Plan) -> bool:
    """Whether it is complete. Raises CheckpointError if it was made with other settings or from other parents."""
    done = run.journal.stages.get(stage.name)
    if done is None:
        return False
    if done.settings != _settings(run, stage, planned) or done.parents != _parents(run, stage):
        raise CheckpointError(
            f"the stage {stage.name} of {run.order.out} was made with other settings; --from {stage.name} makes it anew"
        )
    return True


def _train_stage(run: Run, stage: Stage, planned: Plan) -> bool:
    out = run.order.out
    settle_state(out / stage.name)
    options = run.options(stage, out, planned.images[stage.name], stage.name, planned)
    if not _run_stage(run, options, stage, out).completed:
        return False
    folder = out / stage.name
    result = classifier_hash(folder) if stage.method == "classifier" else read_card(folder).weights
    facts = read_facts(folder)
    run.journal.stages[stage.name] = Done(
        _settings(run, stage, planned), _parents(run, stage), result, round(facts["elapsed_s"], 2), facts["images"],
        {"method": stage.method, "switches": dict(stage.switches), "images_per_s": facts["images_per_s"]},
    )  # fmt: skip
    run.journal.write()
    return True


def _export(run: Run, export: Export) -> None:
    """Save the last stage's weights in half precision with a card that lists all stages, and export them."""
    began, out, last = time.monotonic(), run.order.out, run.recipe.stages[-1].name
    print("exporting the student, and comparing its engine with PyTorch", file=sys.stderr, flush=True)
    weights, card = load_checkpoint(out / last)
    stages = {name: asdict(done) for name, done in run.journal.stages.items() if name not in (EXPORT, REPORT)}
    totals = [done for name, done in run.journal.stages.items() if name not in (DATA, EXPORT, REPORT, "teacher")]
    training = {
        **card.training, "published_from": card.weights, "stages": stages,
        "images": sum(done.images for done in totals), "seconds": round(sum(done.seconds for done in totals), 1),
    }  # fmt: skip
    half = {name: tensor.half() for name, tensor in weights.items()}
    saved = save_checkpoint(out / STUDENT, half, replace(card, training=training))
    facts = export(out / STUDENT, out / STUDENT / "engine")
    parents = {last: run.journal.stages[last].result}
    seconds = round(time.monotonic() - began, 2)
    run.journal.stages[EXPORT] = Done(settings_hash(last), parents, saved.weights, seconds, facts=facts)
    run.journal.write()


def _report(run: Run, planned: Plan) -> None:
    began = time.monotonic()
    print("writing the report", file=sys.stderr, flush=True)
    out = run.order.out
    contents = report.Contents(
        out, run.data, planned, run.recipe, run.journal, command(run.order), serve_command(out), run.order.where
    )
    facts = report.write(contents)
    text = model_card.model_card(read_card(out / STUDENT), out.resolve().name, facts)
    write_atomically(out / STUDENT / model_card.FILE, text.encode())
    parents = {EXPORT: run.journal.stages[EXPORT].result}
    settings, seconds = settings_hash(planned.report_images), round(time.monotonic() - began, 2)
    run.journal.stages[REPORT] = Done(settings, parents, file_sha256(out / report.FILE), seconds, facts=facts)
    run.journal.write()


def command(order: Order) -> str:
    """The command that starts or continues this run."""
    options = {
        "half": order.half, "size": order.size, "network": order.network, "device": order.device,
        "seed": order.seed or None, "processes": order.processes,
    }  # fmt: skip
    given = [f"--{name} {value}" for name, value in options.items() if value is not None]
    paths = f"{shlex.quote(order.photos)} --out {shlex.quote(str(order.out))}"
    return " ".join([f"fewstep train {paths} --budget {order.budget_s:.0f}s", *given])


def serve_command(out: Path) -> str:
    return f"fewstep serve --engine {shlex.quote(str(out / STUDENT / 'engine'))}"


def ending(run: Run, planned: Plan) -> str:
    """The closing lines. A student that is not usable is not called ready."""
    seconds, out = sum(done.seconds for done in run.journal.stages.values()), run.order.out
    sentence = too_few(run.data.images.shape[1], images_seen(planned.images, run.recipe.stages))
    head = f"{out} is ready" if sentence is None else f"{out} is complete, but {sentence}"
    measuring = planned.measuring_s
    took = f"took {format_seconds(seconds + measuring)}, {format_seconds(measuring)} of it for the plan"
    return f"{head}\n{took}; the report is {out / 'report.html'}\nserve it with: {serve_command(out)}"
