"""The consistency sampler and its levels: Algorithm 1 of Song et al. 2023 on the exact consistency function."""

import math

import numpy as np
import pytest
import torch

from fewstep import noise, noise_torch
from fewstep.analytic import Gaussian
from fewstep.consistency import consistency_levels, sample_consistency
from fewstep.samplers import sample_dpdm
from fewstep.schedule import check_levels

PAIR = Gaussian(mean=0.2, std=0.5)
SHAPE = (1, 8, 8)


def gaussian_noise(count: int, seed: int = 0):
    """A float64 noise function: unit normals [1, 1, count, 1], the same for the same step."""
    return lambda step: np.random.default_rng((seed, step)).normal(size=(1, 1, count, 1))


@pytest.mark.parametrize("steps", range(1, 9))
def test_an_ode_that_ends_at_zero_makes_it_the_students_sampler(steps: int):
    draw, sigmas = gaussian_noise(100), consistency_levels(steps)
    ours = sample_consistency(PAIR.student, draw, sigmas, sigma_min=0.0)
    theirs = sample_dpdm(PAIR.student, draw, sigmas)
    np.testing.assert_array_equal(ours.images, theirs.images)
    assert ours.nfe == theirs.nfe == steps


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_at_edms_sigma_min_the_two_samplers_differ_by_less_than_a_hundredth_of_a_grey_level(steps: int):
    # sqrt(sigma^2 - 0.002^2) falls short of sigma by 0.002^2 / (2 sigma): 9e-6 at the lowest level here.
    draw, sigmas = gaussian_noise(1000), consistency_levels(steps)
    gap = np.abs(
        sample_consistency(PAIR.student, draw, sigmas).images - sample_dpdm(PAIR.student, draw, sigmas).images
    ).max()
    assert 0 < gap < 0.01 * 2 / 255


def test_it_follows_algorithm_1():
    draw, epsilon = gaussian_noise(10), 0.3
    ended = PAIR.student(80.0 * draw(0), np.array([80.0]))
    for step, sigma in enumerate((5.0, 0.4), start=1):
        ended = PAIR.student(ended + math.sqrt(sigma**2 - epsilon**2) * draw(step), np.array([sigma]))
    sampled = sample_consistency(PAIR.student, draw, (80.0, 5.0, 0.4), epsilon)
    np.testing.assert_allclose(sampled.images, ended, rtol=1e-12)


def test_what_ends_at_sigma_min_keeps_the_noise_that_is_left_there():
    # The exact consistency function of an ODE that stops at epsilon: its outputs are data with that much noise.
    epsilon = 0.3

    def ending_early(x, sigma):
        kept = np.sqrt((PAIR.std**2 + epsilon**2) / (PAIR.std**2 + sigma**2))[:, None, None, None]
        return PAIR.mean + kept * (x - PAIR.mean)

    images = sample_consistency(ending_early, gaussian_noise(100_000), (80.0, 2.0, 0.5), epsilon).images
    assert images.mean() == pytest.approx(PAIR.mean, abs=0.01)
    assert images.std() == pytest.approx(math.hypot(PAIR.std, epsilon), rel=0.01)


def test_torch_and_numpy_agree():
    seeds, sigmas = (0, 5, 2**63 + 1), consistency_levels(4)
    ours = sample_consistency(PAIR.student, noise.noise_for(seeds, SHAPE), sigmas).images
    theirs = sample_consistency(PAIR.student, noise_torch.noise_for(seeds, SHAPE), sigmas).images
    assert isinstance(theirs, torch.Tensor) and ours.dtype == np.float32 and ours.shape == theirs.shape == (3, *SHAPE)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)


def untouched(x, sigma):
    raise AssertionError("the network was called")


@pytest.mark.parametrize("sigmas", [(), (0.0,), (1.0, 2.0), (2.0, -1.0), (math.nan,)], ids=str)
def test_bad_levels_are_refused_before_the_network_is_called(sigmas: tuple[float, ...]):
    with pytest.raises(ValueError, match="descending"):
        sample_consistency(untouched, gaussian_noise(2), sigmas)


@pytest.mark.parametrize("sigma_min", [-0.1, 0.5, 1.0, math.nan])
def test_an_end_of_the_ode_that_is_not_below_every_level_is_refused(sigma_min: float):
    with pytest.raises(ValueError, match="sigma_min is where the ODE ends"):
        sample_consistency(untouched, gaussian_noise(2), (80.0, 0.5), sigma_min)


@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 1.0])
def test_levels_are_as_many_as_steps_and_cover_the_useful_range_evenly(sigma_data: float):
    for steps in range(1, 9):
        levels = consistency_levels(steps, sigma_data)
        check_levels(levels)
        assert len(levels) == steps and levels[0] == 80.0
        below = np.log(levels[1:])
        if steps > 1:
            assert below.mean() == pytest.approx(math.log(sigma_data * math.sqrt(10 / 3)))
        if steps > 2:
            np.testing.assert_allclose(np.diff(below), -math.log(30) / (steps - 1))


def test_two_steps_take_the_published_second_level():
    assert 0.82 <= consistency_levels(2)[1] <= 1.38


def test_levels_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least one step"):
        consistency_levels(0)
    for sigma_data in (0.0, -1.0, 8.0, math.nan):
        with pytest.raises(ValueError, match="sigma_data must lie"):
            consistency_levels(2, sigma_data)
