"""A committed result as the README's tables, which a test holds to it, and as the metrics of a model's card.

python benchmarks/report.py benchmarks/results/NAME.json [--card models/fashion]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewstep.card import CARD_FILE, CheckpointError, card_to_json, read_card, write_atomically

NAMES = {"dpdm": "**DPDM student**", "heun": "EDM Heun", "euler": "EDM Euler"}
SOLVERS = ("heun", "euler")


def markdown(result: dict[str, Any]) -> str:
    """Our student and the solvers of a latency.py result as a Markdown table."""
    lines = [
        "| sampler | NFE | ms, p50 | ms, p95 | vs k=1 | images/s | peak MB | distance | accuracy |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {NAMES[row['method']]} | {row['nfe']} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} | {row['ratio']:.1f} "
        f"| {row['images_per_s']:.0f} | {_number(row['peak_mb'])} | {row['distance']:.2f} | {row['accuracy']:.1%} |"
        for row in result["rows"]
        if row["method"] in NAMES
    ]
    return "\n".join(lines)


def rivals(result: dict[str, Any]) -> str:
    """Distances of all students by their calls as a Markdown table. Empty where there is but one student."""
    found: dict[str, dict[int, float]] = {}
    for row in result["rows"]:
        if row["method"] not in SOLVERS:
            found.setdefault(row["method"], {})[row["nfe"]] = row["distance"]
    if len(found) < 2:
        return ""
    calls = sorted({nfe for distances in found.values() for nfe in distances})
    lines = ["| calls | " + " | ".join(map(str, calls)) + " |", "|---|" + "--:|" * len(calls)]
    for method, distances in found.items():
        cells = (f"{distances[nfe]:.2f}" if nfe in distances else "" for nfe in calls)
        lines.append(f"| {NAMES.get(method, method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def record_metrics(result: dict[str, Any], folder: Path) -> None:
    """Write the student's rows into its card. Raises CheckpointError when another checkpoint was measured."""
    card = read_card(folder)
    if result["checkpoints"]["student"] != card.weights:
        raise CheckpointError(
            f"the result was measured on another checkpoint than the one in {folder}; run latency.py again"
        )
    rows = [row for row in result["rows"] if row["method"] == "dpdm"]
    metrics = {
        "extractor": result["extractor"],
        "images": result["settings"]["images"],
        "seeds": result["settings"]["seeds"],
        "floor": rows[0]["floor"],
        "distance": {str(row["nfe"]): row["distance"] for row in rows},
        "accuracy": {str(row["nfe"]): row["accuracy"] for row in rows},
    }
    write_atomically(folder / CARD_FILE, card_to_json(replace(card, metrics=metrics)).encode())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--card", type=Path, metavar="DIR", help="also write the student's metrics into this card")
    args = parser.parse_args()
    result = json.loads(args.result.read_text())
    print(markdown(result))
    if listed := rivals(result):
        print(f"\n{listed}")
    if args.card:
        record_metrics(result, args.card)


if __name__ == "__main__":
    main()
