"""The quadrature under the multistep solvers: against numerical integrals and published coefficients."""

import math

import numpy as np
import pytest

from fewstep.ipndm import ADAMS_BASHFORTH
from fewstep.multistep import bh1_moments, bh2_moments, exact_moments, quadrature_weights

Z = [1e-6, 0.01, 0.3, 0.999, 1.0, 1.001, 3.0, 10.6, 50.0, 2000.0]


@pytest.mark.parametrize("z", Z)
def test_moments_are_the_integrals_they_stand_for(z: float):
    # v = 1 - s puts the sharp end at s = 0; beyond s = 40 / z the integrand is below 1e-17.
    roots, weights = np.polynomial.legendre.leggauss(200)
    reach = min(1.0, 40 / z)
    s = reach * (roots + 1) / 2
    for m, moment in enumerate(exact_moments(z, 4)):
        integral = (reach / 2 * weights * z * np.exp(-z * s) * (1 - s) ** m).sum()
        assert moment == pytest.approx(integral, rel=1e-13)


def test_moments_agree_where_the_series_hands_over_to_the_recurrence():
    below, above = exact_moments(1 - 1e-15, 4), exact_moments(1.0, 4)
    assert below == pytest.approx(above, rel=1e-13)


def test_bh_moments_differ_from_exact_ones_at_two_points_only():
    z = 0.7
    assert bh1_moments(z, 2) == pytest.approx((1 - math.exp(-z), z / 2))
    assert bh2_moments(z, 2) == pytest.approx((1 - math.exp(-z), (1 - math.exp(-z)) / 2))
    for points in (1, 3, 4):
        assert bh1_moments(z, points) == bh2_moments(z, points) == exact_moments(z, points)


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_weights_integrate_every_polynomial_of_lower_degree(points: int):
    rng = np.random.default_rng(points)
    nodes = list(1.0 - np.cumsum(rng.uniform(0.2, 1.5, points)))
    moments = exact_moments(1.7, points)
    weights = quadrature_weights(nodes, moments)
    for degree in range(points):
        assert sum(w * node**degree for w, node in zip(weights, nodes, strict=True)) == pytest.approx(moments[degree])


def test_weights_of_plain_moments_at_equal_steps_are_adams_bashforths():
    for points, published in enumerate(ADAMS_BASHFORTH, start=1):
        nodes = [-float(j) for j in range(points)]
        moments = [1 / (m + 1) for m in range(points)]
        assert quadrature_weights(nodes, moments) == pytest.approx(published, rel=1e-12)


def test_weights_of_plain_moments_with_the_new_point_are_adams_moultons():
    nodes, moments = [1.0, 0.0, -1.0, -2.0], [1, 1 / 2, 1 / 3, 1 / 4]
    assert quadrature_weights(nodes, moments) == pytest.approx((9 / 24, 19 / 24, -5 / 24, 1 / 24), rel=1e-12)
