"""A folder of PNG files named by seed, and generate.json, which says what they were made of."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.card import write_atomically
from server.bulk.order import Order
from server.bulk.outputs.kind import Chunks, Kind

ABOUT = "generate.json"
DIGITS = 6


def name_of(order: Order, seed: int) -> str:
    """Of a seed, as many digits as the largest one needs: names sort like seeds."""
    return f"{seed:0{max(DIGITS, len(str(order.seeds.largest)))}d}"


def write(out: Path, order: Order, file: int, chunks: Chunks) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for number, pixels in chunks:
        for picture in order.pictures(number, pixels):
            (out / f"{name_of(order, picture.seed)}.png").write_bytes(picture.png)


def names(order: Order, file: int, chunks: range) -> Iterator[str]:
    for chunk in chunks:
        for seed in order.seeds.part(chunk * order.chunk, order.chunk):
            yield f"{name_of(order, seed)}.png"


def finish(out: Path, order: Order) -> None:
    """Last of all: a folder that has it is complete."""
    write_atomically(out / ABOUT, (json.dumps(order.recipe(), indent=2) + "\n").encode())


def recipe(out: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((out / ABOUT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


KIND = Kind("", "a PNG for each seed in a folder", write, recipe, finish, names=names, each_chunk=True)
