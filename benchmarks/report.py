"""A committed result as the Markdown tables of the docs, and as the metrics of a model's card.

python benchmarks/report.py benchmarks/results/NAME.json [--card models/fashion]
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import markdown
from fewstep.card import CARD_FILE, CheckpointError, card_to_json, read_card, write_atomically


def record_metrics(result: dict[str, Any], folder: Path) -> None:
    """Write the student's rows into its card. Raises CheckpointError when another checkpoint was measured."""
    card = read_card(folder)
    if result["checkpoints"]["student"] != card.weights:
        raise CheckpointError(
            f"the result was measured on another checkpoint than the one in {folder}; run latency.py again"
        )
    rows = [row for row in result["rows"] if row["method"] == "dpdm" and row["batch"] == result["rows"][0]["batch"]]
    if any(row["distance"] is None for row in rows):
        raise CheckpointError("the result holds no distances of its own; run latency.py again, with --images 1000")
    metrics = {
        "extractor": result["extractor"],
        "images": result["settings"]["images"],
        "seeds": result["settings"]["seeds"],
        "floor": rows[0]["floor"],
        "distance": {str(row["nfe"]): row["distance"] for row in rows},
        "accuracy": {str(row["nfe"]): row["accuracy"] for row in rows},
    }
    write_atomically(folder / CARD_FILE, card_to_json(replace(card, metrics=metrics)).encode())


def tables(result: dict[str, Any]) -> list[str]:
    """All Markdown tables of a result. Raises ValueError for a benchmark that has none."""
    if result["benchmark"] == "latency":
        if "time_to_quality" not in result:
            return []  # of an older latency.py, which timed other things
        tables = (markdown.latency(result), markdown.latency_distances(result), markdown.time_to_quality(result))
        return [table for table in tables if table]
    if result["benchmark"] == "quality":
        calls = result["settings"]["nfe"]
        return [
            table
            for one in result["extractors"]
            for table in (markdown.quality(result, one), *(markdown.quality_details(result, one, nfe) for nfe in calls))
        ]
    if result["benchmark"] == "recovery":
        return [markdown.recovery(result, one) for one in result["extractors"]]
    if result["benchmark"] == "ablation":
        return [markdown.ablation(result)]
    if result["benchmark"] == "training-cost":
        return [markdown.training_cost(result), markdown.training_totals(result)]
    if result["benchmark"] == "panel":
        return [markdown.panel(result), markdown.panel_bars(result), markdown.panel_comparisons(result)]
    if result["benchmark"] == "solver_search":
        return [markdown.schedules(result)]
    if result["benchmark"] == "sizes":
        return [markdown.sizes(result), markdown.sizes_forms(result), markdown.sizes_memory(result)]
    if result["benchmark"] == "guard":
        return [markdown.guard(result)]
    raise ValueError(f"there is no Markdown table for {result['benchmark']!r}; its own command prints one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="JSON that a benchmark wrote")
    parser.add_argument("--card", type=Path, metavar="DIR", help="also write the student's metrics into this card")
    args = parser.parse_args()
    result = json.loads(args.result.read_text())
    print("\n\n".join(tables(result)) or "an older version wrote this result: it has no table")
    if args.card:
        record_metrics(result, args.card)


if __name__ == "__main__":
    main()
