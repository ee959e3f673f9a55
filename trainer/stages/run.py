"""What the stages of one `fewstep train` share: the order, the recipe, the images, and where results go."""

from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.card import CheckpointError
from fewstep.outputs import STATE_FILE
from trainer.data.format import DataError, ImageSet
from trainer.journal import Journal
from trainer.options import Order, RunOptions
from trainer.plan import COMPILED_FROM_S, Plan
from trainer.recipes.by_name import RECIPES
from trainer.recipes.recipe import NetworkSize, Recipe, Stage
from trainer.run.compute import worth_compiling
from trainer.runs import fit_to_data
from trainer.settings import MachineError

DATA, EXPORT, REPORT = "data", "export", "report"
DATA_FILE = "data.zip"
INDEX = "index"  # in the facts of the stage `data`: the name of the index of shards that the images are read by
STUDENT = "student"  # folder of the exported student, with its engine inside


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
        assert self.order.network is not None, "complete_order saw to it"
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


def open_run(order: Order, journal: Journal, data: ImageSet) -> Run:
    """Everything the stages share. Raises DataError when the recipe's network does not take such images,
    MachineError when the processes cannot share its batches."""
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


def names(recipe: Recipe) -> list[str]:
    """All stages, in order."""
    return [DATA, *(stage.name for stage in recipe.stages), EXPORT, REPORT]


def names_from(first: str, recipe: Recipe) -> list[str]:
    """The stage and those that follow it. Raises CheckpointError when there is no stage of that name."""
    order = names(recipe)
    if first not in order:
        raise CheckpointError(f"there is no stage {first!r}; --from takes {', '.join(order)}")
    return order[order.index(first) :]
