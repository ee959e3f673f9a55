"""Two-sample tests: chance where there is nothing to see, certainty where there is, closed forms between."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from fewstep.metrics.two_sample import SmallCNN, auc, cnn_auc, halves, in_16_levels, ridge_auc

SMALL = SmallCNN(widths=(8, 16), epochs=3, batch=50)


def test_the_area_is_the_share_of_pairs_in_order_ties_counted_half():
    assert auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1
    assert auc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 0
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    lower, higher = np.random.default_rng(0).integers(0, 9, (2, 40))
    pairs = [(b > a) + 0.5 * (b == a) for a in lower for b in higher]
    assert auc(lower.astype(float), higher.astype(float)) == pytest.approx(np.mean(pairs))


def test_halves_cover_all_rows_once_and_hang_on_the_seed():
    train, test = halves(9, 0)
    assert sorted([*train, *test]) == list(range(9)) and len(train) == 4
    np.testing.assert_array_equal(train, halves(9, 0)[0])
    assert list(train) != list(halves(9, 1)[0])
    with pytest.raises(ValueError, match="four images or more a side, not 3"):
        halves(3, 0)


def test_ridge_finds_the_area_of_two_shifted_normal_distributions():
    # The best linear score of N(0, I) against N(m, I) has AUC Phi(|m| / sqrt 2).
    rng = np.random.default_rng(1)
    shift = np.array([0.6, 0.0, 0.8, 0.0])
    found = ridge_auc(rng.normal(size=(6000, 4)), rng.normal(size=(6000, 4)) + shift, seed=0)
    assert found == pytest.approx(NormalDist().cdf(1 / math.sqrt(2)), abs=0.02)


def test_ridge_on_equal_distributions_is_chance_even_with_a_constant_feature():
    rng = np.random.default_rng(2)
    a, b = (np.hstack([rng.normal(size=(3000, 5)), np.ones((3000, 1))]) for _ in range(2))
    assert ridge_auc(a, b, seed=0) == pytest.approx(0.5, abs=0.05)


def blank(count: int, seed: int, noise: int = 0) -> np.ndarray:
    """Dark images with a bright square at a random place; `noise`: how many levels the dark part wavers over."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, noise + 1, (count, 16, 16, 1)).astype(np.uint8)
    for image, (top, left) in zip(images, rng.integers(0, 11, (count, 2)), strict=True):
        image[top : top + 5, left : left + 5] = 200
    return images


def test_the_network_sees_faint_noise_in_8_bits_and_not_in_16_levels():
    real, noisy, other = blank(400, 0), blank(400, 1, noise=15), blank(400, 2)
    assert cnn_auc(real, noisy, 0, SMALL) > 0.95
    assert abs(cnn_auc(real, other, 0, SMALL) - 0.5) < 0.12
    assert abs(cnn_auc(in_16_levels(real), in_16_levels(noisy), 0, SMALL) - 0.5) < 0.12


def test_the_network_hangs_on_its_seed_and_leaves_other_draws_alone():
    real, other = blank(60, 3), blank(60, 4, noise=30)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = cnn_auc(real, other, 1, SMALL)
    torch.testing.assert_close(torch.rand(3), expected)
    torch.manual_seed(99)
    assert cnn_auc(real, other, 1, SMALL) == first


def test_16_levels_keep_black_and_white():
    assert in_16_levels(np.array([0, 15, 16, 239, 240, 255], np.uint8)).tolist() == [0, 0, 17, 238, 255, 255]
