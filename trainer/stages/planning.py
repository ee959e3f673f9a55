"""The plan of a run: measured and made once, kept in the journal, made again for stages that are repeated."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewstep.card import CheckpointError, read_card
from fewstep.described import from_json
from trainer.journal import Journal
from trainer.plan import MEASURING_SHARE, Plan, Rehearsal, plan, rehearse
from trainer.recipes.recipe import Stage
from trainer.run.progress import format_bytes
from trainer.stages.run import DATA_FILE, Run
from trainer.stages.training import run_stage


def make_plan(run: Run, stages: Sequence[Stage], began: float) -> Plan:
    """Measure a few updates of every stage of the recipe, and share the budget among `stages`."""
    batches = run.batches

    def train_briefly(stage: Stage, folder: Path, images: int, label: str) -> int:
        options = run.options(stage, folder, images, label, None)
        if stage.method != "teacher":
            options = replace(options, precision=read_card(folder / "teacher").training["precision"])
        done = run_stage(run, options, stage, folder)
        if not done.completed:
            raise KeyboardInterrupt
        return done.memory_mb

    budget_s = run.order.budget_s
    assert budget_s is not None, "complete_order saw to it"
    measured: Rehearsal = rehearse(
        run.recipe.stages, batches, train_briefly, run.order.where, run.compiles, MEASURING_SHARE * budget_s
    )
    return plan(
        measured, stages, batches, budget_s, time.monotonic() - began, recipe=run.recipe_name,
        network=run.network, device=run.order.where, compile=run.compiles, processes=run.processes,
    )  # fmt: skip


def stored_plan(journal: Journal) -> Plan:
    """The plan of a run. Raises CheckpointError for one of another version."""
    try:
        return from_json(Plan, journal.plan)
    except ValueError as error:
        raise CheckpointError(
            f"{journal.folder} was planned by another version ({error}); choose another --out"
        ) from error


def merge_plans(before: dict[str, Any], made: Plan) -> Plan:
    """A plan of the repeated stages, with the images of the complete ones."""
    if not before:
        return made
    kept = {name: {**before[name], **getattr(made, name)} for name in ("images", "seconds", "checkpoint_s")}
    complete = tuple(name for name in before["images"] if name not in made.images)
    return replace(made, precision=before["precision"], complete=complete, **kept)


def check_disk(out: Path, planned: Plan) -> None:
    """Raise CheckpointError when the disk has less room than the plan needs beyond what is written already."""
    done = sum(file.stat().st_size for file in out.rglob("*") if file.is_file() and file.name != DATA_FILE)
    needed, free = 1e6 * planned.disk_mb - done, shutil.disk_usage(out).free
    if free < needed:
        raise CheckpointError(
            f"{out} needs {format_bytes(needed)} more, and {format_bytes(free)} are free; make room or choose another "
            "--out"
        )
