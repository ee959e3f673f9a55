"""Does a backend keep the quality of the network that it runs? Its distances beside those of another backend.

    python benchmarks/quality.py --backend openvino --only student:1 student:4 --out openvino.json
    python benchmarks/quality_band.py float32.json openvino.json

Both results are of quality.py, on the same weights, noise levels, seeds and features. The band has two sides, as
MLPerf's has: a distance below it says as much as one above it that other images were made. Prints a table.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import table
from fewstep.card import CheckpointError
from fewstep.ranges import Range, number

BAND = 0.02  # MLPerf's for the Fréchet distance of its text-to-image model
SAME = ("images", "neighbours")  # settings of both runs
COLUMNS = {
    "method": "method", "nfe": "NFE", "extractor": "features", "reference": "reference", "distance": "distance",
    "ratio": "ratio", "lowest": "lowest", "highest": "highest", "within": "within the band",
}  # fmt: skip


def banded(reference: Mapping[str, Any], result: Mapping[str, Any], band: float = BAND) -> list[dict[str, Any]]:
    """A row of each cell that both have: the ratio of the distances, and its range over the ranges of seeds.

    within: whether the ratio is from 1 - band to 1 + band. Raises CheckpointError where nothing can be compared.
    """
    for name in ("extractors", "data"):
        if reference[name] != result[name]:
            raise CheckpointError(f"the {name} of the two results are others; measure both with the same")
    for name in SAME:
        if reference["settings"][name] != result["settings"][name]:
            raise CheckpointError(
                f"{name} is {reference['settings'][name]} in the reference and {result['settings'][name]} in the other "
                "result; distances of different numbers do not compare"
            )
    known = {_cell(reference, row): row for row in reference["rows"]}
    rows = []
    for row in result["rows"]:
        if before := known.get(_cell(result, row)):
            ratios = [now / then for now, then in zip(row["distances"], before["distances"], strict=True)]
            ratio = row["distance"] / before["distance"]
            rows.append({
                "method": row["method"], "nfe": row["nfe"], "extractor": row["extractor"],
                "reference": before["distance"], "distance": row["distance"], "ratio": ratio, "lowest": min(ratios),
                "highest": max(ratios), "within": abs(ratio - 1) <= band,
            })  # fmt: skip
    if not rows:
        raise CheckpointError("no row of the two results has the same weights, noise levels, seeds and features")
    return rows


def _cell(result: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a distance depends on, but for the backend."""
    checkpoint = result["checkpoints"].get(row["method"], result["checkpoints"]["teacher"])
    name = row["method"] if checkpoint == result["checkpoints"]["teacher"] else "a student"
    sigmas, seeds = tuple(f"{sigma:.9g}" for sigma in row["sigmas"]), json.dumps(row["seeds"])
    return checkpoint, name, sigmas, seeds, row["extractor"]


def read(path: Path) -> dict[str, Any]:
    """A result of quality.py. Raises CheckpointError for another file."""
    try:
        result = json.loads(path.read_text("utf-8"))
        if result["benchmark"] != "quality":
            raise KeyError(result["benchmark"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no result of benchmarks/quality.py ({error!r})") from None
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="JSON of quality.py")
    parser.add_argument("result", type=Path, metavar="RESULT", help="JSON of quality.py, of another backend")
    parser.add_argument("--band", type=number(Range(0.0001, 1)), default=BAND, help="half of its width (default 0.02)")
    args = parser.parse_args()
    try:
        reference, result = read(args.reference), read(args.result)
        rows = banded(reference, result, args.band)
    except CheckpointError as error:
        raise SystemExit(f"error: {error}") from None
    shown = [
        {**row, **{name: f"{row[name]:.3f}" for name in ("ratio", "lowest", "highest")},
         "within": "yes" if row["within"] else "NO"}
        for row in rows
    ]  # fmt: skip
    print(table(shown, COLUMNS))
    backends = (each["settings"]["backend"] for each in (result, reference))
    print("{} beside {}, from {:g} to {:g} of its distance".format(*backends, 1 - args.band, 1 + args.band))


if __name__ == "__main__":
    main()
