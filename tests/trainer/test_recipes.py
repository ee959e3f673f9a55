"""Recipes as values: stages that can be run in their order, networks that fit, averages of a possible width."""

import pytest

from trainer.recipes.by_name import RECIPES
from trainer.run.ema import gamma_of

NAMES = list(RECIPES)


@pytest.mark.parametrize("name", NAMES)
def test_stages_share_the_whole_budget_and_take_from_those_before_them(name):
    stages = RECIPES[name].stages
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names) and names[0] == "teacher"
    assert not set(names) & {"data", "student", "export", "report"}, "the folders of other stages"
    for place, stage in enumerate(stages):
        assert set(stage.parents) <= set(names[:place])
    assert stages[-1].method not in ("teacher", "classifier")


@pytest.mark.parametrize("name", NAMES)
def test_networks_of_both_sizes_make_the_same_images(name):
    small, large = (RECIPES[name].network_of(size) for size in ("small", "large"))
    assert small.resolution == large.resolution and large.width > small.width


@pytest.mark.parametrize("name", NAMES)
def test_averages_have_a_width_that_a_power_function_has(name):
    recipe = RECIPES[name]
    for config in (recipe.teacher, recipe.student, recipe.consistency, recipe.progressive, recipe.adversarial):
        assert gamma_of(config.ema_width) > 0
