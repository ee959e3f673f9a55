"""Posteriors in few steps: every route on a Gaussian, whose posterior is known in closed form."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fewstep.analytic import Gaussian
from fewstep.ancestral import Chain, ancestral_chain, sample_ancestral, sample_weighted, student_chain
from fewstep.precond import Denoiser
from fewstep.schedule import karras_sigmas
from tests.trainer.tiny import copied, draws, equal, lively, normals
from trainer.levels.conditioning import level_features
from trainer.methods.divergence import kl_gradient
from trainer.methods.dpdm import Parts, Student
from trainer.methods.posterior_student import (
    FewStepPrior,
    adapter_parts,
    imitate,
    interpolated,
    pool_batches,
    tilted_teacher,
)
from trainer.methods.rtb import Problem, TrajectoryBalance
from trainer.methods.tilted import posterior_pool, tilted_regression
from trainer.settings import AdamConfig, PosteriorConfig, StudentConfig

PRIOR = Gaussian(0.0, 1.0)
OBSERVED, NOISE = 1.0, 0.7
PRECISION = 1 + 1 / NOISE**2
POSTERIOR = Gaussian(OBSERVED / NOISE**2 / PRECISION, PRECISION**-0.5)
LOG_Z = -math.log(1 + 1 / NOISE**2) - OBSERVED**2 / (1 + NOISE**2)  # of two elements; r is 1 at most
LEVELS = (2.5, 1.0, 0.3)
SHAPE = (128, 1, 1, 2)
Y = torch.zeros(SHAPE[0], dtype=torch.long)


def log_reward(images: Tensor, y: Tensor | None = None) -> Tensor:
    return -((images.flatten(1) - OBSERVED) ** 2).sum(dim=1) / (2 * NOISE**2)


def prior(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    return PRIOR.teacher(x, sigma)


class Affine(nn.Module):
    """An affine map of x that depends on the level smoothly, beside the denoiser `base`: 0 at first."""

    sigma_data = 1.0
    conditions = ()

    def __init__(self, base, steps: int = 0) -> None:
        super().__init__()
        self.base = base
        self.factors = nn.Linear(16, 2)
        nn.init.zeros_(self.factors.weight)
        nn.init.zeros_(self.factors.bias)
        self.log_variance = nn.Parameter(torch.zeros(steps))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        slope, shift = self.factors(level_features(sigma)).unbind(dim=1)
        scaled = x / (1 + sigma[:, None, None, None] ** 2).sqrt()
        return self.base(x, sigma) + slope[:, None, None, None] * scaled + shift[:, None, None, None]


def distilled(teacher, start, pool, seed: int = 0) -> Affine:
    """A student of three calls by DPDM from the perfect student of the prior, averaged over the second half."""
    student, auxiliary = Affine(start), Affine(prior)
    parts = Parts(teacher, student, auxiliary, {"student": student, "auxiliary": auxiliary})  # pyright: ignore
    rate = AdamConfig(0.002, (0.5, 0.9), decay_from=0.5, final=0.05)
    config = StudentConfig(
        steps=(3,), lists=(LEVELS,), auxiliary_sees_level=False, adam=rate, auxiliary_adam=replace(rate, lr=0.02),
    )  # fmt: skip
    method, rng = Student.of_parts(parts, config, "cpu"), draws(seed)
    batches, updates, later = pool_batches(pool, SHAPE[0], seed, False, 0), 300, []
    for update in range(updates):
        method.update(*next(batches), update / updates, rng)
        if update >= updates / 2:
            later.append(copied(student.factors))
    average = {name: torch.stack([each[name] for each in later]).mean(dim=0) for name in later[0]}
    student.factors.load_state_dict(average)
    return student.requires_grad_(False)


def few_steps(student, count: int = 3000) -> Tensor:
    rng = draws(9)
    like, chain = torch.empty(count, *SHAPE[1:]), student_chain(LEVELS)
    return sample_ancestral(student, lambda _: rng.normal_like(like), chain).images


def assert_posterior(images: Tensor, mean: float = 0.1, std: float = 0.15) -> None:
    assert float(images.mean()) == pytest.approx(POSTERIOR.mean, abs=mean)  # the prior's is 0, with a deviation of 1
    assert float(images.std()) == pytest.approx(POSTERIOR.std, rel=std)


def balanced(chain: Chain, base, updates: int = 150, **config) -> tuple[Problem, Affine]:
    """A posterior of a chain by trajectory balance."""
    network = Affine(base, chain.steps)
    problem = Problem(lambda x, sigma, _: base(x, sigma), network, chain, log_reward, network.log_variance)
    adam = replace(PosteriorConfig().adam, lr=0.03)
    method, rng = (
        TrajectoryBalance(problem, network, PosteriorConfig(adam=adam, **config), torch.empty(SHAPE[1:])),
        draws(3),
    )
    for update in range(updates):
        method.update(torch.empty(SHAPE), Y, update / updates, rng)
    network.requires_grad_(False)
    return problem, network


def test_a_posteriors_chain_becomes_a_teacher_of_all_levels_and_a_student_of_three_calls():
    sigmas = karras_sigmas(12, 0.05, 10.0)
    chain = ancestral_chain(sigmas, "opt", [PRIOR.error(sigma) for sigma in sigmas])
    problem, network = balanced(chain, prior, 100)
    rng = draws(4)
    pool = posterior_pool(problem, torch.empty(SHAPE), Y, 4096, rng)
    assert float(pool[1].logsumexp(0)) - math.log(4096) == pytest.approx(LOG_Z, abs=0.05)
    assert_posterior(pool[0], mean=0.06, std=0.12)
    teacher = Affine(network).requires_grad_(True)
    uniform = (pool[0], torch.zeros_like(pool[1]), pool[2])
    adam = AdamConfig(0.02, (0.9, 0.99), decay_from=0.3, final=0.02)
    tilted_regression(teacher, teacher, uniform, (0.05, 10.0), 300, rng, batch=SHAPE[0], adam=adam)  # pyright: ignore[reportArgumentType]
    teacher.requires_grad_(False)
    law = Gaussian(float(pool[0].mean()), float(pool[0].std()))
    x = normals(64, *SHAPE[1:], seed=1)
    for sigma in (0.1, 0.37, 1.3, 5.0):  # between the chain's levels, too
        level = torch.full((64,), sigma)
        exact = law.teacher(x * (1 + sigma), level)
        assert float((teacher(x * (1 + sigma), level) - exact).square().mean().sqrt()) < 0.06
    assert_posterior(few_steps(distilled(teacher, PRIOR.student, pool)))


def test_one_stage_with_a_tilted_teacher_is_at_rest_at_the_posterior():
    """The tilted teacher is the posterior's, so DPDM's gradient has no mean there, and lifts the prior's outputs."""
    sigmas = karras_sigmas(20, 0.02, 80.0)
    error = interpolated(sigmas, [PRIOR.error(sigma) for sigma in sigmas])
    level = torch.tensor([0.03, 0.5, 7.0])
    torch.testing.assert_close(error(level), level**2 / (1 + level**2), rtol=0.05, atol=0)
    teacher = tilted_teacher(prior, log_reward, error, draws(5), samples=256)
    for sigma in (0.1, 0.5, 2.0):
        levels = torch.full((2000,), sigma)
        for law, least, most in ((POSTERIOR, -0.04, 0.04), (PRIOR, -4.0, -0.1)):
            outputs = law.mean + law.std * normals(2000, *SHAPE[1:], seed=1)
            noisy = outputs + sigma * normals(2000, *SHAPE[1:], seed=2)
            real = lambda z, at=levels: teacher(z, at, None)  # noqa: E731
            fake = partial(law.teacher, sigma=levels)
            assert least < float(kl_gradient(outputs, noisy, real, fake, "l1").mean()) < most


