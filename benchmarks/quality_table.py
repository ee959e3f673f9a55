"""What quality.py found, as rows, tables and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cells import Task, read_cell
from benchmarks.harness import cell_text, table
from benchmarks.plots import Pairs, draw_pairs
from benchmarks.scores import Neighbours, Scores, score, score_held_out
from fewstep.card import write_atomically
from fewstep.metrics.cache import Cache
from fewstep.metrics.memorisation import closest_pairs, memorisation
from fewstep.metrics.precision_recall import NEIGHBOURS
from fewstep.metrics.reference import Reference
from fewstep.pixels import encode, grid
from trainer.data.format import ImageSet

SPACES = ("features", "pixels")
FIGURES = ("distance", "precision", "recall", "accuracy")
GRID = 64  # images, in eight columns
Rows = list[dict[str, Any]]


def caption(images: int) -> str:
    return (
        f"N = {images} for every distance, the floor's too. Fréchet distances are biased upwards by about c / N: "
        "compare them at equal N and in the same features only."
    )


def compose(
    cache: Cache,
    plan: Mapping[tuple[str, int, int], Task],
    labels: Mapping[str, str],
    references: Sequence[Reference],
    neighbours: Neighbours,
    stored: int,
) -> tuple[Rows, list[Pairs]]:
    """One row per series, count of calls and extractor, over the repeats that the cache holds.

    Nearest training images are looked up for the first repeat, in the first extractor's features and in pixels. The
    pairs are those of every series at its largest count of calls.
    """
    rows: Rows = []
    pairs: dict[tuple[str, str], Pairs] = {}
    order = list(labels)
    for name, nfe in sorted({place[:2] for place in plan}, key=lambda place: (order.index(place[0]), place[1])):
        tasks = {repeat: task for (other, calls, repeat), task in plan.items() if (other, calls) == (name, nfe)}
        for reference in references:
            cells = {r: cell for r, task in tasks.items() if (cell := read_cell(cache, task, reference, stored))}
            if not cells:
                continue
            scores = [score(cache, tasks[r], cell, reference) for r, cell in cells.items()]
            row = {
                "method": name, "label": labels[name], "nfe": nfe, "extractor": reference.net.name,
                "sigmas": tasks[0].key["sigmas"], "seeds": [tasks[r].key["seeds"] for r in cells],
                "repeats": len(scores), **summary(scores), "sampling_seconds": sum(c.seconds for c in cells.values()),
            }  # fmt: skip
            if reference is references[0] and 0 in cells:
                row["memorisation"] = {}
                for space in SPACES:
                    found = neighbours.of_cell(tasks[0], cells[0], space)
                    held_out = neighbours.of_held_out(len(cells[0].features), space)
                    row["memorisation"][space] = asdict(memorisation(found, held_out))
                    shown = closest_pairs(found)
                    pairs[name, space] = Pairs(labels[name], nfe, space, cells[0].pixels[[i for i, _ in shown]], shown)
            rows.append(row)
    return rows, list(pairs.values())


def summary(scores: Sequence[Scores]) -> dict[str, Any]:
    """Mean, and standard deviation over the repeats where there are several, of every figure."""
    result: dict[str, Any] = {"distances": [one.distance for one in scores]}
    for figure in FIGURES:
        values = [getattr(one, figure) for one in scores]
        known = None not in values
        result[figure] = float(np.mean(values)) if known else None
        result[f"{figure}_std"] = float(np.std(values, ddof=1)) if known and len(values) > 1 else None
    return result


def held_out_rows(references: Sequence[Reference], images: int, stored: int) -> Rows:
    return [{"extractor": one.net.name, **score_held_out(one, images, min(images, stored))} for one in references]


def tables(rows: Rows, real: Rows, nfe: Sequence[int]) -> str:
    """For every extractor a grid of distances, method by calls, and a list of all figures."""
    parts = []
    for floor in real:
        some = [row for row in rows if row["extractor"] == floor["extractor"]]
        known = (
            "no floor: too few held-out images"
            if floor["distance"] is None
            else f"floor {cell_text(floor['distance'])}"
        )
        parts += [
            f"Fréchet distance, {floor['extractor']}, {known}",
            distance_grid(some, nfe),
            f"All figures, {floor['extractor']}; precision and recall of {floor['stored']} images, k = {NEIGHBOURS}; "
            "close: share nearer to a training image than 99 % of held-out images are",
            figure_list(some, floor),
        ]
    return "\n\n".join([*parts, caption(real[0]["images"])])


def distance_grid(rows: Rows, nfe: Sequence[int]) -> str:
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(row["method"], {"label": row["label"]})
        line[str(row["nfe"])] = _with_std(row, "distance")
    return table(list(lines.values()), {"label": "network calls:", **{str(calls): str(calls) for calls in nfe}})


def figure_list(rows: Rows, floor: dict[str, Any]) -> str:
    columns = {
        "label": "method", "nfe": "NFE", "repeats": "ranges", **{name: name for name in FIGURES},
        "features": "close, features", "pixels": "close, pixels",
    }  # fmt: skip
    lines = [
        {
            **row,
            **{figure: _with_std(row, figure) for figure in FIGURES},
            **{space: facts["share_close"] for space, facts in row.get("memorisation", {}).items()},
        }
        for row in rows
    ]
    return table([*lines, {**floor, "label": "real held-out images"}], columns)


def _with_std(row: dict[str, Any], figure: str) -> str | None:
    value, std = row[figure], row[f"{figure}_std"]
    if value is None:
        return None
    return cell_text(value) if std is None else f"{cell_text(value)} ±{std:.2g}"


def draw_closest_pairs(pairs: Sequence[Pairs], train: ImageSet, path: Path) -> None:
    """The generated images that lie closest to training images, above those; nothing is picked by hand."""
    if pairs:
        draw_pairs(pairs, [train.images[[row for _, row in one.rows]] for one in pairs], path)


def draw_grids(cache: Cache, plan: Mapping[tuple[str, int, int], Task], reference: Reference, folder: Path) -> None:
    """The first 64 seeds of every finished cell of the first repeat, one PNG each."""
    for (name, nfe, repeat), task in plan.items():
        cell = read_cell(cache, task, reference, GRID) if repeat == 0 else None
        if cell is not None:
            write_atomically(folder / f"{name}-{nfe:02}.png", encode(_sheet(cell.pixels[:GRID]), "png"))


def _sheet(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return grid(pixels, columns=8)
