"""The pictures of the benchmarks."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.pixels import grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib is imported when something is drawn, so that --help is quick.


def draw_quality_against_latency(
    rows: Sequence[Mapping[str, Any]], space: str, path: Path, cpu_time: bool = False
) -> None:
    """Distance in a feature space over milliseconds of one image, a line per method, NFE beside every point.

    rows: of latency_table.py; the smallest batch size and its first backend are drawn. cpu_time: over CPU
    milliseconds, which other work on the machine moves less.
    """
    figure = _figure(figsize=(9.2, 4.8), dpi=140, layout="constrained")
    axes = figure.subplots()
    first = rows[0]
    drawn = [row for row in rows if all(row[name] == first[name] for name in ("batch", "backend"))]
    drawn = [row for row in drawn if space in row["distances"]]
    own = {"dpdm": "student"}  # names that SERIES has another word for
    methods: list[str] = [row["method"] for row in drawn]
    names = {method: own.get(method, method) for method in methods}
    look = styles(names.values())
    for method, name in names.items():
        colour, marker = look[name]
        points = sorted(
            (row["cpu_ms"] if cpu_time else row["p50_ms"] / row["batch"], row["distances"][space]["mean"], row["nfe"])
            for row in drawn
            if row["method"] == method
        )
        label = next(row["label"] for row in drawn if row["method"] == method)
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
    floor = drawn[0]["distances"][space]["floor"]
    if floor is not None:
        axes.axhline(floor, color=FLOOR, linestyle=":", label="floor: real held-out images")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"{'CPU ' * cpu_time}milliseconds of an image (median), batch {first['batch']}",
        ylabel=f"Fréchet distance, {space}",
    )
    axes.set_title("Quality against latency (numbers at the points: network calls)", fontsize=10)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))  # inside it would hide points
    _save(figure, path)


SERIES = {  # colours and markers of quality.py's series; others take the next of SPARE
    "student": ("#c2410c", "o"),
    "euler": ("#0f766e", "^"),
    "heun": ("#1d4ed8", "s"),
    "dpmpp-2m": ("#7c3aed", "v"),
    "dpmpp-3m": ("#a855f7", "<"),
    "unipc-3": ("#0ea5e9", ">"),
    "sa": ("#65a30d", "D"),
    "ipndm-4": ("#475569", "P"),
    "teacher-dpdm": ("#f59e0b", "x"),
}
SPARE = (("#be123c", "*"), ("#831843", "h"), ("#14532d", "X"), ("#78350f", "p"), ("#111827", "d"))
FLOOR = "#6b7280"


def styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for every series, its own or a spare one."""
    spare = itertools.cycle(SPARE)
    return {name: SERIES.get(name) or next(spare) for name in dict.fromkeys(names)}


def draw_quality_against_nfe(rows: list[dict[str, Any]], real: list[dict[str, Any]], path: Path) -> None:
    """Distance over network calls, one panel per extractor, one line per series, bars of one standard deviation."""
    figure = _figure(figsize=(9.2, 5.2 * len(real)), dpi=140, layout="constrained")
    look = styles(row["method"] for row in rows)
    for axes, floor in zip(np.atleast_1d(figure.subplots(len(real))), real, strict=True):
        some = [row for row in rows if row["extractor"] == floor["extractor"]]
        for name, (colour, marker) in look.items():
            line = sorted((row for row in some if row["method"] == name), key=lambda row: row["nfe"])
            if line:
                axes.errorbar(
                    [row["nfe"] for row in line], [row["distance"] for row in line],
                    yerr=[row["distance_std"] or 0 for row in line], label=line[0]["label"],
                    color=colour, marker=marker, markersize=4, capsize=2, linewidth=1.8 if name == "student" else 1,
                )  # fmt: skip
        if floor["distance"] is not None:
            axes.axhline(floor["distance"], color=FLOOR, linestyle=":", label="floor: real held-out images")
        calls = sorted({row["nfe"] for row in some})
        axes.set(xscale="log", yscale="log", xlabel="network calls per image", ylabel="Fréchet distance")
        axes.set_xticks(calls, [str(count) for count in calls])
        axes.xaxis.minorticks_off()
        plain_numbers(axes.yaxis)
        axes.set_title(f"{floor['extractor']}, N = {floor['images']}", fontsize=10)
        axes.grid(True, alpha=0.2)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))  # inside it would hide points
    _save(figure, path)


