"""Distances that quality.py and panel.py have measured already, found again by weights, sampler and noise levels."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import ROOT
from benchmarks.methods import SOLVERS, family_names
from fewstep.card import CheckpointError

RESULTS = ROOT / "benchmarks" / "results"
INDEX = RESULTS / "INDEX.json"
OF_A_TEACHER = {*(method.name for method in SOLVERS), *family_names()}
STUDENT = "student"  # the sampler of every student in a Key


class Key(NamedTuple):
    """What was sampled, and how."""

    checkpoint: str  # sha256 of the weights
    sampler: str  # the name of a solver, or STUDENT
    sigmas: tuple[str, ...]  # nine digits, so that a file's rounding does not matter

    @staticmethod
    def of(checkpoint: str, method: str, sigmas: Sequence[float]) -> "Key":
        """method: the name of a solver; any other name is a student's."""
        name = method if method in OF_A_TEACHER else STUDENT
        return Key(checkpoint, name, tuple(f"{sigma:.9g}" for sigma in sigmas))


@dataclass(frozen=True)
class Distance:
    """How far a sampler's images are from the data in one feature space."""

    mean: float
    std: float | None  # over ranges of seeds; None of one range
    floor: float | None  # of as many real images
    images: int  # in a range
    source: str  # file name of the result, or what else measured it


Known = Mapping[Key, Mapping[str, Distance]]  # by feature space, such as "fashion128, N = 10000"


def read_known(files: Iterable[Path]) -> Known:
    """Of several distances in one space the first counts. Raises CheckpointError for a file of another kind."""
    known: dict[Key, dict[str, Distance]] = {}
    for file in files:
        for key, space, distance in _distances(file):
            known.setdefault(key, {}).setdefault(space, distance)
    return known


def committed(student: str, index: Path = INDEX) -> list[Path]:
    """The results of quality.py and panel.py that hold distances of this student, those with the most rows first.

    student: sha256 of its weights. Empty where there are no results, as in an installed package.
    """
    if not index.is_file():
        return []
    files = [
        index.parent / entry["file"]
        for entry in json.loads(index.read_text("utf-8"))
        if entry["command"].startswith(("python benchmarks/quality.py", "python benchmarks/panel.py"))
    ]
    rows = {file: sum(key.checkpoint == student for key, _, _ in _distances(file)) for file in files}
    return sorted((file for file in files if rows[file]), key=lambda file: -rows[file])


def _distances(file: Path) -> list[tuple[Key, str, Distance]]:
    try:
        result = json.loads(file.read_text("utf-8"))
        if result["benchmark"] == "quality":
            return _of_quality(result, file.name)
        if result["benchmark"] == "panel":
            return _of_panel(result, file.name)
        raise KeyError(result["benchmark"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} holds no distances ({error!r}); give a result of benchmarks/quality.py or benchmarks/panel.py"
        ) from error


def _of_quality(result: Mapping[str, Any], name: str) -> list[tuple[Key, str, Distance]]:
    floors = {row["extractor"]: row["distance"] for row in result["held_out"]}
    images, weights = result["settings"]["images"], result["checkpoints"]
    found = []
    for row in result["rows"]:
        checkpoint = weights["teacher"] if row["method"] in OF_A_TEACHER else weights.get(row["method"])
        if checkpoint is None:  # a teacher under a student's sampler: no row of latency.py
            continue
        space = f"{row['extractor']}, N = {images}"
        distance = Distance(row["distance"], row["distance_std"], floors[row["extractor"]], images, name)
        found.append((Key.of(checkpoint, row["method"], row["sigmas"]), space, distance))
    return found


def _of_panel(result: Mapping[str, Any], name: str) -> list[tuple[Key, str, Distance]]:
    """Its Fréchet distances alone: other metrics are no distance to the data."""
    real, *rows = result["rows"]
    images = result["settings"]["images"]
    return [
        (
            Key.of(row["checkpoint"], row["sampler"].partition(":")[0], row["sigmas"]),
            f"panel's {metric.removeprefix('frechet ')}, N = {images}",
            Distance(judged["mean"], judged["std"], real["metrics"][metric]["mean"], images, name),
        )
        for row in rows
        for metric, judged in row["metrics"].items()
        if metric.startswith("frechet ") and judged["mean"] is not None
    ]
