"""What the folder of a run allows: which orders go on in it, and which results are made anew."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewstep.card import CheckpointError
from trainer import report
from trainer.journal import Journal
from trainer.options import Order
from trainer.recipes.by_name import RECIPES
from trainer.recipes.recipe import NetworkSize
from trainer.stages.pictures import pictures
from trainer.stages.planning import stored_plan
from trainer.stages.run import DATA, DATA_FILE, EXPORT, REPORT, STUDENT


def check_place(order: Order, journal: Journal) -> None:
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


def check_planned_stages(journal: Journal) -> None:
    """Raise CheckpointError when another version planned the run in another way, or with other stages."""
    if not journal.plan:
        return
    planned = stored_plan(journal)
    recipe = RECIPES.get(planned.recipe)
    if recipe is None or planned.images.keys() != {stage.name for stage in recipe.stages}:
        raise CheckpointError(
            f"{journal.folder} was begun by another version, with the recipe {planned.recipe} and the stages "
            f"{', '.join(planned.images)}; choose another --out"
        )


def complete_order(order: Order, journal: Journal, default_budget_s: float, first: str | None) -> Order:
    """The order, with the options that the run in the folder was started with where none are given.

    Raises CheckpointError when the order differs from that run's. Pictures that were moved are the same: the journal
    then has their new place.
    """
    before = journal.order if DATA in journal.stages else {}  # until the data are complete, nothing depends on it
    now = order.facts()
    free = {"budget_s"} if first or not journal.plan else set()  # stages that are repeated may have another budget
    differing = [name for name in now if before and name not in free and before.get(name) != now[name]]
    if differing == ["photos"] and _moved(order, journal):
        journal.order["photos"] = now["photos"]
        differing = []
    if differing:
        said = "; ".join(f"{_flag(name)} was {before.get(name, 'not given')}, now {now[name]}" for name in differing)
        raise CheckpointError(f"{order.out} holds another run: {said}. Choose another --out")
    stored = {name: value for name, value in before.items() if name != "photos" and getattr(order, name) is None}
    order = replace(order, **stored)
    size: NetworkSize = "large" if order.where == "cuda" else "small"
    return replace(
        order, network=order.network or size, seed=order.seed or 0, budget_s=order.budget_s or default_budget_s
    )


def _moved(order: Order, journal: Journal) -> bool:
    """Whether PHOTOS of another place than the run's are its pictures. Raises DataError where they cannot be read."""
    if order.names_recipe or not Path(journal.order["photos"]).is_absolute():  # a recipe, then or now
        return False
    size = journal.order.get("size") if order.size is None else order.size
    return pictures(replace(order, size=size)).sha256() == journal.stages[DATA].result


def _flag(name: str) -> str:
    return {"photos": "PHOTOS", "budget_s": "--budget in seconds"}.get(name, f"--{name}")


def forget(journal: Journal, stages: Sequence[str]) -> None:
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
