"""A committed result as the README's table. A test holds the two together.

python benchmarks/report.py benchmarks/results/NAME.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

NAMES = {"dpdm": "**DPDM student**", "heun": "EDM Heun", "euler": "EDM Euler"}


def markdown(result: dict[str, Any]) -> str:
    """The rows of a latency.py result as a Markdown table."""
    lines = [
        "| sampler | NFE | ms, p50 | ms, p95 | vs k=1 | images/s | peak MB | distance | accuracy |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {NAMES[row['method']]} | {row['nfe']} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} | {row['ratio']:.1f} "
        f"| {row['images_per_s']:.0f} | {_number(row['peak_mb'])} | {row['distance']:.2f} | {row['accuracy']:.1%} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    print(markdown(json.loads(parser.parse_args().result.read_text())))


if __name__ == "__main__":
    main()
