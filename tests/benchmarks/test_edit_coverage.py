"""The coverage of edits: 90 % for answers of the truth's own law, also where levels are equal; less for narrow ones."""

import numpy as np
import pytest

from benchmarks.edit_coverage import ANSWERS, NOMINAL, answers_to, crps, masks, outside, row
from benchmarks.harness import ROOT
from export.engine import load_engine


def drawn(law: str, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """uint8 of a law: normal levels, or mostly black ones."""
    normals = rng.normal(128, 30, shape)
    return np.clip(np.where(rng.random(shape) < 0.8, 0, normals) if law == "black" else normals, 0, 255).astype(
        np.uint8
    )


@pytest.mark.parametrize("law", ["normal", "black"])
def test_answers_of_the_truths_law_cover_it_in_nine_of_ten_cases(law: str):
    rng = np.random.default_rng(1)
    truth, answers = drawn(law, rng, 200, 8, 8), drawn(law, rng, 200, ANSWERS, 8, 8)
    found = row(truth, answers, np.zeros((8, 8), bool), np.ones((8, 8), bool))
    assert NOMINAL == 0.9 and found["coverage"] == pytest.approx(0.9, abs=0.01) and found["error"] < 0.01
    assert found["below"] == pytest.approx(0.05, abs=0.01) and found["above"] == pytest.approx(0.05, abs=0.01)
    if law == "normal":
        narrow = (128 + (answers.astype(float) - 128) / 3).astype(np.uint8)
        sides = outside(truth, narrow, rng)
        assert found["off"] == pytest.approx(30 * (1 + 1 / ANSWERS) ** 0.5, rel=0.03)
        assert found["crps"] == pytest.approx(30 / np.pi**0.5, rel=0.03), "of a Gaussian for its own draws"
        assert crps(truth[:, 0].astype(float), narrow[:, :, 0].astype(float)).mean() > found["crps"]
        assert 0.15 < sides.below.mean() < 0.35 and 0.15 < sides.above.mean() < 0.35


def test_answers_keep_what_is_known_and_differ_elsewhere():
    engine = load_engine(ROOT / "models" / "fashion" / "engine", threads=1)
    truth = np.full((1, 32, 32, 1), 200, np.uint8)
    known = masks(32)["upper half"]
    made = answers_to(engine, truth, np.array([8]), known, 2)
    assert made.shape == (1, ANSWERS, 32, 32) and (made[:, :, :16] == 200).all()
    assert made[0, :, 16:].std(axis=0).mean() > 5
