"""Rows of an earlier run beside those of this one: what was measured once is not measured again.

A cell of a quality table depends on a network, the way it is sampled, the images' number and the features. Where an
earlier run agrees in all of them its row is as good as a new one, and it says where it comes from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.card import CheckpointError

Rows = list[dict[str, Any]]
SETTINGS = ("images", "stored", "backend", "neighbours")  # of the run as a whole


def with_earlier(
    rows: Rows,
    path: Path,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    cells: Mapping[tuple[str, int], tuple[str, list[float]]],
) -> Rows:
    """`rows` and those of the JSON at `path` that cover more ranges of seeds, or what `rows` lack, in order of `cells`.

    facts: "extractors" and "data", as written. cells: (method, calls) -> checkpoint and sigmas, as asked for now; a row
    of another network or of other sigmas stays out. A row that is taken gets "from": file, commit and machine.
    Raises CheckpointError when the run at `path` measured something else.
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
        if place not in merged or merged[place]["repeats"] < row["repeats"]:
            merged[place] = {"from": origin, **row}
    order = list(cells)
    return sorted(merged.values(), key=lambda row: order.index((row["method"], row["nfe"])))


def _place(row: Mapping[str, Any]) -> tuple[str, int, str]:
    return row["method"], row["nfe"], row["extractor"]
