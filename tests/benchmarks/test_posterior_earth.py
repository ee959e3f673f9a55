"""The measurements, the chain with two variances, the training and the figures of benchmarks/posterior_earth.py."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from benchmarks.edit_coverage import ANSWERS
from benchmarks.posterior_earth_judging import Asked, best_of, expected, guided_answers, judged, weighted
from benchmarks.posterior_earth_task import Measured, Measurement, Prior, Told, errors_of, measurements
from benchmarks.posterior_earth_training import Batch, Budget, balance, denoising
from fewstep.ancestral import step_mean
from fewstep.precond import Denoiser
from fewstep.unet_config import UNetConfig
from tests.trainer.tiny import draws, lively, normals

SHAPE = (1, 4, 4)
TINY = UNetConfig(resolution=4, channels=1, classes=3, width=8, mult=(1,), blocks=1)
KINDS = list(measurements(8).values())
HALF = Measurement("half", 2, torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]), 0.3)  # means of squares on the left


@pytest.fixture(scope="module")
def prior() -> Prior:
    network = lively(TINY).requires_grad_(False)
    return Prior.of(Denoiser(network, 0.5, 3), 1, 4, 0.5 * normals(8, *SHAPE, seed=1))


def told(prior: Prior) -> Told:
    return Told(prior, HALF, errors_of(HALF, prior.clean, prior.chain, 0.5 * normals(8, *SHAPE, seed=2)), SHAPE, 3)


@pytest.mark.parametrize("measurement", [*KINDS, HALF], ids=lambda each: each.name)
def test_measured_parts_are_projections(measurement: Measurement):
    images = normals(2, 3, 8 if measurement is not HALF else 4, 8 if measurement is not HALF else 4, seed=4)
    y = measurement.of(images)
    part = measurement.part(images)
    assert torch.allclose(measurement.of(part), y, atol=1e-6) and torch.allclose(
        measurement.part(part), part, atol=1e-6
    )
    assert float((part * (images - part)).sum()) == pytest.approx(0, abs=1e-4)
    assert float(y.square().sum()) == pytest.approx(measurement.unit * float(part.square().sum()), rel=1e-4)
    assert measurement.elements(3) == torch.count_nonzero(y[0])
    assert float(measurement.log_reward(images, y).abs().max()) == 0


def test_a_step_has_the_log_ratio_of_its_two_gaussians(prior: Prior):
    posterior = told(prior)
    with torch.no_grad():
        posterior.narrowed.copy_(torch.tensor([[-3.0, 0.5]]).repeat(prior.chain.steps, 1))
    x, following, before, after = (normals(5, *SHAPE, seed=seed) for seed in range(5, 9))
    found = Measured.of(posterior, torch.zeros(1, 1, 2, 2)).ratio(1, x, following, before, after)
    projection = HALF.part(torch.eye(16).view(16, *SHAPE)).flatten(1)
    factors = posterior.log_variance[1].exp()
    shared = factors[0] * projection + factors[1] * (torch.eye(16) - projection)
    covariances = torch.eye(16), shared
    densities = [
        MultivariateNormal(step_mean(prior.chain, 1, x, clean).flatten(1), prior.chain.variances[1] * each).log_prob(
            following.flatten(1)
        )
        for clean, each in zip((before, after), covariances, strict=True)
    ]
    assert torch.allclose(found, densities[1] - densities[0], rtol=1e-4, atol=1e-4)


def test_own_steps_have_both_variances(prior: Prior):
    posterior = told(prior)
    problem, x = Measured.of(posterior, torch.zeros(1, 1, 2, 2)), torch.zeros(4000, *SHAPE)
    with torch.no_grad():
        posterior.narrowed.copy_(torch.tensor([[-3.0, 2.0]]).repeat(prior.chain.steps, 1))
        moved = problem.own_step(0, x, x, draws(3), 1.0)
    inside = HALF.part(moved)
    squares = torch.stack([inside.square().sum(), (moved - inside).square().sum()]) / 4000 / torch.tensor([2.0, 14.0])
    assert torch.allclose(squares, prior.chain.variances[0] * posterior.log_variance[0].exp(), rtol=0.08)


@pytest.mark.parametrize("method", ["denoising", "balance", "policy gradient"])
def test_training_changes_what_it_should(prior: Prior, method: str):
    posterior, budget = told(prior), Budget(100.0, 3)
    before = {name: value.detach().clone() for name, value in posterior.named_parameters()}
    if method == "denoising":
        updates = denoising(posterior, 0.5 * normals(8, *SHAPE, seed=9), budget, 1e-3, 4, draws(4))
    else:
        states = prior.states(torch.empty(4, *SHAPE), draws(5))
        updates = balance(posterior, states, budget, 1e-3, Batch(2, 2, method == "balance", 2), draws(6))
    changed = {name for name, value in posterior.named_parameters() if not torch.equal(value, before[name])}
    assert updates == 3 and all(bool(value.isfinite().all()) for value in posterior.parameters())
    assert {"moved", "narrowed"} <= changed and ("pulls" in changed) == (method == "denoising")
    assert any(name.startswith("adapter.up") for name in changed)


def test_denoising_lowers_its_loss(prior: Prior):
    """With one image that never changes, the measurement says nothing new and the image is learned."""
    posterior, image = told(prior), (0.5 * normals(1, *SHAPE, seed=10)).repeat(8, 1, 1, 1)
    loss = lambda: _loss(posterior, image)  # noqa: E731
    before = loss()
    denoising(posterior, image, Budget(1000.0, 25), 1e-2, 8, draws(7))
    assert loss() < 0.8 * before


def _loss(posterior: Told, images: Tensor) -> float:
    y = HALF.drawn(images, draws(8))
    errors = errors_of(HALF, lambda x, sigma: posterior(x, sigma, y), posterior.prior.chain, images)
    return sum(inside + beside for inside, beside in errors)


def test_exact_answers_have_the_figures_of_the_exact_posterior():
    measurement = Measurement("x2", 2, torch.ones(1, 1, 8, 8), 0.5)
    truth, answers = 0.3 * normals(40, 3, 16, 16, seed=11), 0.3 * normals(40 * ANSWERS, 3, 16, 16, seed=12)
    y = measurement.of(truth) + 100  # unknown to both: their law is the same
    found = judged(Asked(measurement, truth, y), answers)
    exact = expected(measurement, 3)
    assert found["coverage"] == pytest.approx(exact["coverage"], abs=0.01)
    assert found["features"] == pytest.approx(exact["features"], abs=0.07)  # they go together
    assert found["off"] == pytest.approx(found["apart"], rel=0.02) == pytest.approx(0.3 * 2**0.5 * 127.5, rel=0.02)
    assert exact["log_reward"] == -3 * 64 / 2
    narrow = judged(Asked(measurement, truth, y), 0.3 * answers)
    assert (
        narrow["coverage"] < 0.6
        and narrow["features"] < 0.6
        and narrow["crps"] > found["crps"]
        and narrow["apart"] < narrow["off"]
    )


def test_the_prior_s_images_are_chosen_by_r(prior: Prior):
    images = 0.5 * normals(200, *SHAPE, seed=13)
    asked = Asked(HALF, images[:3], HALF.drawn(images[:3], draws(9)))
    chosen, (again, facts) = best_of(asked, images, 16, draws(10)), weighted(asked, images, draws(11))
    reward = lambda these: float(HALF.log_reward(these, asked.repeated()).mean())  # noqa: E731
    assert reward(chosen) > reward(best_of(asked, images, 1, draws(12))) + 1
    assert reward(again) == pytest.approx(facts["log_reward"], abs=0.5) and 0 < facts["ess"] < 1
    assert facts["log_z"] == pytest.approx(
        float(torch.stack([HALF.log_reward(images, y[None]).exp().mean().log() for y in asked.y]).mean()), abs=1e-4
    )
    errors = errors_of(HALF, prior.clean, prior.chain, images[:8])
    guided = guided_answers(prior, asked, errors, 0.5, draws(13), ANSWERS)
    free = guided_answers(prior, asked, errors, 1e-9, draws(13), ANSWERS)
    assert math.isfinite(reward(guided)) and reward(guided) > reward(free)
