"""The coarse part of a target is the teacher's; its details stay."""

import math
from dataclasses import replace

import pytest
import torch

from tests.trainer.tiny import draws, lively, normals
from trainer.levels.renoise import Drawn
from trainer.methods.base import Fed
from trainer.methods.coarse import coarse_part, highest_level
from trainer.methods.dpdm import Student
from trainer.methods.self_distillation import Progressive
from trainer.run.compute import Compute
from trainer.settings import AdamConfig, ProgressiveConfig, StudentConfig

LABELS = torch.arange(8) % 10
CONFIG = ProgressiveConfig(
    lists=((20.0,), (20.0, 0.1), (20.0, 0.2, 0.04)), further_for=1, further=(0.06,), coarse=0.05,
    adam=AdamConfig(1e-3, (0.9, 0.99), warmup=0.0, final=0.0),
)  # fmt: skip


@pytest.mark.parametrize("level", [0.3, 0.7])
def test_noise_of_the_level_moves_the_coarse_part_by_what_was_asked(level):
    """In the middle of an image that is wide beside the window, so that the closed form of a plane holds."""
    sigma = torch.full((64,), level)
    moved = coarse_part(level * normals(64, 1, 64, 64, seed=1), sigma, 0.05)
    assert moved[:, :, 20:-20, 20:-20].std().item() == pytest.approx(0.05, rel=0.06)


