"""SA-Solver's stochasticity on the analytic Gaussian pair.

The Gaussian denoiser is affine in x, so a sampler's output is an affine function of the independent normals it used:
its mean and variance follow from its response to each of them alone, with no sampling error.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fewstep.analytic import Gaussian
from fewstep.sa_solver import middle_interval, sample_sa
from fewstep.schedule import logsnr_sigmas, solver_sigmas

PAIR = Gaussian(mean=0.2, std=0.5)
EVERYWHERE = (0.0, math.inf)


def law(sigmas: tuple[float, ...], **settings: Any) -> tuple[float, float]:
    """Mean and variance of every element of the sampler's output."""
    levels = len(sigmas) - 1

    def respond(step: int) -> np.ndarray:  # image j gets a one as its noise j, the last image no noise at all
        return (np.arange(levels + 1) == step).astype(float).reshape(-1, 1, 1, 1)

    images = sample_sa(PAIR.teacher, respond, sigmas, **settings).images.ravel()
    return float(images[-1]), float(((images[:-1] - images[-1]) ** 2).sum())


@pytest.mark.parametrize("schedule", [logsnr_sigmas, solver_sigmas])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.4])
def test_the_marginal_distribution_is_the_datas_whatever_tau(tau: float, schedule: Callable[[int], tuple[float, ...]]):
    for interval in (None, EVERYWHERE, (0.05, 1.0)):
        mean, variance = law(schedule(140), tau=tau, interval=interval)
        # Starting at 80 eps rather than mean + 80 eps leaves at most mean std / 80 = 0.00125 of the mean out.
        assert mean == pytest.approx(PAIR.mean, abs=0.0015)
        assert variance == pytest.approx(PAIR.std**2, rel=0.004)


def test_a_large_sample_has_the_datas_mean_and_spread():
    def draw(step: int) -> np.ndarray:
        return np.random.default_rng((3, step)).normal(size=(1, 1, 100_000, 1))

    images = sample_sa(PAIR.teacher, draw, logsnr_sigmas(35)).images
    assert images.mean() == pytest.approx(PAIR.mean, abs=0.006)  # 4 standard errors of the mean
    assert images.std() == pytest.approx(PAIR.std, rel=0.015)  # 3 of the spread, and 0.6 % that 35 levels leave
    assert np.corrcoef(images.ravel(), draw(0).ravel())[0, 1] < 0.1  # the start is all but forgotten


@pytest.mark.parametrize(
    ("predictor", "corrector", "order"), [(1, 0, 1), (1, 2, 2), (2, 0, 2), (3, 0, 2), (3, 4, 2), (4, 4, 2)]
)
def test_the_variance_converges_with_order_two_at_most(predictor: int, corrector: int, order: int):
    # D is as rough in time as the noise, so points beyond the second lower the error, not its order.
    def error(levels: int) -> float:
        sigmas = logsnr_sigmas(levels, 1e-4, 80.0)
        settings = {"interval": EVERYWHERE, "predictor_order": predictor, "corrector_order": corrector}
        return abs(law(sigmas, tau=1.0, **settings)[1] - PAIR.std**2)

    assert math.log2(error(250) / error(500)) == pytest.approx(order, abs=0.1)


def test_noise_is_asked_for_where_tau_acts_and_under_the_number_of_the_level_it_makes():
    sigmas = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.0)

    def asked_for(**settings: Any) -> list[int]:
        asked: list[int] = []

        def draw(step: int) -> np.ndarray:
            asked.append(step)
            return np.zeros((1, 1, 1, 1))

        sample_sa(PAIR.teacher, draw, sigmas, **settings)
        return asked

    assert asked_for(interval=(1.0, 4.0)) == [0, 2, 3, 4]  # bounds included; the steps that start at 4, 2 and 1
    assert asked_for(interval=(1.1, 3.9)) == [0, 3]
    assert asked_for(interval=EVERYWHERE) == [0, 1, 2, 3, 4, 5]  # the step to 0 adds none
    assert asked_for(tau=0.0) == [0]
    assert asked_for() == [0, 2, 3, 4, 5]  # levels 1 to 4 of 0 .. 5


def test_one_step_adds_the_noise_that_the_diffusion_adds():
    seen: list[np.ndarray] = []

    def denoiser(x, sigma):
        seen.append(x)
        return np.zeros_like(x)

    draw = {0: np.ones((1, 1, 1, 1)), 1: np.full((1, 1, 1, 1), 10.0)}.__getitem__
    tau, high, low = 0.8, 3.0, 2.0
    sample_sa(denoiser, draw, (high, low, 0.0), tau=tau, interval=EVERYWHERE)
    # With D = 0: x shrinks by (low / high)^(1 + tau^2), and what is missing up to variance low^2 is noise.
    kept = (low / high) ** (1 + tau**2)
    np.testing.assert_allclose(seen[1], kept * high + math.sqrt(low**2 - (kept * high) ** 2) * 10.0, rtol=1e-12)


def test_tau_changes_the_path_and_an_interval_without_levels_does_not():
    sigmas = logsnr_sigmas(12)

    def draw(step: int) -> np.ndarray:
        return np.random.default_rng((4, step)).normal(size=(1, 1, 16, 1))

    plain = sample_sa(PAIR.teacher, draw, sigmas, tau=0.0).images
    np.testing.assert_array_equal(plain, sample_sa(PAIR.teacher, draw, sigmas, interval=(100.0, 200.0)).images)
    assert np.abs(plain - sample_sa(PAIR.teacher, draw, sigmas).images).max() > 0.05


def test_the_middle_is_the_levels_from_a_fifth_to_four_fifths_of_the_way():
    sigmas = tuple(float(11 - i) for i in range(12))  # 11, 10, .., 1, 0
    assert middle_interval(sigmas) == (3.0, 9.0)  # levels 2 .. 8 of 0 .. 10
    assert middle_interval((4.0, 3.0, 2.0, 1.0, 0.0)) == (2.0, 3.0)
    assert middle_interval((4.0, 3.0, 2.0, 0.0)) == (3.0, 3.0)
    assert middle_interval((4.0, 3.0, 0.0)) == (0.0, 0.0)  # no middle: tau acts nowhere
    assert middle_interval((4.0, 0.0)) == (4.0, 4.0)
