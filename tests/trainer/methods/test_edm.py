"""EDM training against the closed form: Gaussian data has a perfect denoiser with a known loss."""

import math

import pytest
import torch

from fewstep.analytic import Gaussian, as_network
from fewstep.precond import Denoiser
from trainer.levels.renoise import lognormal_levels
from trainer.methods.edm import denoising_loss
from trainer.run.draws import Draws
from trainer.run.optimizer import learning_rate
from trainer.settings import AdamConfig, NoiseDistribution


@pytest.mark.parametrize("sigma", [0.01, 0.5, 30.0])
def test_perfect_denoiser_of_gaussian_data_has_loss_one_at_every_level(sigma):
    # weight * conditional variance = (sigma^2 + s^2) / (sigma s)^2 * sigma^2 s^2 / (sigma^2 + s^2) = 1
    gaussian, rng = Gaussian(0.0, 0.5), torch.Generator().manual_seed(0)
    images = 0.5 * torch.randn(4000, 1, 4, 4, generator=rng)
    noise = torch.randn(images.shape, generator=rng)
    denoiser = Denoiser(as_network(gaussian.teacher, 0.5), 0.5)
    loss = denoising_loss(denoiser, images, None, torch.full((4000,), sigma), noise)
    assert loss.mean().item() == pytest.approx(1.0, abs=0.03)


def test_any_other_denoiser_of_gaussian_data_has_a_higher_loss():
    rng = torch.Generator().manual_seed(1)
    images = 0.5 * torch.randn(4000, 1, 4, 4, generator=rng)
    noise, sigma = torch.randn(images.shape, generator=rng), torch.full((4000,), 0.5)
    wrong = Denoiser(lambda x, c, o: torch.zeros_like(x), 0.5)
    exact = Denoiser(as_network(Gaussian(0.0, 0.5).teacher, 0.5), 0.5)
    biased = Denoiser(lambda x, c, o: exact.network(x, c, o) + 0.3, 0.5)
    best = denoising_loss(exact, images, None, sigma, noise).mean()
    assert denoising_loss(wrong, images, None, sigma, noise).mean() >= best - 0.02
    assert denoising_loss(biased, images, None, sigma, noise).mean() == pytest.approx(float(best) + 0.09, abs=0.01)


def test_training_noise_is_lognormal_with_the_given_moments():
    sigma = lognormal_levels(NoiseDistribution(-1.2, 1.2), 100_000, Draws(torch.Generator().manual_seed(0)))
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=0.02)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.02)


def test_learning_rate_rises_holds_and_falls():
    config = AdamConfig(lr=1.0, warmup=0.1, decay_from=0.5, final=0.2)
    rates = [learning_rate(config, p) for p in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
    assert rates[0] < rates[1] < 1 and rates[2] == rates[3] == 1
    assert math.isclose(rates[4], 0.6) and math.isclose(rates[5], 0.2)
