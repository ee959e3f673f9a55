"""diffusers' pipelines and our samplers make the same images of the same weights, in as many calls."""

import pytest

from benchmarks.diffusers_pipelines import measured, pairs
from benchmarks.harness import ROOT
from fewstep.checkpoint import load_denoiser


@pytest.fixture(scope="module")
def compared() -> dict:
    student, card = load_denoiser(ROOT / "models/fashion")
    teacher, _ = load_denoiser(ROOT / "models/fashion/teacher")
    return {pair.name: pair for pair in pairs(student, teacher, 3, card.image_shape[1])}


@pytest.mark.parametrize(
    ("name", "grey_levels"),
    [("DDIM", 0.01), ("DPM-Solver++ 2M", 0.01), ("UniPC 2", 0.01), ("consistency", 3.0)],  # the last has a sigma_min
)
def test_a_pipeline_and_our_sampler_make_the_same_images(compared: dict, name: str, grey_levels: float):
    row = measured(compared[name], batch=2, calls=3, rounds=1)
    assert row["gap"] <= grey_levels
    assert 0 < row["around_ms"] < row["theirs_ms"] and 0 < row["ours_around_ms"] < row["ours_ms"]


def test_ddpm_has_no_counterpart_and_another_number_of_calls_is_no_comparison(compared: dict):
    assert measured(compared["DDPM"], batch=1, calls=3, rounds=1)["ratio"] is None
    with pytest.raises(RuntimeError, match="called 3 times, not 2"):
        measured(compared["DDPM"], batch=1, calls=2, rounds=1)
