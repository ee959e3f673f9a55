"""The DPDM objective: its gradient on closed forms, and what a short distillation does to a real teacher."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from fewstep.analytic import Gaussian, as_network
from fewstep.network import UNet
from fewstep.noise_torch import noise_for
from fewstep.precond import Denoiser
from fewstep.samplers import sample_dpdm
from fewstep.schedule import student_levels
from fewstep.unet_config import UNetConfig
from trainer.data.format import ImageSet
from trainer.levels.renoise import Drawn
from trainer.methods.base import Fed
from trainer.methods.dpdm import Student
from trainer.run.compute import Compute
from trainer.run.draws import Draws
from trainer.run.ema import average_of, blend, power_decay
from trainer.settings import RULES, StudentConfig

TINY = UNetConfig(resolution=8, channels=1, classes=10, width=16, mult=(1,), blocks=1)


LOSSES = [("kl", "l1"), ("kl", "one"), ("sid", "l1"), ("sid", "one")]


def gradient_between(teacher: Gaussian, auxiliary: Gaussian, outputs: torch.Tensor, sigma: float, **config):
    """The gradient at `outputs` when both score networks are exact and outputs are noised to `sigma` (tied)."""
    student = Student(UNet(TINY), 0.5, StudentConfig(renoise="tied", **config), Compute())
    student.teacher = Denoiser(as_network(teacher.teacher, 0.5), 0.5)
    student.auxiliary = Denoiser(as_network(auxiliary.teacher, 0.5), 0.5)
    level = torch.full((len(outputs),), sigma)
    fed = Fed(outputs, Drawn(level, level / 2, torch.ones(len(outputs), dtype=torch.long)))
    return student.divergence_gradient(outputs, None, fed, draws(1))


def draws(seed: int) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("loss", "weight"), LOSSES)
def test_gradient_vanishes_when_student_and_data_agree(loss, weight):
    same = Gaussian(0.1, 0.5)
    outputs = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.1
    gradient = gradient_between(same, same, outputs, 0.7, loss=loss, weight=weight)
    # SiD's gradient vanishes only in the mean: each output still feels the noise it was given.
    assert gradient.abs().max() == 0 if loss == "kl" else abs(gradient.mean()) < 0.02 * gradient.abs().max() + 1e-6


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("loss", "weight"), LOSSES)
def test_descent_moves_the_students_mean_towards_the_data(loss, weight, sigma):
    outputs = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.4
    gradient = gradient_between(Gaussian(0.0, 0.5), Gaussian(0.4, 0.5), outputs, sigma, loss=loss, weight=weight)
    assert gradient.mean() > 0  # descending lowers a mean that is too high


@pytest.mark.parametrize("sigma", [0.1, 1.0])
@pytest.mark.parametrize(("loss", "weight"), LOSSES)
def test_descent_spreads_outputs_that_are_averages(loss, weight, sigma):
    # A conditional-mean denoiser's outputs are too narrow: the gradient must push them away from their mean.
    outputs = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    gradient = gradient_between(Gaussian(0.0, 0.5), Gaussian(0.0, 0.2), outputs, sigma, loss=loss, weight=weight)
    assert (gradient * outputs).mean() < 0


@pytest.fixture(scope="module")
def taught(small_teacher: UNet, thumbnails: ImageSet) -> tuple[UNet, torch.Tensor, torch.Tensor]:
    """A teacher, its images and their labels."""
    pixels = torch.from_numpy(thumbnails.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return small_teacher, pixels, torch.from_numpy(thumbnails.labels).long()


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| (Szekely & Rizzo 2013): zero for equal distributions. a, b [N, d]."""
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def samples(denoiser: Denoiser, levels: tuple[float, ...], count: int = 300) -> torch.Tensor:
    """Images of `count` fixed seeds, classes in turn, flattened."""
    labels = torch.arange(count) % 10
    with torch.no_grad():
        sampled = sample_dpdm(partial(denoiser, labels=labels), noise_for(range(count), (1, 8, 8)), levels)
    return sampled.images.flatten(1)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_and_changes_only_student_and_auxiliary(rule, taught):
    network, pixels, labels = taught
    before = {name: value.clone() for name, value in network.state_dict().items()}
    student = Student(network, 0.66, StudentConfig(renoise=rule), Compute())
    rng = draws(0)
    scalars = [student.update(pixels[:32], labels[:32], 0.1, rng) for _ in range(3)]
    assert all(torch.isfinite(value) for row in scalars for value in row.values())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for trained in student.networks.values():
        assert any(not torch.equal(value, before[name]) for name, value in trained.state_dict().items())


# From 2.5 down a student of this teacher gains or loses with the teacher's seed; from 80 down it gains with every one.
def test_short_distillation_brings_samples_closer_to_the_data(taught):
    network, pixels, labels = taught
    settings = StudentConfig(steps=(1, 2), sigma_max=80.0, auxiliary_sees_level=False)
    torch.manual_seed(0)
    steady = replace(settings.adam, decay_from=1.0)
    config = replace(settings, adam=steady, auxiliary_adam=replace(settings.auxiliary_adam, decay_from=1.0))
    student = Student(network, 0.66, config, Compute())
    average = average_of(student.networks["student"])
    served, data = Denoiser(average, 0.66, TINY.classes), pixels[::6].flatten(1)
    lists = [student_levels(steps, settings.sigma_min, 80.0) for steps in settings.steps]
    before = [energy_distance(samples(served, levels), data) for levels in lists]
    rng, order = draws(0), torch.Generator().manual_seed(1)  # as in the loop, the batches have an order of their own
    for i in range(100):
        index = torch.randint(len(pixels), (64,), generator=order)
        student.update(pixels[index], labels[index], 0.1, rng)
        blend(average, student.networks["student"], power_decay(0.15, 64, 64 * (i + 1)))
    after = [energy_distance(samples(served, levels), data) for levels in lists]
    print("energy distance to the data, teacher and student with the same sampler:", before, after)
    assert all(later < 0.85 * earlier for later, earlier in zip(after, before, strict=True))
