"""The picture of a capacity table: latency over load, and how much each way of batching gives."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")

COLOURS = {
    "step-level": "#c2410c",
    "beside": "#1d4ed8",
    "stock padded": "#1d4ed8",
    "stock shrinking": "#0f766e",
    "stock equal": "#7c3aed",
}
NETWORKS = {"real": "the real network", "fixed": "a fixed-cost network"}


def draw_capacity(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One column per network: p50 and p99 over load above, saturated throughput over R* below."""
    networks = [name for name in NETWORKS if any(row["network"] == name for row in rows)]
    figure = Figure(figsize=(6 * len(networks), 7.2), dpi=140, layout="constrained")
    axes = figure.subplots(2, len(networks), squeeze=False, gridspec_kw={"height_ratios": [2, 1]})
    for column, network in enumerate(networks):
        chosen = [row for row in rows if row["network"] == network and row["images"] == 1]
        _latency(axes[0, column], [row for row in chosen if row["kind"] == "open"], NETWORKS[network])
        _capacity(axes[1, column], [row for row in chosen if row["kind"] == "closed"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _latency(axes: Axes, rows: Sequence[dict[str, Any]], title: str) -> None:
    for server, colour in COLOURS.items():
        line = sorted(
            (row["load"], row["p50_ms"], row["p99_ms"], row["sustained"])
            for row in rows
            if _has(row, server) and row["draw"] == 0
        )
        if not line:
            continue
        loads, p50, p99, sustained = zip(*line, strict=True)
        axes.plot(loads, p50, color=colour, label=f"{server}, p50")
        axes.plot(loads, p99, color=colour, linestyle="--", label=f"{server}, p99")
        for load, *pair, kept in zip(loads, p50, p99, sustained, strict=True):
            axes.plot([load, load], pair, color=colour, marker="o" if kept else "x", linestyle="none")
    limits = sorted((row["load"], row["latency_limit_ms"]) for row in rows)
    if limits:
        axes.plot(*zip(*limits, strict=True), color="#888", linestyle=":", label="(S_max + 2) t(cap) + 10 ms")
    axes.set(yscale="log", xlabel="offered load / R*", ylabel="ms from the moment a request is due")
    axes.set_title(f"Open loop, {title}; x: not sustained", fontsize=10)
    axes.grid(True, which="both", alpha=0.2)
    axes.set_ylim(top=axes.get_ylim()[1] * 4)  # room for the legend
    axes.legend(fontsize=7, ncols=2, loc="upper left")


def _has(row: dict[str, Any], server: str) -> bool:
    return row["server"] == server and row["p50_ms"] is not None


def _capacity(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    turns = {server: [row for row in rows if row["server"] == server] for server in reversed(COLOURS)}
    turns = {server: own for server, own in turns.items() if own}
    shares = [fmean(row["images_per_s"] / row["limit_per_s"] for row in own) for own in turns.values()]
    bars = axes.barh(list(turns), shares, color=[COLOURS[server] for server in turns])
    rates = [fmean(row["images_per_s"] for row in own) for own in turns.values()]
    axes.bar_label(bars, [f"{rate:.0f}/s" for rate in rates], fontsize=8, padding=2)
    axes.axvline(1.0, color="#888", linestyle=":")
    axes.set(xlim=(0, 1.15), xlabel="images/s when saturated, over R* (the same network back to back)")
