"""What latency.py says of its runs: a row for each variant and batch size, distances, and the time to a quality."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.busy import Busy
from benchmarks.harness import percentile_ms, table
from benchmarks.known_distances import OF_A_TEACHER, Distance, Key, Known
from benchmarks.latency_variants import OURS, Run, Variant, label_of

Rows = Sequence[Mapping[str, Any]]
FOR_PERCENTILE = {95: 20, 99: 100}  # runs without which a percentile is only the slowest of them
COLUMNS = {
    "method": "method", "nfe": "NFE", "backend": "backend", "batch": "batch", "runs": "runs", "p50_ms": "p50 ms",
    "p95_ms": "p95 ms", "p99_ms": "p99 ms", "ratio": "vs k=1", "images_per_s": "images/s", "call_ms": "ms a call",
    "step_ms": "step ms", "step_share": "step %", "cpu_ms": "CPU ms", "peak_mb": "peak MB", "device_mb": "GPU MB",
    "joules": "J an image", "distance": "distance", "floor": "floor", "accuracy": "accuracy",
}  # fmt: skip
OPTIONAL = {"device_mb", "joules", "distance", "floor", "accuracy"}  # no column where no row has a value


def row_of(variant: Variant, batch: int, runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of some runs with one batch size. Times of a call and of the step are of the batch."""
    wall = [run.wall_s for run in runs]
    median = float(np.median(wall))
    step = float(np.median([run.wall_s - run.network_s for run in runs]))
    return {
        "method": variant.method,
        "label": label_of(variant.method),
        "nfe": variant.calls,
        "sigmas": list(variant.sigmas),
        "backend": variant.backend,
        "batch": batch,
        "runs": len(runs),
        "p50_ms": median * 1000,
        **{f"p{p}_ms": percentile_ms(wall, p) if len(runs) >= least else None for p, least in FOR_PERCENTILE.items()},
        "images_per_s": batch / median,
        "call_ms": percentile_ms([run.network_s / variant.calls for run in runs], 50),
        "step_ms": step * 1000,  # of all calls together: noise, the sampler's arithmetic, rounding to pixels
        "step_share": 100 * _step_share(variant, runs),
        "cpu_ms": float(np.median([run.cpu_s for run in runs])) * 1000 / batch,  # an image
        "peak_mb": _largest([run.peak_mb for run in runs]),
        "device_mb": _largest([run.device_mb for run in runs]),
        "joules": _joules(runs, batch),
    }


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Times over that of the student's one call, on the same backend and with the same batch size."""
    base = {(row["backend"], row["batch"]): row["p50_ms"] for row in rows if (row["method"], row["nfe"]) == (OURS, 1)}
    found = [base.get((row["backend"], row["batch"])) for row in rows]
    return [{**row, "ratio": row["p50_ms"] / one if one else None} for row, one in zip(rows, found, strict=True)]


def known_of(variant: Variant, known: Known) -> dict[str, Distance]:
    """Distances of the variant's images, by feature space."""
    checkpoint = variant.model.engine.manifest.checkpoint
    return dict(known.get(Key.of(checkpoint, variant.method, variant.sigmas), {}))


def distances_json(found: Mapping[str, Distance]) -> dict[str, Any]:
    return {space: asdict(distance) for space, distance in found.items()}


def spread(rows: Rows) -> float | None:
    """95th percentile over median, the median over the rows that have both."""
    ratios = [row["p95_ms"] / row["p50_ms"] for row in rows if row["p95_ms"] is not None]
    return float(np.median(ratios)) if ratios else None


def spaces(rows: Rows) -> list[str]:
    """The feature spaces in which distances are known, those of the most rows first."""
    counts = Counter(space for row in rows for space in row["distances"])
    return [space for space, _ in counts.most_common()]