def test_the_window_is_a_gaussian_and_the_edges_are_mirrors():
    impulse = torch.zeros(1, 1, 33, 33)
    impulse[0, 0, 16, 16] = 1
    scale = 0.35 / (2 * math.sqrt(math.pi) * 0.05)
    away = torch.arange(33) - 16.0
    one = torch.exp(-0.5 * (away / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    found = coarse_part(impulse, torch.tensor([0.35]), 0.05)[0, 0]
    torch.testing.assert_close(found, one[:, None] * one, atol=1e-5, rtol=0)
    flat = torch.full((2, 3, 8, 6), 0.7)
    torch.testing.assert_close(coarse_part(flat, torch.tensor([0.01, 0.2]), 0.05), flat)


def test_each_row_has_its_level_and_noise_above_the_images_mean_hides_everything():
    images, levels = normals(3, 1, 8, 8, seed=1), torch.tensor([0.04, 0.39, 0.41])
    together = coarse_part(images, levels, 0.05)
    for row in range(3):
        alone = coarse_part(images[row : row + 1], levels[row : row + 1], 0.05)
        torch.testing.assert_close(together[row : row + 1], alone)
    assert not together[2].any() and together[1].any()
    assert highest_level(8, 0.05) == pytest.approx(0.4)


def test_details_stay():
    """A ramp that is twice as steep, with a checkerboard on it, becomes the ramp with the checkerboard."""
    ramp = torch.linspace(-0.5, 0.5, 32).expand(1, 1, 32, 32)
    checks = 0.2 * (1 - 2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2))
    output = 2 * ramp + 0.3 + checks
    corrected = output + coarse_part(ramp - output, torch.tensor([0.01]), 0.05)
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(corrected[inside], (ramp + checks)[inside], atol=0.01, rtol=0)


def test_the_gradient_of_a_distillation_vanishes_at_the_teachers_coarse_part_and_at_the_top_level():
    teacher = lively(std=0.1)
    method = Student(teacher, 0.5, StudentConfig(sigma_max=20.0, coarse=0.05), Compute())
    images, levels = 0.4 + 0.1 * normals(8, 1, 8, 8), torch.tensor([20.0, 0.04] * 4)
    x = images + levels[:, None, None, None] * normals(8, 1, 8, 8, seed=3)
    fed = Fed(x, Drawn(levels, 0.5 * levels, (levels < 20).long()))
    with torch.no_grad():
        taught = method.teacher(x, levels, LABELS)
    assert method.coarse_gradient(taught, images, LABELS, fed).abs().max() == 0
    brighter = method.coarse_gradient(taught + 0.1, images, LABELS, fed)
    error = (taught - images).abs().mean(dim=(1, 2, 3))
    assert not brighter[::2].any()
    torch.testing.assert_close(brighter[1::2], (0.1 / error[1::2])[:, None, None, None].expand(4, 1, 8, 8))


def test_a_distillation_descends_along_it():
    """From a student that is its teacher, where the divergence starts at zero, with all brightness raised."""
    teacher, raised = lively(std=0.1), lively(std=0.1)
    with torch.no_grad():
        list(raised.parameters())[-1].add_(0.05)
    images, level = 0.4 + 0.1 * normals(8, 1, 8, 8), torch.full((8,), 0.1)
    x, gaps = images + 0.1 * normals(8, 1, 8, 8, seed=3), {}
    for coarse in (0.0, 0.05):
        config = StudentConfig(coarse=coarse, adam=replace(CONFIG.adam, lr=3e-3), floor=0.02)
        method, rng = Student(teacher, 0.5, config, Compute(), start=raised), draws(1)
        for step in range(40):
            method.update(images, LABELS, step / 40, rng)
        with torch.no_grad():
            gap = method.student(x, level, LABELS) - method.teacher(x, level, LABELS)
        gaps[coarse] = coarse_part(gap, level, 0.05).abs().mean().item()
    assert gaps[0.05] < 0.75 * gaps[0.0]


def of_contrast(gain: float) -> Progressive:
    """A method whose frozen student has `gain` times the contrast of the teacher in every output."""
    method = Progressive(lively(std=0.1), 0.5, CONFIG, Compute(), teacher=lively(std=0.1))
    taught = method.teacher
    assert taught is not None

    def raised(x, sigma, labels=None):
        return gain * taught(x, sigma, labels)

    method.start = method.kept = raised  # pyright: ignore[reportAttributeAccessIssue]
    return method


def test_targets_of_low_levels_have_the_teachers_brightness_and_others_their_own():
    method = of_contrast(1.5)
    assert method.teacher is not None
    images = 0.4 + 0.1 * normals(8, 1, 8, 8)
    for level, gain in ((0.04, 1.0), (0.2, 1.0), (0.5, 1.5)):
        x = images + level * normals(8, 1, 8, 8, seed=3)
        target = method.corrected(method.kept, x, level, LABELS)
        taught = method.teacher(x, torch.full((8,), level), LABELS)
        assert (target.mean() / taught.mean()).item() == pytest.approx(gain, abs=0.01)


def test_further_calls_are_corrected_too():
    method = of_contrast(1.5)
    assert method.teacher is not None
    x, rng = 20 * normals(8, 1, 8, 8, seed=3), draws(5)
    target, _ = method.target(x, 20.0, torch.zeros(8, 1, 8, 8), LABELS, draws(5))
    again = method.start(x, torch.full((8,), 20.0), LABELS) + 0.06 * rng.normal_like(x)
    taught = method.teacher(again, torch.full((8,), 0.06), LABELS)
    torch.testing.assert_close(target.mean(dim=(1, 2, 3)), taught.mean(dim=(1, 2, 3)), atol=1e-4, rtol=0)


def test_training_brings_a_students_brightness_to_the_teachers():
    teacher, start = lively(std=0.1), lively(std=0.1)
    with torch.no_grad():
        list(start.parameters())[-1].add_(0.05)  # the bias of the last layer
    config = replace(CONFIG, top=0.0, adam=replace(CONFIG.adam, lr=3e-3))
    method = Progressive(start, 0.5, config, Compute(), teacher=teacher)
    images, level = 0.4 + 0.1 * normals(8, 1, 8, 8), torch.full((8,), 0.1)
    x = images + 0.1 * normals(8, 1, 8, 8, seed=3)

    @torch.no_grad()
    def apart() -> float:
        assert method.teacher is not None
        gap = method.student(x, level, LABELS) - method.teacher(x, level, LABELS)
        return coarse_part(gap, level, 0.05).abs().mean().item()

    before, rng = apart(), draws(1)
    for step in range(60):
        method.update(images, LABELS, step / 60, rng)
    assert apart() < 0.7 * before and before > 1e-3
