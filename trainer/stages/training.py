"""A training stage of a recipe: whether it is complete, and how it is trained."""

from dataclasses import asdict
from pathlib import Path

from fewstep.card import CheckpointError, read_card
from trainer.classify import train_classifier
from trainer.commands import train_student, train_teacher
from trainer.critics.classifier import classifier_hash
from trainer.journal import Done, settings_hash
from trainer.options import Distillation, RunOptions
from trainer.plan import Plan
from trainer.recipes.recipe import Stage
from trainer.run.state import read_facts, settle_state
from trainer.stages.run import DATA, Run


def run_stage(run: Run, options: RunOptions, stage: Stage, folder: Path) -> bool:
    """Train one stage; `folder` holds the results of the others. False: interrupted."""
    if stage.method == "teacher":
        return train_teacher(options, run.data)
    if stage.method == "classifier":
        return train_classifier(options, run.data)
    of = lambda name: folder / name if name else None  # noqa: E731
    critics = tuple(folder / name for name in stage.critics)
    request = Distillation(
        folder / "teacher", stage.method, dict(stage.switches), of(stage.start), None, of(stage.kept), critics
    )
    return train_student(options, run.data, request)


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
    if not run_stage(run, options, stage, out):
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
