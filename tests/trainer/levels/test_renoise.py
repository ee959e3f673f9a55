"""The levels to which student outputs are noised: the range of every rule, and how levels are drawn."""

import pytest
import torch

from fewstep.schedule import SIGMA_MAX, student_levels
from trainer.levels.renoise import LevelLists, renoise_levels
from trainer.run.draws import Draws
from trainer.settings import RULES, served_lists

FLOOR = 0.05


@pytest.fixture
def drawn():
    lists = LevelLists.of(served_lists(range(1, 9), 0.01), FLOOR)
    return lists.draw(20_000, 0.3, Draws(torch.Generator().manual_seed(0)))


def test_every_drawn_level_belongs_to_a_served_list_and_the_next_one_follows_it(drawn):
    pairs = {
        (round(a, 4), round(b, 4), i)
        for k in range(1, 9)
        for i, (a, b) in enumerate(zip(student_levels(k, 0.01), (*student_levels(k, 0.01)[1:], FLOOR), strict=True))
    }
    seen = {
        (round(a, 4), round(b, 4), i)
        for a, b, i in zip(drawn.sigma.tolist(), drawn.below.tolist(), drawn.position.tolist(), strict=True)
    }
    assert seen == pairs


def test_top_level_gets_its_share(drawn):
    share = (drawn.position == 0).float().mean().item()
    assert share == pytest.approx(1 / 8 + 7 / 8 * 0.3, abs=0.02)  # the one-step list has nothing but its top
    assert (drawn.sigma[drawn.position == 0] == SIGMA_MAX).all()


def test_levels_below_the_top_are_drawn_evenly():
    lists = LevelLists.of([(80.0, 10.0, 5.0, 1.0)], FLOOR)
    drawn = lists.draw(30_000, 0.4, Draws(torch.Generator().manual_seed(1)))
    shares = [(drawn.position == i).float().mean().item() for i in range(4)]
    assert shares == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.02)


def test_tied_noises_to_the_students_own_level(drawn):
    assert torch.equal(renoise_levels("tied", drawn, FLOOR, Draws(torch.Generator())), drawn.sigma)


def test_subinterval_stays_between_a_level_and_the_next(drawn):
    levels = renoise_levels("subinterval", drawn, FLOOR, Draws(torch.Generator().manual_seed(2)))
    assert (levels <= drawn.sigma * 1.0001).all() and (levels >= drawn.below * 0.9999).all()


def test_independent_spans_everything_whatever_the_student_was_fed(drawn):
    levels = renoise_levels("independent", drawn, FLOOR, Draws(torch.Generator().manual_seed(3)))
    low = levels[drawn.sigma < 1]
    assert low.max() > 60 and low.min() < 0.1


def test_hybrid_is_subinterval_below_the_top_and_mostly_lognormal_at_it(drawn):
    levels = renoise_levels("hybrid", drawn, FLOOR, Draws(torch.Generator().manual_seed(4)))
    rest = drawn.position > 0
    assert (levels[rest] <= drawn.sigma[rest] * 1.0001).all() and (levels[rest] >= drawn.below[rest] * 0.9999).all()
    multi_top = (drawn.position == 0) & (drawn.below > FLOOR)
    below = drawn.below[multi_top]
    outside = (levels[multi_top] < below).float().mean().item()
    roams = torch.special.ndtr((below.log() + 1.2) / 1.2).mean().item()  # where EDM trains: ln sigma ~ N(-1.2, 1.2^2)
    assert outside == pytest.approx(0.6 * roams, abs=0.02)


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_noises_to_less_than_the_floor(rule, drawn):
    assert renoise_levels(rule, drawn, FLOOR, Draws(torch.Generator().manual_seed(5))).min() >= FLOOR * 0.9999
