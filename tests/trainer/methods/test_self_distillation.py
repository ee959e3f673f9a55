"""--method progressive: a list's last call learns what further calls would have made of it, the rest stays."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from fewstep.precond import Denoiser, edm_scalings
from fewstep.samplers import sample_dpdm
from tests.trainer.tiny import TINY, copied, draws, equal, lively, normals
from trainer.methods import self_distillation
from trainer.methods.base import own_trajectory
from trainer.methods.self_distillation import Progressive, saturate_extremes
from trainer.run.compute import Compute
from trainer.run.draws import Draws
from trainer.settings import AdamConfig, ProgressiveConfig, further_levels

LABELS = torch.arange(8) % 10
IMAGES = 0.3 * normals(8, 1, 8, 8)
LISTS = ((2.5,), (2.5, 0.4), (2.5, 0.9, 0.06))
CONFIG = ProgressiveConfig(lists=LISTS, adam=AdamConfig(1e-3, (0.9, 0.99), warmup=0.0, final=0.0))


def method(**switches) -> Progressive:
    return Progressive(lively(std=0.1), 0.5, replace(CONFIG, **switches), Compute())


def test_further_calls_follow_the_last_level_of_a_list_and_only_from_clearly_above():
    further = further_levels([(2.5,), (2.5, 0.2), (2.5, 0.9, 0.12), (2.5, 0.9, 0.3, 0.06)], (0.1, 0.05))
    assert further == {2.5: (0.1, 0.05), 0.2: (0.1, 0.05), 0.12: (0.05,), 0.06: (), 0.9: (), 0.3: ()}


def test_only_short_lists_may_learn():
    """Where 0.2 of two calls learns, its neighbours 0.3 and 0.06 of four are pulled along."""
    lists = [(2.5,), (2.5, 0.2), (2.5, 0.9, 0.3, 0.06)]
    assert further_levels(lists, (0.1, 0.05), 1) == {2.5: (0.1, 0.05), 0.2: (), 0.9: (), 0.3: (), 0.06: ()}
    assert further_levels(lists, (0.1, 0.05), 2)[0.2] == (0.1, 0.05)
    of = method(further_for=1)
    assert of.further == {2.5: (0.1, 0.05), 0.4: (), 0.9: (), 0.06: ()}


@pytest.mark.parametrize("level", [2.5, 0.4])
def test_the_target_is_where_the_sampler_gets_with_further_calls(level):
    of, x = method(), normals(8, 1, 8, 8, seed=2)
    target, unit = of.target(level * x, level, IMAGES, LABELS, draws(3))
    rng = draws(3)
    noise = {0: x, 1: rng.normal_like(x), 2: rng.normal_like(x)}
    denoiser = partial(of.start, labels=LABELS)
    with torch.no_grad():
        longer = sample_dpdm(denoiser, noise.__getitem__, (level, 0.1, 0.05)).images
        shorter = sample_dpdm(denoiser, noise.__getitem__, (level,)).images
    torch.testing.assert_close(target, longer)
    torch.testing.assert_close(unit, (longer - shorter).abs().mean(dim=(1, 2, 3), keepdim=True))


def test_a_level_without_further_calls_is_its_own_target_in_units_of_its_error():
    of, x = method(anchor_weight=0.5), IMAGES + 0.9 * normals(8, 1, 8, 8, seed=2)
    target, unit = of.target(x, 0.9, IMAGES, LABELS, draws())
    with torch.no_grad():
        own = of.start(x, torch.full((8,), 0.9), LABELS)
    assert torch.equal(target, own)
    torch.testing.assert_close(unit, 2 * (own - IMAGES).abs().mean(dim=(1, 2, 3), keepdim=True))


def test_what_is_to_stay_is_another_students_and_what_learns_is_its_own():
    other = lively(seed=1, std=0.1)
    of = Progressive(lively(std=0.1), 0.5, replace(CONFIG, further_for=1), Compute(), other)
    anchor, x = Denoiser(other, 0.5, 10), normals(8, 1, 8, 8, seed=2)
    for level in (0.9, 0.4, 0.06):
        target, unit = of.target(IMAGES + level * x, level, IMAGES, LABELS, draws())
        with torch.no_grad():
            expected = anchor(IMAGES + level * x, torch.full((8,), level), LABELS)
        assert torch.equal(target, expected)
        torch.testing.assert_close(unit, (expected - IMAGES).abs().mean(dim=(1, 2, 3), keepdim=True))
    alone = method(further_for=1).target(2.5 * x, 2.5, IMAGES, LABELS, draws(3))
    for one, same in zip(of.target(2.5 * x, 2.5, IMAGES, LABELS, draws(3)), alone, strict=True):
        assert torch.equal(one, same)


def test_its_own_trajectory_is_what_the_sampler_walks():
    of = method()
    rng = draws(3)
    noise = {step: rng.normal_like(IMAGES) for step in range(2)}
    walked = sample_dpdm(partial(of.student, labels=LABELS), noise.__getitem__, (2.5, 0.9)).images
    torch.testing.assert_close(own_trajectory(of.student, (2.5, 0.9), IMAGES, LABELS, draws(3)), walked.detach())


@pytest.mark.parametrize(("simulate", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_levels_below_the_top_are_fed_the_students_own_trajectory_or_real_images(
    simulate: float, share: float, monkeypatch
):
    of, walked, own = method(simulate=simulate, top=0.0, lists=((2.5, 0.9, 0.06),)), IMAGES + 1, []
    monkeypatch.setattr(self_distillation, "own_trajectory", lambda _, levels, *rest: walked + len(levels))
    target = of.target

    def spy(x, level, clean, labels, rng):
        own.append(not torch.equal(clean, IMAGES))
        assert torch.equal(clean, walked + (2 if level == 0.06 else 1)) or not own[-1]
        assert float(((x - clean) / level).std()) == pytest.approx(1, abs=0.15)
        return target(x, level, clean, labels, rng)

    monkeypatch.setattr(of, "target", spy)
    rng = draws()
    for _ in range(60):
        of.update(IMAGES, LABELS, 0.5, rng)
    assert sum(own) / 60 == pytest.approx(share, abs=0.2 if 0 < share < 1 else 0)


def outputs(of: Progressive, level: float) -> torch.Tensor:
    """Of the student, for noise at the top and noised images below."""
    x = level * normals(64, 1, 8, 8, seed=6) + (0.3 * normals(64, 1, 8, 8, seed=5) if level < 2 else 0.0)
    with torch.no_grad():
        return of.student(x, torch.full((64,), level), torch.arange(64) % 10)


def trained(of: Progressive, updates: int) -> Progressive:
    rng, labels = draws(), torch.arange(32) % 10
    for step in range(updates):
        of.update(0.3 * normals(32, 1, 8, 8, seed=step), labels, step / updates, rng)
    return of


class Gains(nn.Module):
    """F(x) = x times a parabola in c_noise, so that a denoiser multiplies its input by a number for each level."""

    config = TINY

    def __init__(self) -> None:
        super().__init__()
        self.parabola = nn.Parameter(torch.tensor([-0.2, 0.4, -0.1]))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, onehot: torch.Tensor) -> torch.Tensor:
        powers = torch.stack([c_noise**0, c_noise, c_noise**2], dim=1)
        return (powers @ self.parabola)[:, None, None, None] * x


def gain(denoiser: Denoiser, level: float) -> float:
    with torch.no_grad():
        return float(denoiser(torch.ones(1, 1, 8, 8), torch.full((1,), level), None).mean())


def test_a_call_learns_the_mean_of_what_further_calls_make_and_other_levels_stay():
    """Noise that is added and multiplied has no mean: the gain at the top becomes the product of three, exactly."""
    config = replace(CONFIG, lists=((2.5,), (2.5, 0.9, 0.06)), adam=replace(CONFIG.adam, lr=0.005))
    of = Progressive(Gains(), 0.5, config, Compute())  # pyright: ignore[reportArgumentType]
    wanted = gain(of.start, 2.5) * gain(of.start, 0.1) * gain(of.start, 0.05)
    assert abs(wanted / gain(of.start, 2.5) - 1) > 0.15
    trained(of, 400)
    assert gain(of.student, 2.5) == pytest.approx(wanted, rel=0.05)
    for level in (0.9, 0.06):
        assert gain(of.student, level) == pytest.approx(gain(of.start, level), rel=0.05)


def test_what_is_nearly_black_or_white_is_saturated_and_the_rest_stays():
    images = torch.tensor([-1.3, -1.0, -0.99, -0.97, 0.0, 0.97, 0.985, 1.2])
    assert saturate_extremes(images, 0.02).tolist() == pytest.approx([-1, -1, -1, -0.97, 0, 0.97, 1, 1])


class Flat(nn.Module):
    """A denoiser of sigma_data 0.5 that makes an image of one gray of anything."""

    config = TINY

    def __init__(self, gray: float) -> None:
        super().__init__()
        self.gray = nn.Parameter(torch.tensor(gray))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, onehot: torch.Tensor) -> torch.Tensor:
        scalings = edm_scalings((4 * c_noise).exp()[:, None, None, None], 0.5)
        return (self.gray - scalings.c_skip * x / scalings.c_in) / scalings.c_out


@pytest.mark.parametrize(
    ("gray", "lowest", "highest"), [(-0.99, -1.2, -1.0), (-0.97, -0.971, -0.969), (0.985, 1.0, 1.2)]
)
def test_black_is_learnt_where_further_calls_leave_almost_black(gray: float, lowest: float, highest: float):
    """And what is already blacker than black is left alone: its pixels are right."""
    config = replace(CONFIG, lists=((2.5,),), saturate=0.02)
    of = Progressive(Flat(gray), 0.5, config, Compute())  # pyright: ignore[reportArgumentType]
    trained(of, 40)
    assert lowest <= of.network.get_parameter("gray").item() <= highest
    blacker = Progressive(Flat(-1.1), 0.5, config, Compute())  # pyright: ignore[reportArgumentType]
    assert trained(blacker, 5).network.get_parameter("gray").item() == pytest.approx(-1.1)


def test_what_was_lost_at_other_levels_is_learnt_again():
    of = method(top=0.0, lists=((2.5, 0.9, 0.06),))
    before = outputs(of, 0.9)
    with torch.no_grad():
        for parameter in of.network.parameters():
            parameter.add_(0.05 * normals(*parameter.shape, seed=parameter.numel()))
    lost = float((outputs(of, 0.9) - before).abs().mean())
    assert float((outputs(trained(of, 150), 0.9) - before).abs().mean()) < 0.5 * lost


def test_the_student_it_learns_from_stands_still_and_is_not_saved():
    network = lively(std=0.1)
    before = copied(network)
    of = Progressive(network, 0.5, CONFIG, Compute())
    trained(of, 6)
    assert equal(network, before) and not equal(of.network, before) and set(of.networks) == {"student"}


def test_a_batch_has_one_level_the_same_in_every_process():
    of, drawn = method(top=0.6), []
    for rank in (0, 1):
        rng = Draws(torch.Generator().manual_seed(0), rank, 2)
        drawn.append([of.draw(rng) for _ in range(2000)])
    assert drawn[0] == drawn[1]
    share = sum(len(path) == 1 for path in drawn[0]) / 2000
    assert share == pytest.approx((1 + 0.6 + 0.6) / 3, abs=0.03)  # a list of one is nothing but its top
    assert {path for path in drawn[0] if len(path) > 1} == {(2.5, 0.4), (2.5, 0.9), (2.5, 0.9, 0.06)}


def test_levels_that_do_not_descend_are_refused():
    with pytest.raises(ValueError, match="positive and strictly descending"):
        method(further=(0.05, 0.1))
