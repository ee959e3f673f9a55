"""Committed results as the Markdown tables of docs/quality.md; a test compares the page with the results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.ablation_table import STEPS
from benchmarks.panel_measures import measures
from fewstep.metrics.memorisation import THRESHOLD

Result = Mapping[str, Any]  # what benchmarks/harness.py wrote

OUTCOMES = ("better", "worse", "no difference")
STUDENT = "student"  # of quality.py and recovery.py: the shipped one


def markdown(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    rule = ["---", *["--:"] * (len(headers) - 1)]
    body = [f"| {' | '.join(line)} |" for line in (headers, *lines)]
    return "\n".join([body[0], f"|{'|'.join(rule)}|", *body[1:]])


def latency(result: Result) -> str:
    """A latency.py result: our student and the solvers, on every backend and with every batch size."""
    headers = ["sampler", "NFE", "batch", "ms, p50", "p95", "p99", "vs k=1", "images/s", "CPU ms an image", "ms a call",
               "step", "peak MB", *(several := _several(result, "backend"))]  # fmt: skip
    lines = [
        [
            _label(result, row["method"]), str(row["nfe"]), str(row["batch"]), *(_rounded(row[p]) for p in LATENCIES),
            f"{row['ratio']:.2f}", f"{row['images_per_s']:.0f}", f"{row['cpu_ms']:.1f}", f"{row['call_ms']:.2f}",
            f"{row['step_share']:.1f} %", _number(row["peak_mb"]), *(row[name] for name in several),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return markdown(headers, lines)


LATENCIES = ("p50_ms", "p95_ms", "p99_ms")


def _several(result: Result, name: str) -> list[str]:
    """The name of a column that tells rows apart; none where all rows have one value."""
    return [name] if len({row[name] for row in result["rows"]}) > 1 else []


def _label(result: Result, method: str) -> str:
    label = next(row["label"] for row in result["rows"] if row["method"] == method)
    return f"**{label}**" if method == "dpdm" else label


def latency_distances(result: Result) -> str:
    """Distances beside a latency.py result's times: methods and calls down, feature spaces across, floors first."""
    rows = {(row["method"], row["nfe"]): row for row in result["rows"] if row["distances"]}
    names = list(dict.fromkeys(space for row in rows.values() for space in row["distances"]))
    floors = [
        next(row["distances"][space]["floor"] for row in rows.values() if space in row["distances"]) for space in names
    ]
    lines = [["real held-out images", "", *map(_three, floors)]]
    for (method, nfe), row in rows.items():
        found = [row["distances"].get(space) for space in names]
        lines.append(
            [_label(result, method), str(nfe), *((one and _with_std(one["mean"], one["std"])) or "" for one in found)]
        )
    return markdown(["sampler", "NFE", *names], lines) if names else ""


def time_to_quality(result: Result) -> str:
    """Milliseconds of one image that is as close as the teacher's best, of a latency.py result: who reaches that.

    CPU times alone where the machine did other work.
    """
    shown = {name: of for name, of in TO_QUALITY.items() if not (of.wall and result["busy"]["warning"])}
    several = _several(result, "backend")
    headers = ["in", "teacher's best", "sampler", *(of.heading for of in shown.values()), *several]
    lines = [
        [
            row["space"], f"{row['goal']:.3g}, {row['teacher']}", _label(result, row["method"]),
            *(of.text(row[name]) for name, of in shown.items()), *(row[name] for name in several),
        ]
        for row in result["time_to_quality"]
        if row["nfe"] is not None
    ]  # fmt: skip
    return markdown(headers, lines) if lines else ""


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


class Column(NamedTuple):
    """Of a table of time to quality."""

    heading: str
    text: Callable[[Any], str]
    wall: bool = False  # of the clock, not of CPU time


TO_QUALITY: Mapping[str, Column] = {
    "nfe": Column("NFE", str),
    "distance": Column("distance", _three),
    "ms": Column("ms", _rounded, wall=True),
    "times": Column("times as fast", "{:.1f}".format, wall=True),
    "cpu_ms": Column("CPU ms", _rounded),
    "cpu_times": Column("times less CPU", "{:.1f}".format),
}


