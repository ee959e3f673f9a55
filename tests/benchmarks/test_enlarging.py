"""What is said of enlarged crops: of those of the truth's own law, of an interpolation, and of the crops themselves."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import enlarging
from benchmarks.edit_coverage import ANSWERS
from benchmarks.enlarging import Crops, Distances, bicubic, interpolated, psnr, reduced, row, with_means
from fewstep.conditions import low_image
from fewstep.pixels import Pixels, to_pixels

SIDE, SMALL, DEVIATION = 16, 4, 12.0
COUNT = 160


def drawn(small: Pixels, rng: np.random.Generator) -> Pixels:
    """Images of one law given the small ones: each pixel of a square is around its mean."""
    large = small.repeat(4, axis=1).repeat(4, axis=2) + rng.normal(0, DEVIATION, (len(small), SIDE, SIDE, 3))
    return np.clip(np.round(large), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def crops() -> Crops:
    rng = np.random.default_rng(0)
    small = rng.integers(60, 196, (2 * COUNT, SMALL, SMALL, 3), np.uint8)
    return Crops(drawn(small, rng), small)


def test_answers_of_the_truths_law_cover_it_and_are_as_far_as_real_crops(crops: Crops, monkeypatch):
    monkeypatch.setattr(enlarging, "AXES", 8)
    low, rng = low_image(3, SMALL), np.random.default_rng(1)
    given, real = crops.first(COUNT), Crops(crops.truth[COUNT:], crops.small[COUNT:])

    def exact(small: NDArray[np.float32], seeds: Sequence[int]) -> Pixels:
        return drawn(to_pixels(small.copy()), rng)

    distances = Distances(real, low)
    found, first = row("exact", exact, given, 60, distances)
    smooth = bicubic(given.small, SIDE)
    plain = interpolated("bicubic", smooth, given, 60, distances)
    floor = distances.of(given)
    assert first.shape == given.truth.shape
    assert plain["off"] > 5 and enlarging.missed(with_means(smooth, given.small), given.small, SMALL) < 0.3
    assert found["coverage"] == pytest.approx((ANSWERS - 1) / (ANSWERS + 1), abs=0.01)
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / (DEVIATION * 2**0.5)), abs=0.1)
    assert found["psnr_mean"] == pytest.approx(20 * np.log10(255 / (DEVIATION * (17 / 16) ** 0.5)), abs=0.1)
    assert found["better"] == 1.0 and found["psnr_mean"] > plain["psnr_mean"]  # squares are no smooth pictures
    assert found["detail"] == pytest.approx(1.0, abs=0.02) and plain["detail"] < 0.9
    for space in ("random", "residual"):
        assert found[space] < 3 * floor[space] < plain[space]


def test_what_answers_miss_of_the_small_image(crops: Crops):
    exact = crops.small.repeat(4, axis=1).repeat(4, axis=2)
    assert enlarging.missed(exact, crops.small, SMALL) == 0
    assert enlarging.missed(exact + np.uint8(3), crops.small, SMALL) == 3
    assert np.array_equal(reduced(exact, SMALL), crops.small)
    assert psnr(exact, exact + np.uint8(1)) == pytest.approx(20 * np.log10(255))


def test_a_model_that_enlarges_nothing_is_refused_in_words(monkeypatch, tmp_path, capsys):
    model = enlarging.ROOT / "models" / "earth"
    monkeypatch.setattr(
        "sys.argv", ["enlarging.py", "--model", str(model), "--smoke", "--out", str(tmp_path / "o.json")]
    )
    with pytest.raises(SystemExit, match=r"error: .*earth enlarges no images; name a model of the recipe earth-x4"):
        enlarging.main()
