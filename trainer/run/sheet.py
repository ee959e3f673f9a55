"""A sheet of images with a title, class names over columns, and a name beside every row."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fewstep.pixels import Pixels

TILE = 48  # smaller images are enlarged to about this many pixels, by a whole factor
TEXT = 14  # height of the letters
PAPER, INK = "white", "black"


def add_titles(sheet: Pixels, side: int, title: str, columns: Sequence[str], rows: Sequence[str]) -> Pixels:
    """uint8 [H, W, C], a grid of images of side x side without gaps -> uint8 [H', W', 3].

    columns: a name for each column, or none at all; they are written upwards. rows: a name for each row.
    """
    scale = max(1, TILE // side)
    picture = Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet).convert("RGB")
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    font = ImageFont.load_default(TEXT)
    left = max((_width(name, font) for name in rows), default=0) + TEXT
    above = max((_width(name, font) for name in columns), default=0) + TEXT // 2 if columns else 0
    top = 2 * TEXT + above
    width = max(left + picture.width, TEXT + _width(title, font)) + TEXT // 2
    page = Image.new("RGB", (width, top + picture.height + TEXT // 2), PAPER)
    page.paste(picture, (left, top))
    draw = ImageDraw.Draw(page)
    draw.text((TEXT // 2, TEXT // 4), title, INK, font)
    tile = side * scale
    for row, name in enumerate(rows):
        draw.text((TEXT // 2, top + row * tile + (tile - TEXT) // 2), name, INK, font)
    for column, name in enumerate(columns):
        upright = Image.new("L", (above, tile), 255)
        ImageDraw.Draw(upright).text((TEXT // 4, (tile - TEXT) // 2), name, 0, font)
        page.paste(upright.rotate(90, expand=True).convert("RGB"), (left + column * tile, top - above))
    return np.asarray(page)


def _width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(font.getlength(text)) + 1
