"""The pictures of the benchmarks."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("Agg")

STYLES = {
    "dpdm": ("DPDM student", "#c2410c", "o"),
    "heun": ("EDM Heun on the teacher", "#1d4ed8", "s"),
    "euler": ("EDM Euler on the teacher", "#0f766e", "^"),
}


def draw_quality_against_latency(rows: list[dict[str, Any]], path: Path) -> None:
    """Distance (lower is better) over milliseconds per image, one line per method, NFE beside every point."""
    figure = Figure(figsize=(7.5, 4.6), dpi=140, layout="constrained")
    axes = figure.subplots()
    for method, (label, colour, marker) in STYLES.items():
        points = sorted((row["p50_ms"], row["distance"], row["nfe"]) for row in rows if row["method"] == method)
        axes.plot([p[0] for p in points], [p[1] for p in points], marker=marker, color=colour, label=label)
        for milliseconds, distance, nfe in points:
            axes.annotate(
                str(nfe),
                (milliseconds, distance),
                textcoords="offset points",
                xytext=(4, 5),
                fontsize=7,
                color=colour,
            )
    axes.axhline(rows[0]["floor"], color="#6b7280", linestyle=":", label="floor: real held-out images")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="milliseconds per image, batch 1 (p50)",
        ylabel="Fréchet distance, fashion128",
    )
    axes.set_title("Quality against latency (numbers at the points: network calls)", fontsize=10)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
