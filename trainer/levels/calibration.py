"""The levels at which a trained student's images are closest to the data, searched and written into its card.

The distance is a Fréchet distance in a feature space. Every list is measured on the same seeds, so that the objective
is smooth and has no sampling noise. The result is kept only if it is better on other seeds.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fewstep.card import CARD_FILE, Card, CheckpointError, card_to_json, distilled_from, read_card, write_atomically
from fewstep.checkpoint import load_denoiser
from fewstep.metrics.extractors.teacher import TeacherSpace, evenly
from fewstep.ranges import Range, check_ranges
from trainer.data.format import ImageSet
from trainer.data.matching import check_images, check_match
from trainer.levels.search import Levels, Objective, SearchConfig, Trial, evaluations, search_and_check
from trainer.levels.trajectories import Space, objective
from trainer.run.claim import claim
from trainer.run.compute import Compute, runner

FIRST_SEED = 2**33  # far from the seeds of evaluations (0 ..) and of stored endpoints (2^32 ..)
HELD_OUT = 4  # ranges of seeds that the search does not use
NO_BETTER = "not better on unseen seeds"


@dataclass(frozen=True)
class CalibrationConfig:
    images: int = 1000  # per list and range of seeds
    seed: int = 0  # another number: other seeds
    search: SearchConfig = SearchConfig()

    def __post_init__(self) -> None:
        check_ranges(self, images=Range(2, 10**9, whole=True), seed=Range(0, 2**32, whole=True))

    @property
    def ranges(self) -> list[range]:
        """Seeds of the search, then of each held-out check."""
        first = FIRST_SEED + self.seed * (1 + HELD_OUT) * self.images
        return [range(first + i * self.images, first + (i + 1) * self.images) for i in range(1 + HELD_OUT)]


def calibrate(
    model: Path,
    space: Space,
    facts: dict[str, Any],
    data: ImageSet,
    steps: Sequence[int],
    config: CalibrationConfig,
    compute: Compute,
) -> dict[int, Trial[Levels]]:
    """Search the levels of each of `steps` (none: all) and write those that are better into the model's card.

    facts: of `space`, in which images are compared with those of `data`, stored in the card.
    The card is written after every step count, so an interrupt loses only the current one; then the result has fewer
    trials than `steps`. The weights are not changed.
    Raises CheckpointError or DataError when model, data and steps do not belong together, or a run has `model`.
    """
    with claim(model):
        return _calibrate(model, space, facts, data, steps, config, compute)


def _calibrate(
    model: Path, space: Space, facts: dict[str, Any], data: ImageSet, steps: Sequence[int],
    config: CalibrationConfig, compute: Compute,
) -> dict[int, Trial[Levels]]:  # fmt: skip
    denoiser, card = load_denoiser(model, compute.device)
    planned = {k: evaluations(k, k, config.search) + 2 * HELD_OUT for k in steps_to_search(card, steps, model)}
    check_images(card, data, "the student")
    student = replace(denoiser, network=runner(denoiser.network, compute))  # pyright: ignore[reportArgumentType]
    labels = labels_in_proportion(data.labels, config.images)
    facts = {
        **facts,
        "data": data.sha256(),
        "images": config.images,
        "seeds": [[seeds.start, seeds.stop - 1] for seeds in config.ranges],
    }
    trials: dict[int, Trial[Levels]] = {}
    with tqdm(total=sum(planned.values()), unit="list") as bar:

        def with_progress(objective: Objective) -> Objective:
            def measure(levels: Levels) -> float:
                value = objective(levels)
                bar.update()
                bar.set_postfix_str(f"k={len(levels)}  distance {value:.4g}", refresh=False)
                return value

            return measure

        objectives = [
            with_progress(objective(student, card, space, labels, seeds, compute.device)) for seeds in config.ranges
        ]
        for k in planned:
            try:
                trials[k] = search_and_check(objectives, card.levels[k], card.levels.get(k - 1), config.search)
            except KeyboardInterrupt:
                break
            card = add_trial(card, k, trials[k], facts)
            write_atomically(model / CARD_FILE, card_to_json(card).encode())
            bar.update(
                sum(planned[done] for done in trials) - bar.n
            )  # some lists were cached or had no room for a change
    return trials


def labels_in_proportion(labels: NDArray[np.integer], count: int) -> NDArray[np.integer]:
    """`count` labels [count] with the class frequencies of `labels`, to within one label.

    With other frequencies the search would compensate for them, on the held-out seeds too, since labels are the same.
    """
    return np.sort(labels)[evenly(len(labels), count)]


def add_trial(card: Card, k: int, trial: Trial[Levels], facts: dict[str, Any]) -> Card:
    """The card with the trial in its training notes, and with the found levels if they were accepted.

    Metrics of k calls are then removed, because they were measured at the levels before.
    """
    notes = {**card.training.get("calibration", {}), str(k): {**facts, **asdict(trial)}}
    card = replace(card, training={**card.training, "calibration": notes})
    if not trial.accepted:
        return card
    without = lambda metric: {n: v for n, v in metric.items() if n != str(k)} if isinstance(metric, dict) else metric  # noqa: E731
    return replace(
        card,
        levels={**card.levels, k: trial.found},
        metrics={name: without(metric) for name, metric in card.metrics.items()},
    )


def teacher_space(model: Path, teacher: Path, data: ImageSet, compute: Compute) -> tuple[TeacherSpace, dict[str, Any]]:
    """The feature space of the teacher, and its facts for the card.

    Raises CheckpointError or DataError when the three do not belong together.
    """
    denoiser, parent = load_denoiser(teacher, compute.device)
    card = read_card(model)
    if parent.role != "teacher" or not distilled_from(card, parent):
        raise CheckpointError(
            f"{model} was not distilled from {teacher} (its card names the teacher {str(card.parent)[:12]}..., "
            f"that one is {parent.weights[:12]}...); give --teacher the folder it was distilled from"
        )
    check_match(parent, data, teacher)
    if card.conditions:
        raise CheckpointError(f"{model} takes {card.conditions[0].name}; levels of such students are not calibrated")
    space = TeacherSpace.of(denoiser, data.images, data.labels)
    return space, {"space": space.description, "teacher": parent.weights}


def steps_to_search(card: Card, steps: Sequence[int], model: Path) -> list[int]:
    """The step counts to search, ascending: those asked for, or all. Raises CheckpointError."""
    if card.role != "student":
        raise CheckpointError(f"{model} is a {card.role}; only a student has levels to calibrate")
    possible = sorted(card.levels)
    if impossible := sorted(set(steps) - set(possible)):
        raise CheckpointError(
            f"{model} has no levels to search for {', '.join(map(str, impossible))} calls; choose --steps from "
            f"{', '.join(map(str, possible))}"
        )
    return sorted(set(steps)) or possible


def describe(trials: dict[int, Trial[Levels]]) -> str:
    """A line for every step count, for people."""
    lines = [f"{'k':>2}  {'searched':>16}  {'held out':>16}  levels"]
    for k, trial in trials.items():
        held_out = f"{np.mean(trial.held_out_before):.4g} -> {np.mean(trial.held_out_after):.4g}"
        verdict = "" if trial.accepted else f"  {NO_BETTER}: not kept"
        found = ", ".join(f"{sigma:.3g}" for sigma in trial.found)
        lines.append(f"{k:>2}  {f'{trial.before:.4g} -> {trial.after:.4g}':>16}  {held_out:>16}  {found}{verdict}")
    return "\n".join(lines)
