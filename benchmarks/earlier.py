"""Rows of an earlier run beside those of this one: what was measured once is not measured again.

A cell of a quality table depends on a network, the way it is sampled, the number of images and the features. Where an
earlier run agrees in all of these, its row is used; where its seeds differ, both rows become one over all ranges. Such
a row says where it comes from.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality_table import FIGURES, Rows
from fewstep.card import CheckpointError

SETTINGS = ("images", "stored", "backend", "neighbours")  # of the run as a whole


def with_earlier(
    rows: Rows,
    path: Path,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    cells: Mapping[tuple[str, int], tuple[str, list[float]]],
) -> Rows:
    """`rows` with those of the JSON at `path`, in the order of `cells`; of two over the same seeds the newer counts.

    facts: "extractors" and "data", as written. cells: (method, calls) -> checkpoint and sigmas, as asked for now; a row
    of another network or of other sigmas stays out. A row that is taken gets "from": file, commit and machine,
    where it has none yet. Raises CheckpointError when the run at `path` measured something else.
    """
    try:
        earlier = json.loads(path.read_text("utf-8"))
        theirs = {name: earlier["settings"][name] for name in SETTINGS}
        checkpoints, found = earlier["checkpoints"], list(earlier["rows"])
        same = {"extractors": earlier["extractors"], "data": earlier["data"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"--beside {path}: it is not what quality.py writes ({error})") from error
    for name, value in theirs.items():
        if value != settings[name]:
            raise CheckpointError(f"--beside {path}: its {name} is {value}, not {settings[name]}")
    for name, value in same.items():
        if value != facts[name]:
            raise CheckpointError(f"--beside {path}: its {name} are others; rows of the two do not compare")
    origin = {"file": path.name, "commit": earlier.get("commit"), "machine": earlier.get("machine")}
    merged = {_place(row): row for row in rows}
    for row in found:
        method, calls, _ = place = _place(row)
        checkpoint = checkpoints.get(method, checkpoints["teacher"])
        if cells.get((method, calls)) != (checkpoint, row["sigmas"]):
            continue
        told = {"from": {**origin, "seeds": row["seeds"]}, **row}  # a row that had an origin keeps it
        merged[place] = pooled(told, merged[place]) if place in merged else told
    order = list(cells)
    return sorted(merged.values(), key=lambda row: order.index((row["method"], row["nfe"])))


def pooled(earlier: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """One row over the seed ranges of both; what is not an average over ranges is that of the first seeds.

    Mean and variance of the union follow from those of the parts. Rows with a range in common are not joined, for a
    mean cannot be split: the one with more ranges stands alone, the newer of two that have as many.
    """
    if any(seeds in newer["seeds"] for seeds in earlier["seeds"]):
        return newer if newer["repeats"] >= earlier["repeats"] else earlier
    parts = sorted((earlier, newer), key=lambda row: row["seeds"])
    ranges = [pair for row in parts for pair in zip(row["seeds"], row["distances"], strict=True)]
    ranges.sort()
    seconds = sum(row["sampling_seconds"] for row in parts)
    row = {**parts[0], "from": earlier["from"], "repeats": len(ranges), "sampling_seconds": seconds}
    row["seeds"], row["distances"] = (list(values) for values in zip(*ranges, strict=True))
    for figure in FIGURES:
        row[figure], row[f"{figure}_std"] = _union(
            [(one["repeats"], one[figure], one[f"{figure}_std"]) for one in parts]
        )
    return row


def _union(parts: list[tuple[int, float | None, float | None]]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) of values of which parts are known by their count, mean and deviation."""
    known = [(count, mean, std or 0.0) for count, mean, std in parts if mean is not None]
    if len(known) < len(parts):
        return None, None
    total = sum(count for count, _, _ in known)
    mean = sum(count * part for count, part, _ in known) / total
    squares = sum((count - 1) * std**2 + count * (part - mean) ** 2 for count, part, std in known)
    return mean, math.sqrt(squares / (total - 1))


def _place(row: Mapping[str, Any]) -> tuple[str, int, str]:
    return row["method"], row["nfe"], row["extractor"]
