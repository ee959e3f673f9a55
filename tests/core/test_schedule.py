"""Schedules: published end points, closed values, and what a list of levels must be."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.schedule import MAX_STEPS, check_levels, karras_sigmas, logsnr_sigmas, solver_sigmas, student_levels


def test_edm_with_18_levels_runs_from_80_to_0_002():
    sigmas = karras_sigmas(18)
    assert len(sigmas) == 18
    assert sigmas[0] == pytest.approx(80.0, rel=1e-12)
    assert sigmas[-1] == pytest.approx(0.002, rel=1e-12)


def test_the_second_of_18_levels_has_its_published_value():
    # 57.586 is what EDM's CIFAR-10 sampler visits after 80.
    assert karras_sigmas(18)[1] == pytest.approx(57.586, abs=5e-4)


def test_the_middle_of_three_levels_is_the_seventh_power_of_the_mean_root():
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert karras_sigmas(3)[1] == pytest.approx(middle, rel=1e-12)


def test_rho_one_spaces_levels_evenly():
    assert karras_sigmas(5, 1.0, 5.0, rho=1.0) == pytest.approx((5, 4, 3, 2, 1))


def test_a_single_level_is_sigma_max():
    assert karras_sigmas(1) == pytest.approx((80.0,))
    assert solver_sigmas(1) == pytest.approx((80.0, 0.0))
    assert student_levels(1) == pytest.approx((80.0,))


def test_solver_sigmas_are_the_karras_levels_and_an_exact_zero():
    assert solver_sigmas(18) == (*karras_sigmas(18), 0.0)


def test_logsnr_sigmas_have_a_constant_ratio_and_end_in_an_exact_zero():
    assert logsnr_sigmas(5, 0.01, 100.0) == pytest.approx((100.0, 10.0, 1.0, 0.1, 0.01, 0.0))
    assert logsnr_sigmas(18)[0] == 80.0
    assert logsnr_sigmas(18)[-2] == pytest.approx(0.002, rel=1e-12)
    assert logsnr_sigmas(18)[-1] == 0
    assert logsnr_sigmas(1) == (80.0, 0.0)


def test_logsnr_sigmas_are_karras_levels_of_a_rho_without_end():
    assert logsnr_sigmas(9)[:-1] == pytest.approx(karras_sigmas(9, rho=1e6), rel=1e-4)


@given(levels=st.integers(1, 300), low=st.floats(1e-4, 0.5), high=st.floats(1.0, 200.0))
def test_logsnr_levels_descend_strictly(levels: int, low: float, high: float):
    sigmas = logsnr_sigmas(levels, low, high)
    check_levels(sigmas[:-1])
    assert len(sigmas) == levels + 1
    assert all(type(sigma) is float for sigma in sigmas)


def test_student_levels_have_these_values_at_two_and_four_steps():
    high, low = 80 ** (1 / 7), 0.05 ** (1 / 7)
    for steps in (2, 4):
        expected = [(high + i / steps * (low - high)) ** 7 for i in range(steps)]
        assert student_levels(steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", range(1, MAX_STEPS + 1))
def test_student_levels_start_at_80_and_never_reach_their_minimum(steps: int):
    levels = student_levels(steps)
    check_levels(levels)
    assert len(levels) == steps
    assert levels[0] == pytest.approx(80.0)
    assert levels[-1] > 0.05


@given(levels=st.integers(1, 300), low=st.floats(1e-4, 0.5), high=st.floats(1.0, 200.0), rho=st.floats(1.0, 12.0))
def test_karras_levels_descend_strictly_between_their_end_points(levels: int, low: float, high: float, rho: float):
    sigmas = karras_sigmas(levels, low, high, rho)
    check_levels(sigmas)
    assert all(type(sigma) is float for sigma in sigmas)
    assert sigmas[0] == pytest.approx(high)
    if levels > 1:
        assert sigmas[-1] == pytest.approx(low)


@pytest.mark.parametrize("levels", [0, -1])
def test_a_schedule_without_levels_is_refused(levels: int):
    for schedule in (karras_sigmas, logsnr_sigmas):
        with pytest.raises(ValueError, match="at least one level"):
            schedule(levels)


@pytest.mark.parametrize("low", [0.0, -1.0, 80.0, 100.0, math.nan])
def test_equal_steps_in_log_sigma_need_a_positive_lower_end(low: float):
    with pytest.raises(ValueError, match="between 0 and sigma_max"):
        logsnr_sigmas(4, low)


@pytest.mark.parametrize(
    "sigmas",
    [(), (0.0,), (-1.0,), (1.0, 1.0), (1.0, 2.0), (2.0, 1.0, 0.0), (math.nan,), (2.0, math.nan), (math.inf, 1.0)],
    ids=str,
)
def test_levels_that_are_not_positive_finite_and_descending_are_refused(sigmas: tuple[float, ...]):
    with pytest.raises(ValueError, match="strictly descending"):
        check_levels(sigmas)
