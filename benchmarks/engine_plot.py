"""The picture of engine_speed.py."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

matplotlib.use("Agg")

MARKERS = "os^vD<>Pp*"


def draw_engine_speed(rows: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds per image, and the speed relative to eager PyTorch, over the batch size; one line per variant."""
    figure = Figure(figsize=(10, 4.4), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, name in enumerate(dict.fromkeys(row["variant"] for row in rows)):
        line = [row for row in rows if row["variant"] == name]
        batches = [row["batch"] for row in line]
        style = {"marker": MARKERS[index % len(MARKERS)], "markersize": 4, "color": f"C{index}"}
        left.plot(batches, [row["ms_per_image"] for row in line], label=f"{name} ({line[0]['precision']})", **style)
        right.plot(batches, [row["vs_eager"] for row in line], **style)
    left.set(xscale="log", yscale="log", xlabel="batch size", ylabel="milliseconds per image", ylim=(None, None))
    right.set(xscale="log", xlabel="batch size", ylabel="times as fast as eager PyTorch", ylim=(0, None))
    batches = sorted({row["batch"] for row in rows})
    for axes in (left, right):
        axes.set_xticks([batch for batch in batches if batch & (batch - 1) == 0 or len(batches) < 6])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(True, which="both", alpha=0.2)
    left.legend(fontsize=7)
    figure.savefig(path)
