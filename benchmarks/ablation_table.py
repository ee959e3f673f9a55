"""From the results of single runs to the table of an ablation: means, deviations, and which differences stand out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.harness import table

STEPS = (1, 2, 4, 8)
BASE = "base"


@dataclass(frozen=True)
class Cell:
    """Distances at one step count, a value per seed."""

    values: tuple[float, ...]  # of the seeds that did not diverge
    diverged: int  # seeds that did
    mean: float | None
    std: float | None  # over seeds; None below two
    stands_out: bool = False  # differs from the base by more than two combined standard errors


@dataclass(frozen=True)
class Row:
    variant: str
    seeds: int
    cells: dict[str, Cell]  # by step count


def compose(results: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """variant -> its runs, each {"distance": {k: value, or None if diverged}}. Order is kept."""
    plain = {
        name: {str(k): _cell([run["distance"][str(k)] for run in runs]) for k in STEPS}
        for name, runs in results.items()
    }
    return [
        Row(
            variant=name,
            seeds=len(results[name]),
            cells={k: _compared(cell, plain[BASE][k]) if BASE in plain else cell for k, cell in cells.items()},
        )
        for name, cells in plain.items()
    ]


def printed(rows: Sequence[Row], floor: float | None, count: int) -> str:
    """A text table, mean ± standard deviation over seeds."""
    lines = [
        {"variant": row.variant, "seeds": row.seeds, **{k: _text(c) for k, c in row.cells.items()}} for row in rows
    ]
    columns = {"variant": "variant", "seeds": "seeds", **{str(k): f"k={k}" for k in STEPS}}
    at = "unknown at this N" if floor is None else f"{floor:.3g}"
    note = "* differs from the base by more than two combined standard errors"
    return f"{table(lines, columns)}\n\nFréchet distance of {count} images, floor {at}; {note}"


def _cell(values: list[float | None]) -> Cell:
    kept = tuple(value for value in values if value is not None)
    return Cell(
        values=kept,
        diverged=len(values) - len(kept),
        mean=float(np.mean(kept)) if kept else None,
        std=float(np.std(kept, ddof=1)) if len(kept) > 1 else None,
    )


def _compared(cell: Cell, base: Cell) -> Cell:
    if cell is base or min(len(cell.values), len(base.values)) < 2:
        return cell
    errors = [np.std(values, ddof=1) / len(values) ** 0.5 for values in (cell.values, base.values)]
    difference = abs(np.mean(cell.values) - np.mean(base.values))
    return replace(cell, stands_out=bool(difference > 2 * np.hypot(*errors)))


def _text(cell: Cell) -> str:
    if cell.diverged:
        return f"diverged {cell.diverged}/{cell.diverged + len(cell.values)}"
    spread = "" if cell.std is None else f" ± {cell.std:.2g}"
    return f"{cell.mean:.3g}{spread}{'*' if cell.stands_out else ''}"
