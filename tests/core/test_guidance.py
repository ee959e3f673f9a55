"""Autoguidance on closed forms: what it leaves alone, and errors it undoes."""

import numpy as np
import pytest
import torch

from fewstep.analytic import Gaussian, as_network
from fewstep.guidance import guided
from fewstep.precond import Denoiser

SIGMA_DATA = 0.5
DATA = Gaussian(0.0, 0.5)


def off_by(share: float):
    """F of a denoiser whose every output misses the data's by this share of it: as a shrunken mean does."""
    return as_network(lambda x, sigma: (1 - share) * DATA.teacher(x, sigma), SIGMA_DATA)


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-2, 1, 16, dtype=torch.float64)
    x = torch.randn(16, 1, 4, 4, generator=rng, dtype=torch.float64) * (sigma**2 + 0.25).sqrt()[:, None, None, None]
    return x, sigma


def test_weight_one_is_the_network_itself():
    x, sigma = drawn()
    network = off_by(0.1)
    same = Denoiser(guided(network, off_by(0.3), 1.0), SIGMA_DATA)
    torch.testing.assert_close(same(x, sigma), Denoiser(network, SIGMA_DATA)(x, sigma), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weight", [0.0, 1.2, 3.0])
def test_denoised_images_extrapolate_as_the_networks_do(weight):
    x, sigma = drawn()
    better, worse = (Denoiser(off_by(share), SIGMA_DATA)(x, sigma) for share in (0.1, 0.3))
    found = Denoiser(guided(off_by(0.1), off_by(0.3), weight), SIGMA_DATA)(x, sigma)
    torch.testing.assert_close(found, worse + weight * (better - worse), rtol=1e-10, atol=1e-12)


def test_it_undoes_an_error_that_the_guide_makes_three_times_over():
    """(1 - 3e) + w (2e) = 1 at w = 3 / 2."""
    x, sigma = drawn()
    found = Denoiser(guided(off_by(0.1), off_by(0.3), 1.5), SIGMA_DATA)(x, sigma)
    torch.testing.assert_close(found, DATA.teacher(x, sigma), rtol=1e-10, atol=1e-12)


def test_arrays_of_numpy_are_taken_too():
    x = np.ones((2, 1, 4, 4), np.float32)
    found = guided(lambda x, c_noise, onehot: 3 * x, lambda x, c_noise, onehot: x, 1.5)(x, x, x)
    np.testing.assert_array_equal(found, 4 * x)
