"""The picture of edits shows what the server does."""

import numpy as np
import pytest

from benchmarks.edits import ROWS, draw, first_image, images
from benchmarks.harness import ROOT
from export.engine import load_engine


@pytest.fixture(scope="module")
def engine():
    return load_engine(ROOT / "models" / "fashion" / "engine", threads=1)


def test_more_strength_keeps_less_and_a_mask_keeps_its_half(engine, tmp_path):
    begun = first_image(engine)
    made = {name: images(engine, edited, begun, range(4)) for name, edited in ROWS.items()}
    gaps = [np.abs(made[f"strength {s}"].astype(float) - begun).mean() for s in ("0.25", "0.5", "0.75", "1")]
    assert gaps == sorted(gaps) and gaps[0] < 6 and gaps[3] > 2 * gaps[0]
    for name in ("lower half", "lower half\nas a sandal"):
        kept, again = np.split(made[name], 2, axis=1)
        assert (kept == begun[:, :16]).all()
        assert np.abs(again.astype(float) - begun[:, 16:]).mean() > 3
    draw(begun, made, tmp_path / "edits.png")
    assert (tmp_path / "edits.png").stat().st_size > 2_000