def test_a_students_own_chain_is_tilted_and_becomes_one_network():
    """The first noise keeps its law, and decides a share of the image's variance: the rest is tilted, given it."""
    problem, network = balanced(student_chain(LEVELS), PRIOR.student, learn_variance=False)
    rng, like = draws(6), torch.empty(SHAPE)
    one = Affine(network).requires_grad_(True)
    one.base.requires_grad_(False)
    adam = AdamConfig(0.02, (0.9, 0.99), decay_from=0.3, final=0.02)
    imitate(problem, one, one, like, Y, 200, adam, rng)
    x = normals(64, *SHAPE[1:], seed=1)
    one.requires_grad_(False)
    for sigma, target in ((1.0, network), (0.3, PRIOR.student)):  # the last call is the prior's
        level = torch.full((64,), sigma)
        error = (one(x, level) - target(x, level)).square().mean().sqrt()
        assert float(error) < 0.05 < float((network(x, level) - PRIOR.student(x, level)).square().mean().sqrt())
    kept = 1 / math.prod(1 + sigma**2 for sigma in LEVELS[1:])  # 0.46: every level below the first dilutes it
    mean = OBSERVED * (1 - kept) / (1 - kept + NOISE**2)
    assert float(few_steps(one).mean()) == pytest.approx(mean, abs=0.05)


