"""The NCVSD objective on Gaussian data, where p(x0 | x_t) and every score network have closed forms."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewstep.analytic import Gaussian, as_network
from fewstep.network import UNet
from fewstep.precond import Denoiser
from tests.trainer.tiny import TINY, draws, normals
from trainer.levels.conditioning import LEVEL_FEATURES, level_features
from trainer.levels.renoise import Drawn
from trainer.methods.base import Fed
from trainer.methods.dpdm import Student
from trainer.methods.ncvsd import Observation, combine
from trainer.run.compute import Compute
from trainer.settings import StudentConfig

DATA, SIGMA_DATA, COUNT = Gaussian(0.1, 0.5), 0.5, 512


def fed_at(level: float) -> Fed:
    """Data noised to one level; outputs will be noised to between a tenth of it and itself."""
    clean = DATA.mean + DATA.std * normals(COUNT, 1, 8, 8, seed=1)
    sigma = torch.full((COUNT,), level)
    return Fed(clean + level * normals(COUNT, 1, 8, 8, seed=2), Drawn(sigma, sigma / 10, torch.ones(COUNT).long()))


def conditional_of(fed: Fed) -> tuple[Tensor, float]:
    """Mean [B, C, H, W] and standard deviation of p(x0 | x_t)."""
    t = fed.drawn.sigma[0].item()
    return DATA.teacher(fed.x, fed.drawn.sigma), DATA.std * t / (DATA.std**2 + t**2) ** 0.5


def student_with_exact_networks(fed: Fed, mean, std: float, **config) -> Student:
    """Its teacher is exact; so is its auxiliary, given what it is told of x_t, if outputs are N(mean(x_t), std^2)."""
    student = Student(UNet(TINY), SIGMA_DATA, StudentConfig(renoise="subinterval", **config), Compute())
    t = fed.drawn.sigma

    def network(x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        told = x[:, 1:] * (t**2 + SIGMA_DATA**2).sqrt()[:, None, None, None]
        if x.shape[1] == 2:
            torch.testing.assert_close(onehot[:, -LEVEL_FEATURES:], level_features(t))

        def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
            s = sigma[:, None, None, None]
            return (noisy * std**2 + mean(told) * s**2) / (std**2 + s**2)

        return as_network(denoise, SIGMA_DATA)(x[:, :1], c_noise, onehot)

    student.teacher = Denoiser(as_network(DATA.teacher, SIGMA_DATA), SIGMA_DATA)
    student.auxiliary = Denoiser(network, SIGMA_DATA)
    return student


def gradient_at(outputs: Tensor, fed: Fed, mean, std: float, objective="ncvsd", **config) -> Tensor:
    student = student_with_exact_networks(fed, mean, std, objective=objective, **config)
    return student.divergence_gradient(outputs, None, fed, draws(3))


def test_two_observations_combine_as_a_product_of_gaussians():
    first = Observation(normals(3, 1, 2, 2, seed=0), torch.tensor([0.1, 1.0, 50.0]))
    second = Observation(normals(3, 1, 2, 2, seed=1), torch.tensor([0.3, 1.0, 0.2]))
    both = combine(first, second)
    s1, s2 = (o.sigma.double()[:, None, None, None] for o in (first, second))
    total = s1**2 + s2**2
    torch.testing.assert_close(both.x.double(), (first.x * s2**2 + second.x * s1**2) / total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both.sigma.double(), (s1 * s2 / total.sqrt()).flatten(), rtol=1e-5, atol=0)


def test_the_order_of_observations_does_not_matter_and_one_without_information_adds_none():
    first = Observation(normals(2, 1, 2, 2), torch.tensor([0.1, 2.0]))
    second = Observation(normals(2, 1, 2, 2, seed=1), torch.tensor([1e6, 1e6]))
    ahead, behind = combine(first, second), combine(second, first)
    torch.testing.assert_close(ahead.x, behind.x)
    torch.testing.assert_close(ahead.x, first.x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ahead.sigma, first.sigma)


@pytest.mark.parametrize("level", [0.1, 1.0, 80.0])
@pytest.mark.parametrize("outputs", ["conditional draws", "anything"])
def test_the_score_network_is_the_mean_of_x0_given_both_observations(level, outputs):
    # The auxiliary returns E[x0 | x', x_t] in closed form, so with a gradient of zero the teacher's side is exact.
    fed = fed_at(level)
    mean, std = conditional_of(fed)
    image = (
        mean + std * normals(*mean.shape, seed=4) if outputs == "conditional draws" else normals(*mean.shape, seed=4)
    )
    gradient = gradient_at(image, fed, lambda x: DATA.teacher(x, fed.drawn.sigma), std, weight="one")
    assert gradient.abs().max() < 2e-4


def test_sid_vanishes_in_the_mean_when_outputs_are_conditional_draws():
    fed = fed_at(1.0)
    mean, std = conditional_of(fed)
    image = mean + std * normals(*mean.shape, seed=4)
    gradient = gradient_at(image, fed, lambda x: DATA.teacher(x, fed.drawn.sigma), std, loss="sid", weight="one")
    assert gradient.mean().abs() < 1e-3 and (gradient * (image - mean)).mean().abs() < 1e-3


@pytest.mark.parametrize("level", [0.2, 1.0, 10.0])
@pytest.mark.parametrize("loss", ["kl", "sid"])
def test_conditional_means_are_spread(level, loss):
    fed = fed_at(level)
    mean, std = conditional_of(fed)
    image = mean + 0.3 * std * normals(*mean.shape, seed=4)  # nearly the mean: too narrow
    gradient = gradient_at(image, fed, lambda x: DATA.teacher(x, fed.drawn.sigma), 0.3 * std, loss=loss)
    assert (gradient * (image - mean)).mean() < 0


@pytest.mark.parametrize("shift", [-0.3, 0.3])
@pytest.mark.parametrize("loss", ["kl", "sid"])
def test_a_wrong_mean_is_moved(shift, loss):
    fed = fed_at(1.0)
    mean, std = conditional_of(fed)
    image = mean + shift + std * normals(*mean.shape, seed=4)
    gradient = gradient_at(image, fed, lambda x: DATA.teacher(x, fed.drawn.sigma) + shift, std, loss=loss)
    assert (gradient.mean() > 0) == (shift > 0)  # descending it undoes the shift


def test_outputs_that_ignore_their_input_satisfy_the_marginal_and_not_the_conditional():
    fed = fed_at(0.5)
    image = DATA.mean + DATA.std * normals(*fed.x.shape, seed=4)  # the data's distribution, whatever x_t is
    prior = lambda x: torch.full_like(fed.x, DATA.mean)  # noqa: E731
    assert gradient_at(image, fed, prior, DATA.std, objective="marginal", weight="one").abs().max() < 1e-4
    gradient = gradient_at(image, fed, prior, DATA.std, weight="one")
    assert (gradient * (image - conditional_of(fed)[0])).mean() > 0.01  # they are pulled towards what x_t says


def test_an_ncvsd_student_decides_by_fresh_noise_and_a_marginal_one_by_none():
    seen: list[Tensor] = []

    def network(x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x[:, :1])

    x, sigma, labels = normals(500, 1, 8, 8), torch.full((500,), 2.0), torch.zeros(500).long()
    for objective in ("ncvsd", "marginal"):
        student = Student(UNet(TINY), SIGMA_DATA, StudentConfig(objective=objective), Compute())
        student.student = replace(student.student, network=network)
        rng = draws(5)
        for _ in range(2):
            student.generate(x, sigma, labels, rng)
    once, again, *marginal = seen
    assert once.shape == (500, 2, 8, 8) and torch.equal(once[:, :1], again[:, :1])
    for latent in (once[:, 1:], again[:, 1:]):
        assert abs(latent.mean()) < 0.02 and abs(latent.std() - 1) < 0.02
    assert abs((once[:, 1:] * again[:, 1:]).mean()) < 0.02 and abs((once[:, 1:] * x).mean()) < 0.02
    assert all(torch.equal(x_in, once[:, :1]) for x_in in marginal)


def test_the_auxiliary_is_fitted_with_what_it_will_be_told():
    fed, labels = fed_at(1.0), torch.zeros(COUNT).long()
    student = Student(UNet(TINY), SIGMA_DATA, StudentConfig(objective="ncvsd"), Compute())
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(denoiser: Denoiser) -> Denoiser:
        def network(x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
            seen.append((x[:, 1:], onehot))
            return denoiser.network(x, c_noise, onehot)

        return replace(denoiser, network=network)

    student.auxiliary, student.fitted = watched(student.auxiliary), watched(student.fitted)
    student.divergence_gradient(fed.x, labels, fed, draws())
    student.fit_auxiliary(fed.x, labels, fed, 0.5, draws())
    (image, told), (image_fitted, told_fitted) = seen
    torch.testing.assert_close(image, fed.x / (1 + SIGMA_DATA**2) ** 0.5)  # of unit variance, like every input of F
    assert torch.equal(image, image_fitted) and torch.equal(told, told_fitted)
    assert told.shape == (COUNT, TINY.classes + LEVEL_FEATURES) and (told[:, 0] == 1).all()
