"""--half: a recipe's training images without those of the panel's judges."""

from pathlib import Path

import pytest

from trainer.data.format import DataError
from trainer.data.named import READERS
from trainer.data.sources.selection import halved
from trainer.options import Order
from trainer.stages.pictures import pictures
from trainer.stages.results import command


def test_half_of_a_recipe_is_what_is_trained_on_and_stands_in_the_command():
    order = Order("digits", Path("runs/d"), budget_s=60.0, half="a")
    assert pictures(order).sha256() == halved(READERS["digits"](None, "train"), "a").sha256()
    assert "--half a" in command(order) and order.facts()["half"] == "a"
    whole = Order("digits", Path("runs/d"), budget_s=60.0)
    assert "half" not in whole.facts() and "--half" not in command(whole)  # a run that began before goes on


def test_a_folder_has_no_halves(tmp_path: Path):
    with pytest.raises(DataError, match="--half b is of a recipe's pictures"):
        pictures(Order(str(tmp_path), tmp_path / "out", half="b"))