def test_weights_say_what_is_wrong_with_every_image():
    """Of a posterior that is only half way, weighted images have the exact mean, and the weights' mean is Z."""
    sigmas = karras_sigmas(30, 0.05, 80.0)
    chain = ancestral_chain(sigmas, "opt", [PRIOR.error(sigma) for sigma in sigmas])
    rng, like = draws(8), torch.empty(8000, 1, 1, 2)
    half = lambda x, sigma: (PRIOR.teacher(x, sigma) + POSTERIOR.teacher(x, sigma)) / 2  # noqa: E731
    made = sample_weighted(prior, half, lambda _: rng.normal_like(like), chain, log_reward)
    assert made.nfe == 2 * chain.steps + 1
    assert float(made.log_weight.logsumexp(0)) - math.log(8000) == pytest.approx(LOG_Z, abs=0.05)
    weights = made.log_weight.softmax(0)
    weighted = (weights[:, None] * made.images.flatten(1)).sum(0).mean()
    assert float(weighted) == pytest.approx(POSTERIOR.mean, abs=0.05)
    assert abs(float(made.images.mean()) - POSTERIOR.mean) > 0.1


def test_adapters_beside_frozen_networks_start_as_the_teacher_and_are_all_that_is_trained():
    teacher, rng = lively(), draws(1)
    before = copied(teacher)
    parts = adapter_parts(teacher, 2, 0.5, 10, torch.Generator().manual_seed(0))
    x, sigma, labels = normals(8, 1, 8, 8), torch.full((8,), 0.7), torch.arange(8) % 10
    torch.testing.assert_close(parts.student(x, sigma, labels), parts.teacher(x, sigma, labels))
    method = Student.of_parts(parts, StudentConfig(adam=AdamConfig(0.02), auxiliary_adam=AdamConfig(0.02)), "cpu")
    scalars = [method.update(x, labels, 0.5, rng) for _ in range(2)]
    assert all(bool(value.isfinite()) for each in scalars for value in each.values())
    assert equal(teacher, before)
    assert not torch.equal(parts.student(x, sigma, labels), parts.teacher(x, sigma, labels))


def test_beside_a_student_of_the_prior_the_first_gradient_is_the_tilt_and_beside_the_teacher_none():
    """The auxiliary begins as the denoiser of the student's images. One that began as the posterior's had no gradient
    at first, and then one of what it had not learned yet: a student of Fashion-MNIST moved away from the posterior."""
    teacher, network, student = lively(), lively(seed=1), lively(seed=2)
    x, sigma, labels = normals(8, 1, 8, 8), torch.full((8,), 0.7), torch.arange(8) % 10
    gaps = []
    for begin in (FewStepPrior(student, network), None):
        generator = torch.Generator().manual_seed(0)
        parts = adapter_parts(teacher, 2, 0.5, 10, generator, begin, sees_level=False)
        told = [Denoiser(net, 0.5, 10)(x, sigma, labels) for net in (begin or (teacher, teacher))]
        torch.testing.assert_close([parts.student(x, sigma, labels), parts.auxiliary(x, sigma, labels)], told)
        config = StudentConfig(auxiliary_sees_level=False)
        gaps.append(float(Student.of_parts(parts, config, "cpu").update(x, labels, 0.5, draws(1))["gap"]))
    assert gaps[0] > 0.01 and gaps[1] == 0.0


def test_batches_of_a_pool_go_on_where_they_stopped_and_follow_the_weights():
    images, y = torch.arange(64.0).view(64, 1, 1, 1), torch.arange(64) % 2
    pool = (images, torch.where(torch.arange(64) < 32, 0.0, -1e3), y)
    whole = [next_images for next_images, _ in zip(pool_batches(pool, 16, 3, True, 0), range(3), strict=False)]
    later, _ = next(pool_batches(pool, 16, 3, True, 32))
    assert torch.equal(whole[2][0], later)
    assert float(max(batch[0].max() for batch in whole)) < 32
    assert float(next(pool_batches(pool, 64, 3, False, 0))[0].max()) >= 32