def quality(result: Result, extractor: str) -> str:
    """Distances of a quality.py result: every method by its calls, mean and standard deviation over the seed ranges."""
    found: dict[str, dict[int, str]] = {}
    for row in result["rows"]:
        if row["extractor"] == extractor:
            label = f"**{row['label']}**" if row["method"] == STUDENT else row["label"]
            found.setdefault(label, {})[row["nfe"]] = _with_std(row["distance"], row["distance_std"])
    calls = result["settings"]["nfe"]
    lines = [[label, *(distances.get(nfe, "") for nfe in calls)] for label, distances in found.items()]
    return markdown(["network calls", *map(str, calls)], lines)


def quality_details(result: Result, extractor: str, nfe: int) -> str:
    """All that quality.py measured at one count of calls, and of real held-out images."""
    headers = ["method", "distance", "precision", "recall", "accuracy", "close to a training image"]
    rows = [row for row in result["rows"] if (row["extractor"], row["nfe"]) == (extractor, nfe)]
    lines = [
        [row["label"], *_figures(row), f"{row['memorisation']['features']['share_close']:.1%}"]
        for row in sorted(rows, key=lambda row: row["distance"])
        if "memorisation" in row
    ]
    real = next(row for row in result["held_out"] if row["extractor"] == extractor)
    return markdown(headers, [*lines, ["real held-out images", *_figures(real), f"{THRESHOLD:.1%}"]])


def _figures(row: Mapping[str, Any]) -> list[str]:
    distance = "-" if row["distance"] is None else _with_std(row["distance"], row.get("distance_std"))
    shares = ["-" if row[name] is None else f"{row[name]:.1%}" for name in ("precision", "recall", "accuracy")]
    return [distance, *shares]


def recovery(result: Result, extractor: str) -> str:
    """Distances of a recovery.py result: noise level down, networks across."""
    networks = list(dict.fromkeys(row["network"] for row in result["rows"]))
    found = {(row["sigma"], row["network"]): row["distance"] for row in result["rows"] if row["extractor"] == extractor}
    lines = [
        [f"{sigma:g}", *(f"{found[sigma, network]:.3g}" for network in networks)]
        for sigma in result["settings"]["sigmas"]
    ]
    return markdown(["sigma", *networks], lines)


VARIANTS = {"posterior": "ncvsd"}  # of ablation.py: name in older results -> today's


def ablation(result: Result) -> str:
    """Distances of an ablation.py result, mean and standard deviation over its seeds; a star stands out."""
    lines = [
        [VARIANTS.get(row["variant"], row["variant"]), *(_ablated(row["cells"][str(k)]) for k in STEPS)]
        for row in result["rows"]
    ]
    return markdown(["variant", *(f"k = {k}" for k in STEPS)], lines)


def _ablated(cell: Mapping[str, Any]) -> str:
    if cell["diverged"]:
        return f"diverged {cell['diverged']}/{cell['diverged'] + len(cell['values'])}"
    return _with_std(cell["mean"], cell["std"]) + "*" * cell["stands_out"]


