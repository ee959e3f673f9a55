"""The Gaussian chain: its law on Gaussian data, its log-ratios, and what they say about a posterior in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from fewstep.analytic import Gaussian, Mixture
from fewstep.ancestral import (
    Chain,
    ancestral_chain,
    denoising_errors,
    log_ratio,
    noised_back,
    renoised,
    sample_ancestral,
    step_mean,
    student_chain,
)
from fewstep.samplers import sample_dpdm
from fewstep.schedule import karras_sigmas

PRIOR = Mixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
MATRIX, Y, NOISE = np.array([[1.0, 0.5]]), np.array([1.5]), np.array([[0.25]])


def optimal(count: int, sigma_max: float = 80.0) -> Chain:
    sigmas = karras_sigmas(count + 1, 0.05, sigma_max)
    return ancestral_chain(sigmas, "opt", [Gaussian(0, 1).error(sigma) for sigma in sigmas])


def drawn(seed: int, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(shape, generator=generator, dtype=torch.float64)


def log_likelihood(x: torch.Tensor) -> torch.Tensor:
    """log N(y; A x, noise) of x [B, 2], in the form of 1-D data y."""
    gap = x.reshape(len(x), 2) @ torch.from_numpy(MATRIX[0]) - Y[0]
    return -(gap**2) / (2 * NOISE[0, 0]) - 0.5 * math.log(2 * math.pi * NOISE[0, 0])


@pytest.mark.parametrize("log_variance", [0.0, 0.3, -0.7])
@pytest.mark.parametrize("chain", [ancestral_chain((9.0, 2.0, 0.4, 0.1), "small"), student_chain((3.0, 1.0, 0.2))])
def test_the_log_ratio_is_the_difference_of_two_normal_densities(chain: Chain, log_variance: float):
    rng = torch.Generator().manual_seed(1)
    x, x_next, prior, posterior = torch.randn(4, 5, 2, 3, 3, generator=rng, dtype=torch.float64)
    for i in range(chain.steps):
        scale = math.sqrt(chain.variances[i])
        ours = Normal(step_mean(chain, i, x, posterior), scale * math.exp(log_variance / 2)).log_prob(x_next)
        theirs = Normal(step_mean(chain, i, x, prior), scale).log_prob(x_next)
        expected = (ours - theirs).sum(dim=(1, 2, 3))
        found = log_ratio(chain, i, x, x_next, prior, posterior, log_variance)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        states, denoised = (x.numpy(), x_next.numpy()), (prior.numpy(), posterior.numpy())
        by_numpy = log_ratio(chain, i, *states, *denoised, log_variance=log_variance)
        np.testing.assert_allclose(by_numpy, expected.numpy(), rtol=1e-9)


def test_equal_denoisers_have_no_log_ratio():
    chain, x = ancestral_chain((5.0, 1.0, 0.2), "large"), torch.randn(3, 4)
    assert torch.equal(log_ratio(chain, 1, x, 2 * x, x / 3, x / 3), torch.zeros(3))


@pytest.mark.parametrize("count", [10, 20, 50])
def test_the_chain_of_gaussian_data_has_the_spread_of_its_rule(count: int):
    """Standard deviation of N(0, 1) after small, large and optimal steps between `count` levels from 80 to 0.05."""
    known = {10: (0.662, 1.624, 0.999), 20: (0.804, 1.246, 0.999), 50: (0.913, 1.086, 0.999)}[count]
    sigmas = karras_sigmas(count, 0.05, 80.0)
    data = Gaussian(0.0, 1.0)
    chains = [ancestral_chain(sigmas, "small"), ancestral_chain(sigmas, "large"), optimal(count - 1)]
    for chain, expected in zip(chains, known, strict=True):
        assert data.through(chain).std == pytest.approx(expected, abs=6e-4)


def test_sampling_has_the_law_that_the_closed_form_says():
    data, chain = Gaussian(0.4, 0.7), ancestral_chain(karras_sigmas(9, 0.05, 20.0), "large")
    images, nfe = sample_ancestral(data.teacher, drawn(0, (40_000, 1, 1, 1)), chain)
    law = data.through(chain)
    assert nfe == 9
    assert float(images.mean()) == pytest.approx(law.mean, abs=4 * law.std / 200)
    assert float(images.std()) == pytest.approx(law.std, rel=0.02)


def test_errors_measured_on_data_are_those_of_the_closed_form():
    data, sigmas = Gaussian(0.1, 0.5), (8.0, 1.0, 0.3)
    images = 0.1 + 0.5 * drawn(3, (20_000, 1, 2, 2))(0)
    measured = denoising_errors(data.teacher, images, sigmas, drawn(4, images.shape))
    np.testing.assert_allclose(measured, [data.error(sigma) for sigma in sigmas], rtol=0.03)


def test_the_student_sampler_is_a_chain():
    levels, noise = (2.5, 0.9, 0.3), torch.randn(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    pair = Gaussian(0.2, 0.5)
    expected = sample_dpdm(pair.student, noise.__getitem__, levels)
    found = sample_ancestral(pair.student, noise.__getitem__, student_chain(levels))
    torch.testing.assert_close(found.images, expected.images)
    assert found.nfe == expected.nfe == 3


def test_mixtures_denoise_to_the_mean_of_what_they_are_given_and_answer_measurements():
    mixture = Mixture(np.array([0.3, 0.7]), np.array([[-1.0, 0.0], [2.0, 1.0]]), np.stack([np.eye(2), 0.2 * np.eye(2)]))
    x = torch.tensor([[0.4, 0.2], [1.9, -0.3]], dtype=torch.float64)
    sigma = torch.tensor([0.8, 0.8], dtype=torch.float64)
    x.requires_grad_()
    gradient = torch.autograd.grad(mixture.log_density(x, sigma).sum(), x)[0]
    tweedie = x + 0.8**2 * gradient  # D = x + sigma^2 grad log p(x; sigma) (Robbins 1956)
    torch.testing.assert_close(mixture.denoiser(x, sigma), tweedie.detach(), rtol=1e-8, atol=1e-8)

    posterior, log_z = mixture.observed(MATRIX, Y, NOISE)
    clean, tiny = x.detach(), torch.full((2,), 1e-9, dtype=torch.float64)
    bayes = mixture.log_density(clean, tiny) + log_likelihood(clean) - log_z
    torch.testing.assert_close(posterior.log_density(clean, tiny), bayes, rtol=1e-6, atol=1e-6)


def residuals(chain: Chain, behaviour: str, count: int = 2000) -> torch.Tensor:
    """sum of log-ratios - log r [count] of the exact posterior denoiser along trajectories of a behaviour."""
    posterior, _ = PRIOR.observed(MATRIX, Y, NOISE)
    noise, shape = drawn(5, (count, 1, 1, 2)), (count, 1, 1, 2)
    level = lambda sigma: torch.full((count,), sigma, dtype=torch.float64)  # noqa: E731
    if behaviour == "noised back":
        images = torch.from_numpy(posterior.sample(count, np.random.default_rng(0))).reshape(shape)
        states = noised_back(images, chain, noise)
    else:
        states = [chain.sigmas[0] * noise(0)]
        for i, sigma in enumerate(chain.sigmas[:-1]):
            mixture = PRIOR if behaviour == "prior" else posterior
            widened = 1.15 if behaviour == "exploration" else 1.0
            mean = step_mean(chain, i, states[-1], mixture.denoiser(states[-1], level(sigma)))
            states.append(mean + widened * math.sqrt(chain.variances[i]) * noise(i + 1))
    total = torch.zeros(count, dtype=torch.float64)
    for i, (x, x_next) in enumerate(itertools.pairwise(states)):
        denoised = [mixture.denoiser(x, level(chain.sigmas[i])) for mixture in (PRIOR, posterior)]
        total += log_ratio(chain, i, x, x_next, *denoised)
    return total - log_likelihood(PRIOR.denoiser(states[-1], level(chain.sigmas[-1])))


@pytest.mark.parametrize("behaviour", ["on-policy", "exploration", "prior", "noised back"])
def test_the_exact_posterior_balances_trajectories_of_every_behaviour_as_steps_grow(behaviour: str):
    """The residual is -log Z on every trajectory but for the finite number of steps: its spread falls as 1 / sqrt(n).

    Steps of the same variance cannot tilt exactly. Exploration of a fixed factor adds the same to all trajectories.
    """
    _, log_z = PRIOR.observed(MATRIX, Y, NOISE)
    coarse, fine = residuals(optimal(25), behaviour), residuals(optimal(100), behaviour)
    assert 0.25 < float(fine.std() / coarse.std()) < 0.65
    assert float(fine.std()) < 0.6
    if behaviour in ("on-policy", "noised back"):  # those of the others are far from the posterior's: worse by 1 / n
        assert -float(fine.mean()) == pytest.approx(log_z, abs=0.12)


def test_importance_weights_and_rejection_agree_on_the_evidence():
    chain = optimal(30)
    on_policy = residuals(chain, "on-policy", 4000)
    count = 40_000
    images = sample_ancestral(PRIOR.denoiser, drawn(7, (count, 1, 1, 2)), chain).images
    highest = log_likelihood(torch.tensor([[1.2, 0.6]], dtype=torch.float64))  # where A x = y: the largest r
    r = (log_likelihood(images) - highest).exp()
    accepted = torch.rand(count, generator=torch.Generator().manual_seed(8), dtype=torch.float64) < r
    by_rejection = float(accepted.double().mean().log() + highest)
    by_weights = float(torch.logsumexp(-on_policy, 0) - math.log(len(on_policy)))
    assert by_rejection == pytest.approx(PRIOR.observed(MATRIX, Y, NOISE)[1], abs=0.03)
    assert by_weights == pytest.approx(by_rejection, abs=0.05)
    kept = images[accepted].reshape(-1, 2)
    assert kept.mean(dim=0).tolist() == pytest.approx([1.0, 0.5], abs=0.03)


def test_renoising_ends_where_it_was_told_to():
    chain, last = optimal(6), torch.zeros(50_000, 1, 1, 1, dtype=torch.float64)
    states = renoised(last, chain, drawn(9, last.shape))
    assert len(states) == 7 and states[-1] is last
    for state, sigma in zip(states[:-1], chain.sigmas, strict=False):
        spread = math.sqrt(sigma**2 - chain.sigmas[-1] ** 2)
        assert float(state.std()) == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ancestral_chain((2.0, 1.0), "opt"), "error at 1 levels"),
        (lambda: ancestral_chain((1.0, 2.0), "small"), "strictly descending"),
        (lambda: ancestral_chain((1.0,), "small"), "at least one"),
        (lambda: Chain((2.0, 1.0), (0.5,), (0.0,)), "above 0"),
    ],
)
def test_impossible_chains_are_refused(build, said: str):
    with pytest.raises(ValueError, match=said):
        build()
