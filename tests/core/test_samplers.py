"""Samplers on the analytic Gaussian pair: order of convergence, distribution, calls counted, numpy against torch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fewstep import noise, noise_torch
from fewstep.analytic import Gaussian
from fewstep.samplers import Churn, sample_dpdm, sample_euler, sample_heun
from fewstep.schedule import solver_sigmas, student_levels

PAIR = Gaussian(mean=0.2, std=0.5)
SHAPE = (1, 8, 8)
SOLVERS = {"euler": sample_euler, "heun": sample_heun}


def gaussian_noise(count: int, seed: int = 0) -> Callable[[int], np.ndarray]:
    """A float64 noise function: unit normals [1, 1, count, 1], the same for the same step."""
    return lambda step: np.random.default_rng((seed, step)).normal(size=(1, 1, count, 1))


def solver_error(sampler: Callable[..., Any], levels: int) -> float:
    """Mean distance from the exact end of the flow, in float64."""
    draw = gaussian_noise(64)
    exact = PAIR.flow(80.0 * draw(0), 80.0)
    return float(np.abs(sampler(PAIR.teacher, draw, solver_sigmas(levels)).images - exact).mean())


def test_euler_is_first_order():
    ratio = solver_error(sample_euler, 128) / solver_error(sample_euler, 256)
    assert 1.8 < ratio < 2.2


def test_heun_is_second_order():
    ratio = solver_error(sample_heun, 64) / solver_error(sample_heun, 128)
    assert 3.5 < ratio < 4.6


def test_heun_is_closer_than_euler_with_as_many_calls():
    assert solver_error(sample_heun, 32) < 0.5 * solver_error(sample_euler, 63)


@pytest.mark.parametrize("levels", [1, 2, 18])
def test_calls_are_counted_as_they_are_made(levels: int):
    made = 0

    def denoiser(x, sigma):
        nonlocal made
        made += 1
        return PAIR.teacher(x, sigma)

    for sampler, expected in ((sample_euler, levels), (sample_heun, 2 * levels - 1)):
        made = 0
        assert sampler(denoiser, gaussian_noise(4), solver_sigmas(levels)).nfe == made == expected


def test_churn_costs_no_extra_calls():
    churned = sample_heun(PAIR.teacher, gaussian_noise(4), solver_sigmas(18), Churn(40))
    assert churned.nfe == 35


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_exact_student_keeps_mean_and_spread_at_any_step_count(steps: int):
    sample = sample_dpdm(PAIR.student, gaussian_noise(100_000, seed=steps), student_levels(steps))
    assert sample.nfe == steps
    assert sample.images.mean() == pytest.approx(PAIR.mean, abs=0.01)
    assert sample.images.std() == pytest.approx(PAIR.std, rel=0.01)


def test_one_step_is_one_call_on_pure_noise():
    draw = gaussian_noise(10)
    images = sample_dpdm(PAIR.student, draw, (80.0,)).images
    np.testing.assert_array_equal(images, PAIR.student(80.0 * draw(0), np.array([80.0])))


def test_dpdm_follows_algorithm_2_with_fresh_noise_at_each_level():
    draw, levels = gaussian_noise(10), (80.0, 5.0, 0.4)
    denoised = PAIR.student(80.0 * draw(0), np.array([80.0]))
    for step, sigma in enumerate(levels[1:], start=1):
        denoised = PAIR.student(denoised + sigma * draw(step), np.array([sigma]))
    np.testing.assert_array_equal(sample_dpdm(PAIR.student, draw, levels).images, denoised)


@pytest.mark.parametrize("churn", [Churn(), Churn(40), Churn(80, 0.05, 50)], ids=["none", "full", "part"])
def test_churn_leaves_the_marginal_distribution_as_it_is(churn: Churn):
    # Many levels, because at 64 the solver's own error still widens the spread by 2 %.
    images = sample_heun(PAIR.teacher, gaussian_noise(50_000), solver_sigmas(256), churn).images
    assert images.mean() == pytest.approx(PAIR.mean, abs=0.01)
    assert images.std() == pytest.approx(PAIR.std, rel=0.01)


def test_churn_changes_the_path_and_none_does_not():
    draw, sigmas = gaussian_noise(16), solver_sigmas(12)
    plain = sample_heun(PAIR.teacher, draw, sigmas).images
    np.testing.assert_array_equal(plain, sample_heun(PAIR.teacher, draw, sigmas, Churn(0.0)).images)
    outside = Churn(40, sigma_min=100.0)  # no level lies in the churned range
    np.testing.assert_array_equal(plain, sample_heun(PAIR.teacher, draw, sigmas, outside).images)
    assert np.abs(plain - sample_heun(PAIR.teacher, draw, sigmas, Churn(40)).images).max() > 0.05


def test_a_denoiser_that_always_says_the_same_image_makes_every_solver_end_there():
    target = np.full((1, 1, 3, 1), 0.7)
    for sampler in SOLVERS.values():
        images = sampler(lambda x, sigma: target, gaussian_noise(3), solver_sigmas(7)).images
        np.testing.assert_allclose(images, target, atol=1e-9)


@pytest.mark.parametrize("name", ["dpdm", "euler", "heun", "churned heun"])
def test_torch_and_numpy_samplers_agree(name: str):
    seeds = (0, 5, 2**63 + 1)

    def run(draw: Callable[[int], Any]) -> Any:
        if name == "dpdm":
            return sample_dpdm(PAIR.student, draw, student_levels(4)).images
        if name == "churned heun":
            return sample_heun(PAIR.teacher, draw, solver_sigmas(12), Churn(20)).images
        return SOLVERS[name](PAIR.teacher, draw, solver_sigmas(12)).images

    ours, theirs = run(noise.noise_for(seeds, SHAPE)), run(noise_torch.noise_for(seeds, SHAPE))
    assert isinstance(theirs, torch.Tensor)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (3, *SHAPE)
    # Values start at 80 x noise, where 1e-6 of noise is 1e-4; every later step shrinks the difference.
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)


def test_an_image_does_not_depend_on_its_batch():
    def run(seeds: tuple[int, ...]) -> np.ndarray:
        return sample_dpdm(PAIR.student, noise.noise_for(seeds, SHAPE), student_levels(4)).images

    together = run((3, 4, 5))
    for row, seed in enumerate((3, 4, 5)):
        np.testing.assert_array_equal(together[row], run((seed,))[0])


def test_the_noise_function_is_asked_for_each_step_once_and_its_arrays_are_left_alone():
    asked: list[int] = []
    kept = {step: np.ones((1, 1, 2, 1)) * (step + 1) for step in range(4)}

    def draw(step: int) -> np.ndarray:
        asked.append(step)
        return kept[step]

    sample_dpdm(PAIR.student, draw, student_levels(4))
    assert asked == [0, 1, 2, 3]
    for step, array in kept.items():
        assert (array == step + 1).all()


BAD_LEVELS = [(), (0.0,), (1.0, 2.0), (2.0, -1.0), (math.nan,), (math.inf,)]


@pytest.mark.parametrize("sigmas", BAD_LEVELS, ids=str)
def test_bad_levels_are_refused_before_the_network_is_called(sigmas: tuple[float, ...]):
    def untouched(x, sigma):
        raise AssertionError("the network was called")

    with pytest.raises(ValueError, match="descending"):
        sample_dpdm(untouched, gaussian_noise(2), sigmas)
    for sampler in SOLVERS.values():
        with pytest.raises(ValueError, match="descending"):
            sampler(untouched, gaussian_noise(2), (*sigmas, 0.0))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_asks_for_a_final_zero(name: str):
    with pytest.raises(ValueError, match="end in 0"):
        SOLVERS[name](PAIR.teacher, gaussian_noise(2), (2.0, 1.0))


def test_churn_adds_noise_times_its_scale_up_to_the_raised_level():
    # EDM Algorithm 2, line 6: x_hat = x + sqrt(sigma_hat^2 - sigma^2) S_noise eps
    seen = []

    def denoiser(x, sigma):
        seen.append((x, float(sigma[0])))
        return np.zeros_like(x)

    draw = noise.noise_for([5], (1, 2, 2))
    sample_heun(denoiser, draw, (2.0, 0.0), Churn(amount=0.3, scale=1.5))
    x, raised = seen[0]
    assert raised == pytest.approx(2.0 * 1.3)
    np.testing.assert_allclose(x, 2.0 * draw(0) + math.sqrt(raised**2 - 4.0) * 1.5 * draw(1), rtol=1e-6)