def times_to_quality(rows: Rows) -> list[dict[str, Any]]:
    """By feature space, backend and method: the least time of one image that is as close as the teacher's closest.

    The teacher's closest is the smallest distance of any solver in that space. Only where the student and a solver
    have a distance there. A method without `calls` has no row that is as close.
    """
    found = []
    for space in spaces(rows):
        for backend in dict.fromkeys(row["backend"] for row in rows):
            one = [row for row in rows if row["batch"] == 1 and row["backend"] == backend and space in row["distances"]]
            solvers = [row for row in one if row["method"] in OF_A_TEACHER]
            if not solvers or not any(row["method"] == OURS for row in one):
                continue
            best = min(solvers, key=lambda row: _distance(row, space))
            for method in dict.fromkeys(row["method"] for row in one):
                close = [
                    row for row in one if row["method"] == method and _distance(row, space) <= _distance(best, space)
                ]
                first = min(close, key=lambda row: row["p50_ms"], default=None)
                found.append({
                    "space": space, "backend": backend, "teacher": f"{best['method']}-{best['nfe']}",
                    "goal": _distance(best, space), "method": method,
                    "nfe": first and first["nfe"], "distance": first and _distance(first, space),
                    "ms": first and first["p50_ms"], "times": first and best["p50_ms"] / first["p50_ms"],
                    "cpu_ms": first and first["cpu_ms"], "cpu_times": first and best["cpu_ms"] / first["cpu_ms"],
                })  # fmt: skip
    return found


def shown(rows: Rows, quality: Rows, busy: Busy) -> str:
    """All tables, with what a reader must know of the machine at the head of the first."""
    head = [warning] if (warning := busy.warning()) else []
    columns = {
        name: text
        for name, text in COLUMNS.items()
        if name not in OPTIONAL or any(row[name] is not None for row in rows)
    }
    return "\n\n".join(
        filter(None, ("\n".join([*head, table(list(rows), columns)]), distances(rows), to_quality(quality)))
    )


def distances(rows: Rows) -> str:
    """Every known distance: methods and calls down, feature spaces across, floors first. Empty without any."""
    names = spaces(rows)
    if not names:
        return ""
    floors = {
        space: next(row["distances"][space]["floor"] for row in rows if space in row["distances"]) for space in names
    }
    lines: list[dict[str, Any]] = [{"method": "floor", **floors}]
    for method, nfe in dict.fromkeys((row["method"], row["nfe"]) for row in rows):
        row = next(row for row in rows if (row["method"], row["nfe"]) == (method, nfe))
        if row["distances"]:
            lines.append({"method": method, "nfe": nfe, **{space: _distance(row, space) for space in row["distances"]}})
    return "Distances to the data:\n" + table(
        lines, {"method": "method", "nfe": "NFE", **{name: name for name in names}}
    )


def to_quality(quality: Rows) -> str:
    """Time to quality of the methods that reach it. Empty where no space has both the student and a solver."""
    reached = [row for row in quality if row["nfe"] is not None]
    if not reached:
        return ""
    columns = {"space": "in", "backend": "backend", "goal": "teacher's best", "teacher": "by", "method": "method",
               "nfe": "NFE", "distance": "distance", "ms": "ms", "times": "times as fast", "cpu_ms": "CPU ms",
               "cpu_times": "times less CPU"}  # fmt: skip
    return (
        "Milliseconds of one image that is as close as the teacher's best; methods without a row do not reach it:\n"
        + table(reached, columns)
    )


def _distance(row: Mapping[str, Any], space: str) -> float:
    return row["distances"][space]["mean"]


def _step_share(variant: Variant, runs: Sequence[Run]) -> float:
    """Of the CPU time where the CPU runs the network: other work on the machine does not move it. Else of the time."""
    if variant.model.engine.device == "cpu":
        return 1 - sum(run.network_cpu_s for run in runs) / sum(run.cpu_s for run in runs)
    return 1 - sum(run.network_s for run in runs) / sum(run.wall_s for run in runs)


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _joules(runs: Sequence[Run], batch: int) -> float | None:
    """Of an image, mean over the runs: a counter's grain is a millisecond."""
    counted = [run.joules for run in runs if run.joules is not None]
    return sum(counted) / (len(counted) * batch) if counted else None
