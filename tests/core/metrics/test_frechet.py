"""The Fréchet distance against its closed forms."""

import numpy as np
import pytest

from fewstep.metrics.frechet import Moments, frechet_distance


def gaussian(mean, covariance, count=1000) -> Moments:
    return Moments(np.asarray(mean, float), np.asarray(covariance, float), count)


def test_equal_moments_are_at_distance_zero():
    features = np.random.default_rng(0).normal(size=(500, 16))
    assert frechet_distance(Moments.of(features), Moments.of(features)) == pytest.approx(0, abs=1e-9)


def test_a_shift_counts_its_squared_length():
    a, b = gaussian([0, 0], np.eye(2)), gaussian([3, 4], np.eye(2))
    assert frechet_distance(a, b) == pytest.approx(25)


def test_commuting_covariances_count_squared_differences_of_deviations():
    # Both diagonal: sum of (sqrt(a) - sqrt(b))^2 = (1 - 2)^2 + (3 - 1)^2
    assert frechet_distance(gaussian([0, 0], np.diag([1, 9])), gaussian([0, 0], np.diag([4, 1]))) == pytest.approx(5)


def test_rotating_both_changes_nothing_and_the_order_does_not_matter():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2000, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(2000, 5)) + 0.3
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    straight = frechet_distance(Moments.of(a), Moments.of(b))
    assert frechet_distance(Moments.of(b), Moments.of(a)) == pytest.approx(straight, rel=1e-6)
    assert frechet_distance(Moments.of(a @ turn), Moments.of(b @ turn)) == pytest.approx(straight, rel=1e-6)


def test_singular_covariances_give_a_real_number():
    flat = np.diag([1.0, 0.0, 0.0])
    assert frechet_distance(gaussian(np.zeros(3), flat), gaussian(np.zeros(3), np.eye(3))) == pytest.approx(2)


def test_bias_falls_with_the_number_of_samples():
    rng = np.random.default_rng(2)
    reference = gaussian(np.zeros(32), np.eye(32))
    few, many = (frechet_distance(Moments.of(rng.normal(size=(n, 32))), reference) for n in (200, 5000))
    assert few > 10 * many > 0
