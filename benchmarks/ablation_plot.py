"""The picture of an ablation: a dot for every run, a line at the base."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.ablation_table import BASE, STEPS, Row
from benchmarks.plots import plain_numbers

matplotlib.use("Agg")

DOT, STANDS_OUT, LINE = "#1d4ed8", "#c2410c", "#6b7280"


def draw_ablation(rows: Sequence[Row], floor: float | None, path: Path) -> None:
    """One panel per step count: distances (lower is better) of every seed, variants below one another."""
    figure = Figure(figsize=(11, 1.6 + 0.28 * len(rows)), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(STEPS), sharey=True, squeeze=False)[0]
    places = range(len(rows))
    for axes, k in zip(panels, map(str, STEPS), strict=True):
        for place, row in zip(places, rows, strict=True):
            cell = row.cells[k]
            colour = STANDS_OUT if cell.stands_out else DOT
            axes.plot(cell.values, [place] * len(cell.values), "o", color=colour, markersize=4, alpha=0.7)
            if cell.mean is not None:
                axes.plot([cell.mean], [place], "|", color=colour, markersize=13, markeredgewidth=2)
            if row.variant == BASE and cell.mean is not None:
                axes.axvline(cell.mean, color=LINE, linewidth=0.8)
        if floor is not None:
            axes.axvline(floor, color=LINE, linestyle=":", linewidth=0.8)
        axes.set(xscale="log", title=f"k = {k}", xlabel="Fréchet distance")
        plain_numbers(axes.xaxis)
        axes.grid(True, axis="x", which="both", alpha=0.2)
    panels[0].set_yticks(places, [row.variant for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle("Orange: differs from the base by two standard errors. Dotted: real held-out images", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
