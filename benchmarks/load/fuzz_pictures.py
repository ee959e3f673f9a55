"""Pictures for the fuzzer: what a server's document calls a picture."""

import base64
import io

import numpy as np
from hypothesis import strategies as st
from PIL import Image

PREFIX = "data:image/png;base64,"


def pngs(largest: int = 40) -> st.SearchStrategy[str]:
    """Pictures as base64, with and without a prefix: gray or colour, uniform or noise. largest: pixels a side."""

    def drawn(number: int, mode: str, uniform: bool, prefix: bool) -> str:
        rng = np.random.default_rng(number)
        levels = rng.integers(0, 256, (*rng.integers(1, largest + 1, 2), len(mode)), np.uint8)
        picture = np.full_like(levels, number % 256) if uniform else levels
        buffer = io.BytesIO()
        Image.fromarray(picture[..., 0] if mode == "L" else picture).save(buffer, "PNG")
        return PREFIX * prefix + base64.b64encode(buffer.getvalue()).decode()

    return st.builds(drawn, st.integers(0, 2**32), st.sampled_from(["L", "RGB"]), st.booleans(), st.booleans())
