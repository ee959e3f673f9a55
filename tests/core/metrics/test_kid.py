"""The kernel distance against closed forms, and without bias."""

import numpy as np
import pytest

from fewstep.metrics.kid import kid, mean_between, mean_within


def test_it_is_the_estimator_of_the_paper_written_out():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 0.5

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    within_a = np.mean([kernel(a[i], a[j]) for i in range(7) for j in range(7) if i != j])
    within_b = np.mean([kernel(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert mean_within(a) == pytest.approx(within_a) and mean_between(a, b, block=2) == pytest.approx(between)
    assert kid(a, b) == pytest.approx(within_a + within_b - 2 * between)


def test_two_normal_distributions_have_the_distance_of_their_variances():
    # For x, y from N(0, s^2) and N(0, t^2) in one dimension E (xy + 1)^3 = 1 + 3 s^2 t^2, so MMD^2 = 3 (s^2 - t^2)^2.
    rng = np.random.default_rng(1)
    found = [kid(rng.normal(0, 1, (2000, 1)), rng.normal(0, 1.5, (2000, 1))) for _ in range(20)]
    assert np.mean(found) == pytest.approx(3 * (1 - 1.5**2) ** 2, rel=0.05)


def test_it_has_no_bias_at_small_numbers_where_a_frechet_distance_has_one():
    rng = np.random.default_rng(2)
    found = np.array([kid(rng.normal(size=(10, 4)), rng.normal(size=(30, 4))) for _ in range(400)])
    assert abs(found.mean()) < 3 * found.std() / 20 and (found < 0).mean() > 0.3


def test_one_image_has_no_pairs():
    with pytest.raises(ValueError, match="two images or more, not 1"):
        kid(np.zeros((1, 3)), np.zeros((5, 3)))
