"""The analytic Gaussian pair: its closed forms, and that both are denoisers like any other."""

import numpy as np
import pytest
import torch

from fewstep.analytic import Gaussian, as_network
from fewstep.precond import Denoiser

PAIR = Gaussian(mean=0.3, std=0.5)


def noisy(sigma: float, count: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    clean = PAIR.mean + PAIR.std * rng.normal(size=(1, 1, count, 1))
    return clean, clean + sigma * rng.normal(size=clean.shape)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 4.0])
def test_the_teacher_is_the_best_predictor_of_the_clean_image(sigma: float):
    clean, x = noisy(sigma)
    error = clean - PAIR.teacher(x, np.array([sigma]))
    # The error of a conditional mean is uncorrelated with what it was computed from, and has the conditional variance.
    assert abs((error * x).mean()) < 5e-3 * (1 + sigma)
    assert error.var() == pytest.approx(PAIR.std**2 * sigma**2 / (PAIR.std**2 + sigma**2), rel=0.02)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 4.0, 80.0])
def test_the_student_has_the_distribution_of_the_data_at_every_level(sigma: float):
    denoised = PAIR.student(noisy(sigma)[1], np.array([sigma]))
    assert denoised.mean() == pytest.approx(PAIR.mean, abs=5e-3)
    assert denoised.std() == pytest.approx(PAIR.std, rel=0.01)


def test_the_student_is_the_end_of_the_probability_flow():
    x = np.linspace(-3, 3, 9).reshape(1, 1, 3, 3)
    np.testing.assert_allclose(PAIR.student(x, np.array([2.0])), PAIR.flow(x, 2.0))


def test_torch_and_numpy_agree_and_every_row_has_its_own_sigma():
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 1, 2, 2)
    sigma = np.array([0.2, 30.0], dtype=np.float32)
    for denoiser in (PAIR.teacher, PAIR.student):
        together = denoiser(x, sigma)
        np.testing.assert_allclose(
            together, denoiser(torch.from_numpy(x), torch.from_numpy(sigma)).numpy(), rtol=1e-6, atol=1e-7
        )
        for row in range(2):
            np.testing.assert_array_equal(together[row], denoiser(x[row : row + 1], sigma[row : row + 1])[0])


def test_preconditioning_turns_the_network_form_back_into_the_denoiser():
    x, sigma = np.linspace(-3, 3, 12).reshape(3, 1, 2, 2), np.array([0.05, 1.0, 60.0])
    for exact in (PAIR.teacher, PAIR.student):
        denoiser = Denoiser(as_network(exact, sigma_data=0.7), 0.7)
        np.testing.assert_allclose(denoiser(x, sigma), exact(x, sigma), rtol=1e-9)
