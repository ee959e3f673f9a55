"""--method progressive: a list's last call learns what further calls would have made of it, the rest stays."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.card import read_card
from fewstep.checkpoint import load_denoiser
from fewstep.precond import Denoiser, edm_scalings
from fewstep.samplers import sample_dpdm
from tests.trainer.tiny import TINY, copied, draws, equal, lively, normals, run_options
from trainer.average import average
from trainer.commands import Distillation, train_student
from trainer.compute import Compute
from trainer.dataset import ImageSet
from trainer.draws import Draws
from trainer.optimizer import AdamConfig
from trainer.progressive import Progressive, ProgressiveConfig, further_levels, saturated
from trainer.publish import publish
from trainer.switches import SwitchError, add_switches, given

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
    of, x = method(keep=0.5), IMAGES + 0.9 * normals(8, 1, 8, 8, seed=2)
    target, unit = of.target(x, 0.9, IMAGES, LABELS, draws())
    with torch.no_grad():
        own = of.start(x, torch.full((8,), 0.9), LABELS)
    assert torch.equal(target, own)
    torch.testing.assert_close(unit, 2 * (own - IMAGES).abs().mean(dim=(1, 2, 3), keepdim=True))


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
    assert saturated(images, 0.02).tolist() == pytest.approx([-1, -1, -1, -0.97, 0, 0.97, 1, 1])


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
    share = sum(top for _, top in drawn[0]) / 2000
    assert share == pytest.approx((1 + 0.6 + 0.6) / 3, abs=0.03)  # a list of one is nothing but its top
    assert {level for level, top in drawn[0] if not top} == {0.4, 0.9, 0.06}


def test_levels_that_do_not_descend_are_refused():
    with pytest.raises(ValueError, match="positive and strictly descending"):
        method(further=(0.05, 0.1))


def test_the_flag_lists_levels():
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_switches(parser)
    assert given(parser.parse_args(["--further", "0.1,0.05"])) == {"further": (0.1, 0.05)}
    assert given(parser.parse_args(["--further-for", "1"])) == {"further_for": 1}
    assert given(parser.parse_args(["--saturate", "0.02"])) == {"saturate": 0.02}
    for text in ("0.05,0.1", "few", "0.1,-1", ""):
        with pytest.raises(argparse.ArgumentError, match="are no levels: write"):
            parser.parse_args([f"--further={text}"])


@pytest.mark.usefixtures("tiny_recipe")
def test_a_run_continues_a_student_at_the_lists_it_serves(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train_student(run_options(first, images=16), thumbnails, Distillation(tiny_teacher))
    switches = {"further": (0.01, 0.005), "further_for": 1, "saturate": 0.02, "top": 0.4, "lr": 1e-3}
    request = Distillation(tiny_teacher, "progressive", switches, start=first)
    assert train_student(run_options(second, images=32), thumbnails, request)
    assert train_student(run_options(second, resume=True), thumbnails, request)
    begun, card = read_card(first), read_card(second)
    assert (card.levels, card.parent, card.role) == (begun.levels, begun.parent, "student")
    training = card.training
    assert (training["method"], training["start"], training["images"]) == ("progressive", begun.weights, 64)
    assert (training["further"], training["top"], training["adam"]["lr"]) == ([0.01, 0.005], 0.4, 1e-3)
    assert training["further_for"] == 1 and training["saturate"] == 0.02
    assert load_denoiser(second)[1].weights != begun.weights


@pytest.mark.usefixtures("tiny_recipe")
def test_a_student_continued_beside_the_published_teacher_may_be_averaged_with_what_it_continues(
    thumbnails: ImageSet, tiny_teacher: Path, tmp_path
):
    """The teacher in half precision has another hash; it is the same parent."""
    first, second, published = tmp_path / "first", tmp_path / "second", tmp_path / "published"
    assert train_student(run_options(first, images=16), thumbnails, Distillation(tiny_teacher))
    publish(tiny_teacher, published)
    request = Distillation(published, "progressive", {"further": (0.01,)}, start=first)
    assert train_student(run_options(second, images=16), thumbnails, request)
    assert read_card(second).parent == read_card(first).parent == read_card(tiny_teacher).weights
    average([first, second], tmp_path / "mean")
    training = read_card(tmp_path / "mean").training
    assert training["images"] == 32 and training["average_of"] == [read_card(d).weights for d in (first, second)]


@pytest.mark.usefixtures("tiny_recipe")
def test_what_it_does_not_have_is_refused_before_anything_is_written(
    thumbnails: ImageSet, tiny_teacher: Path, tmp_path
):
    first = tmp_path / "first"
    assert train_student(run_options(first, images=16), thumbnails, Distillation(tiny_teacher))
    request = Distillation(tiny_teacher, "progressive", start=first)
    for wrong, sentence in (
        (replace(request, start=None), "add --init"),
        (replace(request, start=tiny_teacher), "--init names a teacher; --method progressive continues a student"),
        (
            replace(request, switches={"renoise": "tied", "top": 0.5}),
            "--renoise: a variant of DPDM, which --method pro",
        ),
        (replace(request, switches={"lr": 0.0}), "--lr must be positive"),
        (replace(request, switches={"further": (3.0, 2.0)}), "--further 2 is not below any list's last level"),
        (replace(request, switches={"further_for": 0}), "--further-for 0: --init's shortest list has 1;"),
        (replace(request, lists=first), "--lists-of: progressive distillation is trained at the lists that --init"),
        (replace(request, guide=tiny_teacher), "--guide: progressive distillation has no judge"),
        (replace(request, method="dpdm", switches={"further": (0.1,)}), "--further belongs to --method progressive"),
        (replace(request, method="dpdm", switches={"further_for": 1}), "--further-for belongs to --method progressive"),
        (Distillation(tiny_teacher, "consistency", {"top": 0.5}), "--top: a variant of DPDM, which --method cons"),
    ):
        with pytest.raises(SwitchError, match=sentence):
            train_student(run_options(tmp_path / "run"), thumbnails, wrong)
    assert not (tmp_path / "run").exists()
