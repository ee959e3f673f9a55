"""--keep: the top level learns while the levels below it stay as they were in the student that is continued."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import TINY_RECIPE, copied, draws, equal, lively, normals, run_options
from trainer.commands import Distillation, train_student
from trainer.data.format import ImageSet
from trainer.methods.dpdm import Student
from trainer.run.compute import Compute
from trainer.settings import AdamConfig, StudentConfig
from trainer.switches import SwitchError, switched

LABELS = torch.arange(8) % 10
# No warm-up and no decay: eight updates are all there is.
FAST = AdamConfig(2e-3, (0.0, 0.999), warmup=0.0)


def student(**switches) -> Student:
    config = StudentConfig(adam=FAST, **switches)
    return Student(lively(), 0.5, config, Compute(), start=lively(seed=1, std=0.1))


def outputs(of: Student, sigma: float) -> torch.Tensor:
    x = 0.3 * normals(32, 1, 8, 8, seed=5) + sigma * normals(32, 1, 8, 8, seed=6)
    with torch.no_grad():
        return of.student(x, torch.full((32,), sigma), torch.arange(32) % 10)


def trained(method: Student, updates: int) -> Student:
    rng = draws()
    for step in range(updates):
        method.update(0.3 * normals(8, 1, 8, 8, seed=step), LABELS, 0.5, rng)
    return method


@pytest.mark.parametrize("levels", ["lists", "continuous"])
def test_only_the_top_level_is_fed_to_the_judges(levels):
    method = student(keep=0.5, levels=levels)
    fed = method.feed(normals(64, 1, 8, 8), torch.arange(64) % 10, 0.5, draws())
    assert torch.all(fed.drawn.position == 0) and torch.allclose(fed.drawn.sigma, torch.tensor(2.5))


@pytest.mark.parametrize("levels", ["lists", "continuous"])
def test_imitation_starts_where_the_kept_student_is_and_leads_back_to_it(levels):
    method = student(keep=0.5, levels=levels)
    rng, images = draws(), 0.3 * normals(8, 1, 8, 8)
    assert float(method.imitate(images, LABELS, 0.5, rng)["drift"]) < 1e-6
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(0.05 * normals(*parameter.shape, seed=parameter.numel()))
    drifts = [float(method.imitate(images, LABELS, 0.5, rng)["drift"]) for _ in range(60)]
    assert sum(drifts[-10:]) < 0.5 * sum(drifts[:10])


def test_lower_levels_change_less_than_without_while_the_top_moves():
    free, keeping = trained(student(top=1.0), 40), trained(student(keep=0.5), 80)
    begun = student()
    moved = lambda method, sigma: float((outputs(method, sigma) - outputs(begun, sigma)).abs().mean())  # noqa: E731
    for sigma in StudentConfig().level_lists[4][1:]:
        assert moved(keeping, sigma) < 0.7 * moved(free, sigma)
    assert moved(keeping, 2.5) > 0.3 * moved(free, 2.5) > 1e-3


def test_the_kept_student_stands_still_and_is_not_saved():
    start = lively(seed=1)
    before = copied(start)
    method = Student(lively(), 0.5, StudentConfig(keep=0.5, adam=FAST), Compute(), start=start)
    trained(method, 4)
    assert equal(start, before) and set(method.networks) == {"student", "auxiliary"}


@pytest.mark.usefixtures("tiny_recipe")
def test_a_run_keeps_what_it_continues(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train_student(run_options(first, images=16), thumbnails, Distillation(tiny_teacher))
    request = Distillation(tiny_teacher, start=first, switches={"keep": 0.5})
    assert train_student(run_options(second), thumbnails, request)
    with pytest.raises(SwitchError, match="--keep keeps what a student can already; add --init"):
        train_student(run_options(tmp_path / "third"), thumbnails, replace(request, start=None))


@pytest.mark.parametrize(
    ("switches", "sentence"),
    [
        ({"keep": 1.0}, "--keep 1 leaves no update for the top level"),
        ({"keep": 0.5, "simulate": 0.5}, "--keep does not go with --simulate"),
        ({"keep": 0.5, "objective": "posterior"}, "--keep does not go with"),
    ],
)
def test_what_contradicts_keeping_is_refused(switches, sentence):
    with pytest.raises(SwitchError, match=sentence):
        switched(TINY_RECIPE.student, switches)