class Pairs(NamedTuple):
    """Generated images and which training images they lie closest to."""

    label: str
    nfe: int
    space: str  # "features" or "pixels"
    pixels: NDArray[np.uint8]  # [n, H, W, C], generated
    rows: list[tuple[int, int]]  # (generated image, training image), closest first


def draw_pairs(pairs: Sequence[Pairs], nearest: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """One strip per entry: generated images above, their nearest training images [n, H, W, C] below."""
    figure = _figure(figsize=(9, 1.25 * len(pairs)), dpi=110, layout="constrained")
    for axes, one, train in zip(np.atleast_1d(figure.subplots(len(pairs))), pairs, nearest, strict=True):
        show_pixels(axes, grid(np.concatenate([one.pixels, train]), columns=len(train)))
        name = f"{one.label}\n{one.nfe} call{'s' * (one.nfe > 1)}\nby {one.space}"
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    _save(figure, path)


def show_pixels(axes: Any, pixels: NDArray[np.uint8]) -> None:
    """An image without ticks or frame, gray where it has one channel."""
    gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if pixels.shape[-1] == 1 else {}
    axes.imshow(pixels[..., 0] if gray else pixels, interpolation="nearest", **gray)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def plain_numbers(axis: Any) -> None:
    """0.3 rather than 3 x 10^-1 along a logarithmic axis."""
    axis.set_major_formatter("{x:g}")
    from matplotlib.ticker import LogLocator

    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter("{x:g}")


def _figure(**how: Any) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(**how)


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_recovery(rows: list[dict[str, Any]], floors: dict[str, float], images: int, path: Path) -> None:
    """Distance after one call over sigma, one panel per extractor, one line per network."""
    figure = _figure(figsize=(8.8, 4.6 * len(floors)), dpi=140, layout="constrained")
    # The teacher takes a solver's style, not a spare one: rivals then look as they do beside their distances.
    look = {"teacher": SERIES["heun"], **styles(row["network"] for row in rows if row["network"] != "teacher")}
    for axes, (extractor, floor) in zip(np.atleast_1d(figure.subplots(len(floors))), floors.items(), strict=True):
        for name, (colour, marker) in look.items():
            line = sorted(
                (row["sigma"], row["distance"], row["distance_std"] or 0)
                for row in rows
                if (row["extractor"], row["network"]) == (extractor, name)
            )
            if line:
                sigmas, distances, bars = zip(*line, strict=True)
                axes.errorbar(
                    sigmas, distances, yerr=bars, label=name, color=colour, marker=marker, markersize=4, capsize=2
                )
        axes.axhline(floor, color=FLOOR, linestyle=":", label="the same images before the noise")
        axes.set(xscale="log", yscale="log", xlabel="noise level sigma", ylabel="Fréchet distance")
        plain_numbers(axes.xaxis)
        plain_numbers(axes.yaxis)
        axes.set_title(f"Held-out images noised and recovered by one call: {extractor}, N = {images}", fontsize=10)
        axes.grid(True, which="both", alpha=0.2)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    _save(figure, path)


def draw_recovered(
    panels: dict[str, list[NDArray[np.uint8]]], clean: NDArray[np.uint8], sigmas: Sequence[float], path: Path
) -> None:
    """Panels side by side, in each one row of images [n, H, W, C] per sigma, under the clean images."""
    height, columns = clean.shape[1], len(clean)
    figure = _figure(figsize=(3.6 * len(panels) + 0.4, 0.42 * (len(sigmas) + 1) + 0.4), dpi=120, layout="constrained")
    for index, (axes, (name, rows)) in enumerate(
        zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True)
    ):
        show_pixels(axes, grid(np.concatenate([clean, *rows]), columns))
        axes.set_title(name, fontsize=9)
        if index == 0:
            middles = [(row + 0.5) * height for row in range(len(sigmas) + 1)]
            axes.set_yticks(middles, ["clean", *(f"{sigma:g}" for sigma in sigmas)], fontsize=7)
            axes.tick_params(axis="y", length=0)
    _save(figure, path)
