"""The adversarial term: which way it pushes, what it learns, what it leaves alone."""

import math
from dataclasses import replace

import pytest
import torch

from tests.trainer.tiny import TINY, copied, draws, equal, lively, normals
from trainer.critics.on_teacher import Adversary
from trainer.methods.dmd2 import DMD2
from trainer.run.compute import Compute
from trainer.settings import AdamConfig, AdversaryConfig, NoiseDistribution, StudentConfig

CONFIG = AdversaryConfig(weight=1.0, adam=AdamConfig(2e-3, (0.0, 0.999), warmup=0.0))
LABELS = torch.arange(32) % 10


def build(**changes) -> Adversary:
    torch.manual_seed(0)  # of the head
    return Adversary(lively(std=0.1), 0.5, replace(CONFIG, **changes), Compute())


def bright(count: int = 32, seed: int = 1) -> torch.Tensor:
    return 0.5 + 0.2 * normals(count, 1, 8, 8, seed=seed)


def logits(adversary: Adversary, images: torch.Tensor) -> torch.Tensor:
    """[images], always under the same noise; with gradients where the images ask for them."""
    return adversary.heads(adversary._features_of_noised(images, LABELS, draws(9)))


def trained() -> Adversary:
    """A head that calls bright images real and dark ones not."""
    adversary = build()
    rng = draws(2)
    for step in range(40):
        adversary.fit(bright(seed=10 + step), -bright(seed=60 + step), LABELS, 0.5, rng)
    return adversary


def test_the_head_learns_to_tell_bright_from_dark():
    adversary = build()
    first = adversary.fit(bright(), -bright(), LABELS, 0.5, draws(3))
    assert first["head_loss"].item() == pytest.approx(2 * 0.6931, abs=0.3)  # it knows nothing yet
    adversary = trained()
    # Not all: some are noised beyond recognition.
    assert (logits(adversary, bright(seed=4)) > 0).float().mean() > 0.8
    assert (logits(adversary, -bright(seed=5)) < 0).float().mean() > 0.8
    last = adversary.fit(bright(seed=6), -bright(seed=7), LABELS, 0.5, draws(8))
    assert last["head_right"] > 0.8 and last["head_loss"] < 0.9


def test_descending_makes_outputs_look_more_real():
    adversary, outputs = trained(), -bright(seed=4)
    gradient = adversary.gradient(outputs, LABELS, draws(9))
    step = 0.02 * gradient / gradient.abs().mean()
    assert (logits(adversary, outputs - step) > logits(adversary, outputs)).float().mean() > 0.9
    assert (logits(adversary, outputs + step) < logits(adversary, outputs)).float().mean() > 0.9


def test_the_gradient_is_that_of_the_non_saturating_loss_against_a_mean_over_pixels():
    adversary, outputs = trained(), -bright(seed=4)
    followed = outputs.clone().requires_grad_(True)
    loss = -torch.log(torch.sigmoid(logits(adversary, followed)))
    expected = torch.autograd.grad(loss.sum(), followed)[0] * 64  # pixels
    torch.testing.assert_close(adversary.gradient(outputs, LABELS, draws(9)), expected)


def test_the_gradient_scales_with_the_weight():
    one = build(weight=1.0).gradient(bright(), LABELS, draws(9))
    small = build(weight=3e-3).gradient(bright(), LABELS, draws(9))
    assert one.abs().max() > 0
    torch.testing.assert_close(small, 3e-3 * one)


def test_the_head_learns_from_fitting_alone():
    adversary = build()
    head = copied(adversary.heads)
    adversary.gradient(bright(), LABELS, draws(9))
    assert equal(adversary.heads, head) and all(p.grad is None for p in adversary.heads.parameters())
    adversary.fit(bright(), -bright(), LABELS, 0.5, draws(9))
    assert not equal(adversary.heads, head)


def test_neither_teacher_nor_student_is_touched_by_the_head():
    teacher = lively()
    student = DMD2(teacher, 0.5, StudentConfig(adversary=CONFIG, auxiliary_updates=1), Compute())
    before = {name: copied(net) for name, net in student.networks.items()} | {"teacher": copied(teacher)}
    student.adversary.fit(bright(), -bright(), LABELS, 0.5, draws(3))
    student.adversary.gradient(bright(), LABELS, draws(3))
    assert equal(teacher, before["teacher"]) and all(p.grad is None for p in teacher.parameters())
    for name in ("student", "auxiliary"):
        assert equal(student.networks[name], before[name])
        assert all(p.grad is None for p in student.networks[name].parameters())
    assert not equal(student.networks["heads"], before["heads"])


def test_both_sides_are_noised_and_labelled():
    def moved(sigma: float) -> float:
        """How far other noise of this level moves the logits."""
        adversary = build(noise=NoiseDistribution(math.log(sigma), 0.0))
        with torch.no_grad():
            one, other = (adversary.heads(adversary._features_of_noised(bright(), LABELS, draws(n))) for n in (1, 2))
        return (one - other).abs().mean().item()

    assert moved(0.5) > 20 * moved(1e-3) > 0
    adversary = build()
    others = adversary.heads(adversary._features_of_noised(bright(), (LABELS + 1) % 10, draws(9)))
    assert not torch.allclose(others, logits(adversary, bright()))


def test_the_innermost_features_are_read():
    adversary = Adversary(lively(replace(TINY, mult=(1, 2)), std=0.1), 0.5, CONFIG, Compute())
    assert adversary._features_of_noised(bright(), LABELS, draws(9)).shape == (32, 32, 4, 4)
    assert logits(adversary, bright()).shape == (32,)


def test_the_student_feels_the_head():
    def after(weight: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        config = StudentConfig(adversary=replace(CONFIG, weight=weight), auxiliary_updates=1)
        student = DMD2(lively(), 0.5, config, Compute())
        student.update(bright(), LABELS, 0.5, draws(4))
        return copied(student.networks["student"])

    felt, without = after(1.0), after(0.0)
    assert any(not torch.equal(value, without[name]) for name, value in felt.items())
