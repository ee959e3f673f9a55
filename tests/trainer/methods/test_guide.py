"""--guide: the teacher judges as if pushed away from a worse one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.card import CheckpointError, read_card
from tests.trainer.tiny import copied, draws, equal, lively, normals, run_options
from trainer.commands import Distillation, train_student, train_teacher
from trainer.data.format import ImageSet
from trainer.levels.renoise import Drawn
from trainer.methods.dpdm import Student
from trainer.methods.inputs import Fed
from trainer.run.compute import Compute
from trainer.settings import StudentConfig
from trainer.switches import SwitchError, switched


def gradient(guide: int | None, weight: float, loss: str = "kl", auxiliary: int = 0) -> torch.Tensor:
    """Of outputs judged by the network of seed 0 with this guide, and by an auxiliary. Numbers are networks' seeds."""
    config = StudentConfig(renoise="tied", guidance=weight, loss=loss, weight="one", auxiliary_sees_level=False)  # pyright: ignore[reportArgumentType]
    student = Student(lively(), 0.5, config, Compute(), guide=None if guide is None else lively(seed=guide))
    student.auxiliary = replace(student.auxiliary, network=lively(seed=auxiliary))
    outputs, level = normals(6, 1, 8, 8), torch.full((6,), 0.7)
    fed = Fed(outputs, Drawn(level, level / 2, torch.ones(6, dtype=torch.long)))
    return student.divergence_gradient(outputs, torch.arange(6), fed, draws(1))


@pytest.mark.parametrize("loss", ["kl", "sid"])
def test_nothing_changes_at_weight_one_or_beside_its_own_copy(loss):
    alone = gradient(None, 1.0, loss, auxiliary=2)
    assert alone.abs().mean() > 1e-3
    torch.testing.assert_close(gradient(1, 1.0, loss, auxiliary=2), alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient(0, 1.5, loss, auxiliary=2), alone, rtol=1e-3, atol=1e-4)


def test_the_divergence_pulls_away_from_the_guide():
    """With the auxiliary at the teacher D, fake - real = D - (G + w (D - G)) = (1 - w) (D - G)."""
    half, whole = gradient(1, 1.5), gradient(1, 2.0)
    assert half.abs().mean() > 1e-3
    torch.testing.assert_close(whole, 2 * half, rtol=1e-3, atol=1e-5)


def test_teacher_and_guide_stand_still():
    teacher, guide = lively(), lively(seed=1)
    before = copied(teacher), copied(guide)
    student = Student(teacher, 0.5, StudentConfig(guidance=1.5), Compute(), guide=guide)
    started = copied(student.network)
    for step in range(2):
        student.update(normals(8, 1, 8, 8), torch.arange(8), 0.5, draws(step))
    assert equal(teacher, before[0]) and equal(guide, before[1]) and not equal(student.network, started)


@pytest.mark.usefixtures("tiny_recipe")
def test_a_run_names_its_guide_and_is_not_resumed_with_another(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    guides = []
    for seed in (1, 2):
        guides.append(tmp_path / f"guide{seed}")
        assert train_teacher(run_options(guides[-1], images=8, seed=seed), thumbnails)
    request = Distillation(tiny_teacher, guide=guides[0], switches={"guidance": 1.4})
    assert train_student(run_options(tmp_path / "run", images=8), thumbnails, request)
    training = read_card(tmp_path / "run").training
    assert training["guide"] == read_card(guides[0]).weights and training["guidance"] == 1.4
    with pytest.raises(CheckpointError, match="trained with other settings: guide was"):
        again = run_options(tmp_path / "run", resume=True)
        train_student(again, thumbnails, replace(request, guide=guides[1]))


@pytest.mark.usefixtures("tiny_recipe")
def test_only_a_worse_teacher_of_the_same_data_is_a_guide(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    assert train_student(run_options(tmp_path / "student", images=8), thumbnails, Distillation(tiny_teacher))
    for guide, sentence in (
        (tiny_teacher, "is the teacher itself; a guide has to be worse than it"),
        (tmp_path / "student", "a guide is a teacher of the same data"),
        (tmp_path / "nothing", r"nothing"),
    ):
        request = Distillation(tiny_teacher, guide=guide, switches={"guidance": 1.2})
        with pytest.raises(CheckpointError, match=sentence):
            train_student(run_options(tmp_path / "run"), thumbnails, request)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny_recipe")
def test_switches_that_mean_nothing_are_refused(thumbnails: ImageSet, tiny_teacher: Path, tmp_path):
    with pytest.raises(SwitchError, match="--guidance needs a worse teacher"):
        train_student(run_options(tmp_path / "run"), thumbnails, Distillation(tiny_teacher, switches={"guidance": 2.0}))
    with pytest.raises(SwitchError, match="--guide has no effect without --guidance"):
        train_student(run_options(tmp_path / "run"), thumbnails, Distillation(tiny_teacher, guide=tiny_teacher))
    with pytest.raises(SwitchError, match="--guide: consistency distillation has no judge"):
        request = Distillation(tiny_teacher, "consistency", guide=tiny_teacher)
        train_student(run_options(tmp_path / "run"), thumbnails, request)
    for weight in (0.9, float("nan"), float("inf")):
        with pytest.raises(SwitchError, match="--guidance must be 1 or more"):
            switched(StudentConfig(), {"guidance": weight})
