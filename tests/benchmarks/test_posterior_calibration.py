"""Rank histograms and coverage: what passes, what fails, and by how much, for laws that are known."""

from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from benchmarks.posterior_calibration import by_chain, calibration, chain_of, exactly, linear_case, places
from tests.trainer.tiny import draws, normals

CASE = linear_case()


def scaled(factor: float, shift: float = 0.0):
    """A sampler whose deviations are off by a factor, and its means by a shift."""
    covariance, gain = CASE.posterior()
    exact = exactly(CASE)

    def run(measured: Tensor, samples: int, rng):
        mean = measured @ gain.T
        made, _ = exact(measured, samples, rng)
        return mean + factor * (made - mean) + shift * covariance.diagonal().sqrt(), None

    return run


def test_exact_samples_and_the_chain_with_the_exact_denoiser_are_calibrated():
    for sampler in (exactly(CASE), by_chain(CASE, chain_of(CASE, 60))):
        found = calibration(CASE, sampler, 600, 99, 3)
        assert found["p"] > 0.01 and found["coverage"] == pytest.approx(0.9, abs=0.02)
        assert found["spread"] == pytest.approx(12**-0.5, rel=0.04)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_samples_of_a_wrong_width_fail_and_cover_as_the_closed_form_says(factor: float):
    found = calibration(CASE, scaled(factor), 600, 99, 4)
    unit = NormalDist()
    assert found["p"] < 1e-4
    assert found["coverage"] == pytest.approx(2 * unit.cdf(factor * unit.inv_cdf(0.95)) - 1, abs=0.025)


def test_a_shifted_mean_fails():
    assert calibration(CASE, scaled(1.0, 0.4), 600, 99, 5)["p"] < 1e-4


def test_weights_mend_the_places_of_samples_of_another_law():
    """x ~ N(0, 1) among 4,000 samples of N(0.5, 1.3^2), with the weights of the one law over the other."""
    truth, made = normals(600, 1, seed=1), 0.5 + 1.3 * normals(4000, 600, 1, seed=2)
    log_weights = (-(made**2) / 2 + ((made - 0.5) / 1.3) ** 2 / 2)[..., 0]
    exact = torch.special.ndtr(truth)
    mended = places(truth, made, log_weights.softmax(dim=0), draws(6))
    assert float((mended - exact).abs().mean()) < 0.02
    assert float((places(truth, made, None, draws(6)) - exact).abs().mean()) > 0.1
