"""A training stage of a recipe: whether it is complete, and how it is trained."""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from fewstep.card import CheckpointError, read_card
from fewstep.ranges import RangeError
from trainer.classify import train_classifier
from trainer.commands import train_student, train_teacher
from trainer.critics.classifier import classifier_hash
from trainer.data.format import DataError, ImageSet
from trainer.journal import Done, Journal, settings_hash
from trainer.options import Distillation, Order, RunOptions
from trainer.plan import Plan, memory_mb
from trainer.recipes.recipe import Stage
from trainer.run.loop import DivergedError
from trainer.run.spawned import in_processes
from trainer.run.state import read_facts, settle_state
from trainer.settings import MachineError
from trainer.stages.pictures import pictures, read_data
from trainer.stages.run import DATA, Run


class Trained(NamedTuple):
    completed: bool  # False: interrupted
    memory_mb: int  # of all processes together, at most


REFUSALS = (CheckpointError, DataError, MachineError, RangeError, DivergedError, OSError)


def run_stage(run: Run, options: RunOptions, stage: Stage, folder: Path) -> Trained:
    """Train one stage, in as many processes as are asked for; `folder` holds the results of the others."""
    if run.processes == 1:
        return Trained(_train_with(run.data, options, stage, folder), memory_mb())
    read = DATA in run.journal.stages  # else this is a plan that writes nothing
    shared = (run.order, read, options, stage, folder)
    first = in_processes(run.processes, run.order.where, REFUSALS, train_shared, *shared)
    return Trained(first.completed, run.processes * first.memory_mb)


def train_shared(order: Order, read: bool, options: RunOptions, stage: Stage, folder: Path) -> Trained:
    """Train one stage in one of several processes, each of which reads the data itself. read: by the stage `data`."""
    data = read_data(Journal.read(order.out)) if read else pictures(order)
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


def is_complete(run: Run, stage: Stage, planned: Plan) -> bool:
    """Whether it is complete. Raises CheckpointError if it was made with other settings or from other parents."""
    done = run.journal.stages.get(stage.name)
    if done is None:
        return False
    if done.settings != _settings(run, stage, planned) or done.parents != _parents(run, stage):
        raise CheckpointError(
            f"the stage {stage.name} of {run.order.out} was made with other settings; --from {stage.name} makes it anew"
        )
    return True


def train_stage(run: Run, stage: Stage, planned: Plan) -> bool:
    """Train it to its end, from its last checkpoint where there is one, and enter it. False: interrupted."""
    out = run.order.out
    settle_state(out / stage.name)
    options = run.options(stage, out, planned.images[stage.name], stage.name, planned)
    if not run_stage(run, options, stage, out).completed:
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


def _settings(run: Run, stage: Stage, planned: Plan) -> str:
    settings = [asdict(stage), planned.images[stage.name], run.batches[stage.name], run.network, planned.precision]
    return settings_hash([*settings, run.recipe_name, run.order.seed or 0])


def _parents(run: Run, stage: Stage) -> dict[str, str]:
    return {name: run.journal.stages[name].result for name in (DATA, *stage.parents)}