def training_cost(result: Result) -> str:
    """Time and memory of an update of every method of a training_cost.py result."""
    headers = ["method", "ms per update", "vs consistency", "images/s", "peak MB", "vs consistency"]
    lines = [
        [
            row["method"], f"{row['ms_p50']:.0f}", f"{row['ratio']:.2f}", f"{row['images_per_s']:.0f}",
            _number(row["peak_mb"]), "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return markdown(headers, lines)


def training_totals(result: Result) -> str:
    """Images and hours behind the shipped student, of a training_cost.py result."""
    lines = [
        [row["from"], f"{row['images']:,}", f"{row['hours']:.2f}", f"{row['share']:.2f}"] for row in result["totals"]
    ]
    return markdown(["a student from", "images", "hours", "vs its teacher"], lines)


def panel(result: Result) -> str:
    """A panel.py result: metrics down, real images and samplers across; empty where a network was missing."""
    rows = result["rows"]
    headers = ["", *(row["label"] if row["calls"] is None else f"{row['label']}, {row['calls']}" for row in rows)]
    return markdown(headers, [[name, *(_judged(row["metrics"][name]) for row in rows)] for name in rows[0]["metrics"]])


def _judged(found: Mapping[str, Any]) -> str:
    return "" if found["mean"] is None else _with_std(found["mean"], found["std"])


def panel_comparisons(result: Result) -> str:
    """In which metrics of a panel.py result one sampler is better or worse than another, beyond noise."""
    labels = {row["sampler"]: f"{row['label']}, {row['calls']}" for row in result["rows"]}
    lines = []
    for pair in result["comparisons"]:
        by = {outcome: [one["metric"] for one in pair["metrics"] if one["outcome"] == outcome] for outcome in OUTCOMES}
        first, second = labels[pair["first"]], labels[pair["second"]]
        lines.append([f"{first}, beside {second}", *(", ".join(by[outcome]) or "-" for outcome in OUTCOMES)])
    return markdown(["", *OUTCOMES], lines)


def panel_bars(result: Result) -> str:
    """How a panel.py result stands to the bars of a release; in brackets the student's mean and the other's."""
    found = measures(result["rows"], result["comparisons"])
    lines = [[one.what, one.bar, ", ".join(one.hits) or "-", ", ".join(one.misses) or "-"] for one in found]
    return markdown(["", "bar", "hit", "miss"], lines)


def schedules(result: Result) -> str:
    """What solver_search.py found, with its distances on seeds that the search had not seen."""
    headers = [
        "solver", "calls", "images", "distance as published", "as found", "sigma_max", "sigma_min", "rho", "setting",
    ]  # fmt: skip
    lines = [
        [
            row["label"], str(row["calls"]), str(row.get("images", result["settings"]["images"])),
            *(_mean(row[name]) for name in ("held_out_before", "held_out_after")),
            f"{row['sigma_max']:.3g}", f"{row['sigma_min']:.3g}",
            f"{1 / row['inverse_rho']:.3g}" if row["inverse_rho"] else "log SNR",
            ", ".join(f"{name} {value:.3g}" for name, value in row["settings"].items()) or "-",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return markdown(headers, lines)


def sizes(result: Result) -> str:
    """Networks of a sizes.py result: a call of one image, an image of the largest batch, and where the time goes."""
    shares = {(row["pixels"], row["network"], row["runtime"]): row for row in result["shares"]}
    headers = ["pixels", "network", "runtime", "M parameters", "ms, 1 image", "MB", "ms an image, more", "network",
               "step", "PNG", "or WebP", "base64"]  # fmt: skip
    lines = []
    for key, share in shares.items():
        rows = [row for row in result["rows"] if (row["pixels"], row["network"], row["runtime"]) == key]
        first, last = rows[0], rows[-1]
        lines.append([
            str(key[0]), *key[1:], _three(first["parameters_m"]), f"{_plain(first['cpu_ms'])}{_once(first)}",
            _number(first["peak_mb"]), "" if first is last else f"{_plain(last['image_ms'])} of {last['batch']}",
            *(_percent(share[f"{part}_share"]) for part in ("network", "step", "png", "webp", "base64")),
        ])  # fmt: skip
    return markdown(headers, lines)


def sizes_forms(result: Result) -> str:
    """Encoded photographs of a sizes.py result."""
    headers = ["pixels", "form", "kB", "encoding, ms", "base64, ms", "reading, ms"]
    lines = [
        [str(row["pixels"]), row["form"], *map(_three, (row["kb"], row["ms"], row["base64_ms"], row["read_ms"]))]
        for row in result["forms"]
    ]
    return markdown(headers, lines)


def sizes_memory(result: Result) -> str:
    """Memory of a slot of the server, of a sizes.py result."""
    headers = ["pixels", "MB of an image in float32", "MB that a slot holds", "with a call"]
    names = ("image_mb", "held_mb", "peak_mb")
    return markdown(headers, [[str(row["pixels"]), *(_three(row[name]) for name in names)] for row in result["memory"]])


def guard(result: Result) -> str:
    """Figures of a guard.py result, with the quartiles of ratios."""
    lines = [
        [row["name"], row["kind"], *(_plain(row[name]) if row["kind"] == "ratio" or name == "value" else ""
                                     for name in ("value", "low", "high"))]
        for row in result["rows"]
    ]  # fmt: skip
    return markdown(["what", "kind", "value", "from", "to"], lines)


def _plain(value: float) -> str:
    """Three digits, thousands with commas."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _percent(value: float) -> str:
    return "< 0.1 %" if value < 0.1 else f"{value:.1f} %"


def _once(row: Mapping[str, Any]) -> str:
    return " (once)" if row["calls"] == 1 else ""


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3g}"


def _with_std(mean: float, std: float | None) -> str:
    if std is None:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {std:.0f}" if std >= 10 else f"{mean:.3g} ± {std:.1g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
