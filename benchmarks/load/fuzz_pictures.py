"""Pictures for the fuzzer: what a server's document calls a picture of its model's size."""

import base64
import io
import json
import re
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

PREFIX = "data:image/png;base64,"


def picture_formats(document: dict[str, Any]) -> dict[str, int]:
    """The document's string formats that are pictures, picture-NxN, with their sizes."""
    found = re.findall(r'"format": "(picture-(\d+)x\d+)"', json.dumps(document))
    return {name: int(size) for name, size in found}


def pngs(resolution: int) -> st.SearchStrategy[str]:
    """Pictures of one size as base64, with and without a prefix: gray or colour, uniform or noise."""

    def drawn(number: int, mode: str, uniform: bool, prefix: bool) -> str:
        levels = np.random.default_rng(number).integers(0, 256, (resolution, resolution, len(mode)), np.uint8)
        picture = np.full_like(levels, number % 256) if uniform else levels
        buffer = io.BytesIO()
        Image.fromarray(picture[..., 0] if mode == "L" else picture).save(buffer, "PNG")
        return PREFIX * prefix + base64.b64encode(buffer.getvalue()).decode()

    return st.builds(drawn, st.integers(0, 2**32), st.sampled_from(["L", "RGB"]), st.booleans(), st.booleans())
