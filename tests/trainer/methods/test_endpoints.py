"""Stored teacher endpoints: which images they are, when they are computed again, what they are good for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.analytic import Gaussian, as_network
from fewstep.card import CheckpointError
from fewstep.noise_torch import noise_for
from fewstep.precond import Denoiser
from fewstep.schedule import SIGMA_MAX
from tests.trainer.tiny import TINY, draws, lively
from trainer.methods.dpdm import Student
from trainer.methods.endpoints import CHUNK, FILE, FIRST_SEED, Endpoints, load_or_make
from trainer.run.compute import Compute
from trainer.settings import AdamConfig, StudentConfig

DATA, SHAPE, COUNT = Gaussian(0.1, 0.5), (1, 8, 8), CHUNK + 20


class Teacher:
    """The exact denoiser of Gaussian data; it counts its calls and keeps the labels it was asked for."""

    def __init__(self, classes: int = 10) -> None:
        self.calls, self.labels = 0, set()
        exact = as_network(DATA.teacher, 0.5)

        def network(x, c_noise, onehot):
            self.calls += 1
            self.labels |= set(onehot.argmax(1).tolist()) if classes else set()
            return exact(x, c_noise, onehot)

        self.denoiser = Denoiser(network, 0.5, classes)

    def endpoints(self, folder: Path, digest: str = "a", count: int = COUNT) -> Endpoints:
        return load_or_make(folder, self.denoiser, digest, count, SHAPE, "cpu")


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("endpoints")
    Teacher().endpoints(folder)
    return folder


def noise_of(count: int) -> torch.Tensor:
    return noise_for(range(FIRST_SEED, FIRST_SEED + count), SHAPE)(0)


def test_an_endpoint_is_where_the_teachers_ode_takes_the_noise_of_its_seed(stored):
    made = Teacher().endpoints(stored)
    ends = DATA.flow(SIGMA_MAX * noise_of(COUNT), SIGMA_MAX)
    assert made.images.shape == (COUNT, *SHAPE) and made.images.dtype == torch.float32
    # The solver's error is a few per cent of contrast and nothing else. With 10 levels it would be 22 %.
    scale = ((made.images - DATA.mean) * (ends - DATA.mean)).sum() / (ends - DATA.mean).square().sum()
    assert scale.item() == pytest.approx(1.0, abs=0.07)
    torch.testing.assert_close(made.images - DATA.mean, scale * (ends - DATA.mean), atol=5e-3, rtol=2e-3)
    assert made.labels.tolist() == [i % 10 for i in range(COUNT)]


def test_a_drawn_pair_belongs_together(stored):
    made = Teacher().endpoints(stored)
    noise, labels, images = made.draw(64, draws(1))
    assert noise.std().item() == pytest.approx(1.0, abs=0.05)
    unit = (images - DATA.mean) / DATA.std
    torch.testing.assert_close(unit, noise, atol=0.05, rtol=0.07)
    assert len(images.flatten(1).unique(dim=0)) > 32  # and there are many pairs
    lookup = {image.sum().item(): label for image, label in zip(made.images, made.labels.tolist(), strict=True)}
    assert [lookup[image.sum().item()] for image in images] == labels.tolist()


def test_the_file_is_used_again_for_the_same_teacher_and_nothing_else(stored, tmp_path):
    same = Teacher()
    first = same.endpoints(stored)
    assert same.calls == 0 and torch.equal(first.images, Teacher().endpoints(stored).images)
    for digest, count in (("a", 4), ("b", 4), ("b", 6)):
        teacher = Teacher()
        assert len(teacher.endpoints(tmp_path, digest, count).images) == count and teacher.calls > 0
    again = Teacher()
    again.endpoints(tmp_path, "b", 6)
    assert again.calls == 0


def test_more_endpoints_begin_with_the_same_ones(stored, tmp_path):
    few = Teacher().endpoints(tmp_path, count=5)
    torch.testing.assert_close(few.images, Teacher().endpoints(stored).images[:5], atol=2e-3, rtol=0)


def test_a_teacher_of_classes_is_asked_for_each_and_one_without_for_none(tmp_path):
    asked = Teacher()
    asked.endpoints(tmp_path / "classes", count=20)
    assert asked.labels == set(range(10))
    plain = Teacher(classes=0).endpoints(tmp_path / "plain", count=3)
    assert plain.labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_damaged_file_is_refused_with_what_to_do(stored, tmp_path, kept):
    (tmp_path / FILE).write_bytes((stored / FILE).read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"endpoints .*; delete it"):
        Teacher().endpoints(tmp_path)


def warmed(sigma_max: float, updates: int) -> tuple[list[float], Student]:
    """A student that has regressed on the endpoints of Gaussian data at its top level."""
    ends = Endpoints(DATA.flow(SIGMA_MAX * noise_of(64), SIGMA_MAX), torch.arange(64) % 10)
    config = StudentConfig(warm=1.0, sigma_max=sigma_max, adam=AdamConfig(2e-3, (0.0, 0.999), warmup=0.0))
    student = Student(lively(std=0.05), 0.5, config, Compute(), None, ends)
    rng, empty, labels = draws(2), torch.empty(32, *SHAPE), torch.zeros(32).long()
    return [student.update(empty, labels, 0.5, rng)["warm_loss"].item() for _ in range(updates)], student


@pytest.mark.parametrize("sigma_max", [SIGMA_MAX, 2.5])
def test_a_warm_start_moves_one_step_samples_to_the_endpoints(sigma_max):
    losses, student = warmed(sigma_max, 40)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    noise, labels = noise_of(64), torch.arange(64) % 10
    with torch.no_grad():
        images = student.student(sigma_max * noise, torch.full((64,), sigma_max), labels)
    error = (images - DATA.flow(SIGMA_MAX * noise, SIGMA_MAX)).square().mean()
    assert error < 0.6 * DATA.std**2  # answering with the mean leaves the whole variance


@pytest.mark.parametrize("sigma_max", [SIGMA_MAX, 2.5])
def test_a_perfect_student_has_no_warm_loss(sigma_max):
    _, student = warmed(sigma_max, 0)
    exact = as_network(lambda x, sigma: DATA.flow(x * SIGMA_MAX / sigma_max, SIGMA_MAX), 0.5)
    parameter = next(student.networks["student"].parameters())
    student.student = Denoiser(lambda *args: exact(*args) + 0 * parameter.sum(), 0.5, 10)
    scalars = student.warm_up(32, 0.5, draws(3))
    assert scalars["warm_loss"] < 1e-3 and set(scalars) == {"warm_loss", "gradient", "auxiliary_loss"}


def test_a_warm_start_ends_when_its_share_of_the_run_does():
    _, student = warmed(SIGMA_MAX, 0)
    student.config = replace(student.config, warm=0.5)
    images, labels = torch.zeros(4, *SHAPE), torch.zeros(4).long()
    assert "warm_loss" in student.update(images, labels, 0.49, draws())
    assert "warm_loss" not in student.update(images, labels, 0.5, draws())


def test_the_auxiliary_follows_the_student_while_it_warms_up():
    _, student = warmed(SIGMA_MAX, 3)
    network, start = student.networks["auxiliary"], lively(std=0.05).state_dict()
    assert TINY.classes and any(not torch.equal(value, start[name]) for name, value in network.state_dict().items())
