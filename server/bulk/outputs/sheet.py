"""All images on one sheet, a PNG: about as many columns as rows, in the order of the seeds."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.card import write_atomically
from fewstep.pixels import encode, grid, text_of, with_text
from server.bulk.order import Order
from server.bulk.outputs.kind import Chunks, Kind

KEYWORD = "fewstep-sheet"  # of the tEXt chunk with the recipe
MOST = 4096  # images: 2048 pixels a side, of images of 32
GAP = 1


def write(out: Path, order: Order, file: int, chunks: Chunks) -> None:
    images = np.concatenate([pixels for _, pixels in chunks])
    sheet = grid(images, columns=math.ceil(math.sqrt(len(images))), gap=GAP)
    text = json.dumps(order.recipe())
    write_atomically(out, with_text(encode(sheet, "png"), KEYWORD, text))


def recipe(out: Path) -> dict[str, Any] | None:
    png = out.read_bytes()
    text = text_of(png, KEYWORD)
    if text is not None and not png.endswith(b"IEND\xae\x42\x60\x82"):
        raise ValueError("its end is missing")
    return None if text is None else json.loads(text)


KIND = Kind(".png", "one sheet of at most 4,096 images", write, recipe, most=MOST)
