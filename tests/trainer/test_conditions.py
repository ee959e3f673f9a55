"""Training with conditions: dropped labels, guided students, and images enlarged from their own reductions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.card import CheckpointError, read_card
from fewstep.checkpoint import load_denoiser
from fewstep.conditions import Condition, guidance_weight, low_image
from fewstep.network import UNet
from fewstep.precond import Denoiser, guided
from tests.trainer.tiny import TINY, TINY_RECIPE, draws, lively, normals, run_options
from trainer import commands
from trainer.commands import train_student, train_teacher
from trainer.data.format import DataError, ImageSet
from trainer.levels.conditioning import widen
from trainer.methods.conditions import drawn, enlarged_again, without_some
from trainer.methods.dpdm import Parts, Student
from trainer.methods.edm import Teacher
from trainer.options import Distillation
from trainer.run.compute import Compute
from trainer.settings import AdamConfig, StudentConfig, TeacherConfig, stored_settings
from trainer.switches import SwitchError

LOW = low_image(1, 2)
ENLARGING = replace(TINY, classes=0, inner_attention=False, conditions=(LOW,), precond="residual", sigma_data=0.3)
ALL = (guidance_weight(4.0), Condition("text", (5,), -1.0, 1.0), LOW, Condition("mask", (1, 8, 8), 0.0, 1.0))


def test_a_share_of_the_labels_is_left_out_and_none_by_default():
    labels, rng = torch.arange(4000) % 10, draws()
    before = rng.generator.get_state()
    assert without_some(labels, 0.0, rng) is labels
    assert torch.equal(before, rng.generator.get_state()), "runs without it draw what they always drew"
    assert (without_some(labels, 0.2, rng) == -1).float().mean() == pytest.approx(0.2, abs=0.03)


def test_a_teacher_is_told_no_class_of_dropped_images():
    seen: list[torch.Tensor] = []
    network = lively()
    teacher = Teacher(network, 0.5, TeacherConfig(label_dropout=0.5), Compute())
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    teacher.update(normals(64, 1, 8, 8), torch.arange(64) % 10, 0.5, draws())
    dropped = (seen[0].sum(dim=1) == 0).sum().item()
    assert 16 < dropped < 48


@pytest.mark.parametrize("extra", [0, 1])
def test_a_network_widened_by_conditions_is_unchanged_until_it_is_trained(extra: int):
    network = lively(replace(TINY, extra=extra, conditions=ALL[2:3]))
    wide = widen(network, channels=1, features=3, conditions=(ALL[0], ALL[1], ALL[3]))
    rows = 3
    x, c_noise, onehot = normals(rows, 1 + extra, 8, 8), torch.zeros(rows), torch.eye(10)[:rows]
    low = normals(rows, 1, 2, 2, seed=1)
    behind = torch.cat([x, normals(rows, 1, 8, 8, seed=2)], 1), c_noise, torch.cat([onehot, torch.ones(rows, 3)], 1)
    with torch.no_grad():
        expected = network(x, c_noise, onehot, low)
        found = wide(*behind, low, torch.full((rows,), 3.0), normals(rows, 5), normals(rows, 1, 8, 8, seed=3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [each.name for each in wide.config.conditions] == ["low", "guidance", "text", "mask"]


def test_a_guided_student_learns_from_the_guided_teacher_at_the_weight_it_is_told():
    teacher = lively()
    method = Student(teacher, 0.5, StudentConfig(guidance_max=4.0), Compute())
    values = drawn(method.student.conditions, normals(200, 1, 8, 8), draws())
    weight = values["guidance"]
    assert weight.min() >= 1 and weight.max() <= 4 and weight.std() > 0.5
    x, sigma, labels = normals(4, 1, 8, 8), torch.ones(4), torch.arange(4)
    bound = method.given({"guidance": weight[:4]})
    plain = Denoiser(teacher, 0.5, 10)
    with torch.no_grad():
        torch.testing.assert_close(bound.teacher(x, sigma, labels), guided(plain, weight[:4])(x, sigma, labels))
    assert "guidance" in bound.student.bound and "guidance" in bound.auxiliary.bound
    before = {name: value.clone() for name, value in method.networks["student"].state_dict().items()}
    method.update(normals(8, 1, 8, 8), torch.arange(8), 0.5, draws())
    changed = method.networks["student"].state_dict()["embedding.conditions.guidance.linear.weight"]
    assert not torch.equal(changed, before["embedding.conditions.guidance.linear.weight"])


class Shifted(torch.nn.Module):
    """F of classes 0 and 1 with normal images of deviation DEVIATION around mean and -mean. A number `keeps` of 0 makes
    the posterior mean of a noisy image, 1 a draw from noise. The mean follows the weight linearly."""

    def __init__(self, mean: float, keeps: float = 0.0) -> None:
        super().__init__()
        self.keeps = keeps
        self.mean, self.slope = (torch.nn.Parameter(torch.tensor(value)) for value in (mean, 0.0))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, onehot: torch.Tensor, *given: torch.Tensor):
        sigma = (4 * c_noise).exp()
        mean = self.mean + sum(self.slope * (weight - 2.5) for weight in given)
        shift = mean / DEVIATION * sigma * (sigma**2 + DEVIATION**2).rsqrt() * (onehot[:, 0] - onehot[:, 1])
        return self.keeps * x + shift[:, None, None, None]


MEAN, DEVIATION = 0.6, 0.5


def test_a_distilled_weight_moves_images_as_guidance_does():
    """A teacher guided by w from N(0, v) to N(m, v) is one of N(w m, v): so the student's images have that mean."""
    networks, taken = {"student": Shifted(MEAN, keeps=1.0), "auxiliary": Shifted(MEAN)}, (guidance_weight(4.0),)
    denoisers = {name: Denoiser(network, DEVIATION, 2, taken) for name, network in networks.items()}
    rates = {"betas": (0.0, 0.99), "decay_from": 0.4, "final": 0.1}
    config = StudentConfig(
        steps=(1,), guidance_max=4.0, renoise="lognormal", auxiliary_sees_level=False, adam=AdamConfig(0.07, **rates),
        auxiliary_adam=AdamConfig(0.2, **rates),
    )  # fmt: skip
    teacher = Denoiser(Shifted(MEAN).requires_grad_(False), DEVIATION, 2)
    method = Student.of_parts(Parts(teacher, **denoisers, trained=dict(networks)), config, "cpu")
    labels, rng = torch.arange(32) % 2, draws()
    means = MEAN * (1 - 2 * labels)[:, None, None, None]
    for update in range(40):
        method.update(DEVIATION * normals(32, 1, 2, 2, seed=update) + means, labels, update / 40, rng)
    noise, sigma = 2.5 * normals(200, 1, 2, 2), torch.full((200,), 2.5)
    for weight in (1.0, 2.5, 4.0):
        told = denoisers["student"].given(guidance=torch.full((200,), weight))
        assert told(noise, sigma, torch.zeros(200).long()).mean().item() == pytest.approx(weight * MEAN, abs=0.15)


def test_low_images_are_means_over_squares():
    images = normals(2, 1, 8, 8)
    (low,) = drawn((LOW,), images, draws()).values()
    torch.testing.assert_close(low[1, 0, 0, 1], images[1, 0, :4, 4:].mean())
    assert enlarged_again(images, LOW).shape == images.shape


def test_settings_that_earlier_runs_do_not_have_are_stored_where_they_say_something():
    assert not {"label_dropout", "guidance_max", "lognormal"} & {
        *stored_settings(TeacherConfig()), *stored_settings(StudentConfig())
    }  # fmt: skip
    assert stored_settings(StudentConfig(guidance_max=2.0))["guidance_max"] == 2.0


def test_a_guided_student_from_images_to_its_checkpoint(thumbnails: ImageSet, tiny_recipe: None, tmp_path: Path):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    train_teacher(run_options(teacher, images=16), thumbnails, label_dropout=0.2)
    assert read_card(teacher).training["label_dropout"] == 0.2 and read_card(teacher).conditions == ()
    request = Distillation(teacher, switches={"guidance_max": 3.0})
    train_student(run_options(student, images=16), thumbnails, request)
    denoiser, card = load_denoiser(student)
    assert card.conditions == denoiser.conditions == (guidance_weight(3.0),)
    again = replace(request, start=student)
    train_student(run_options(tmp_path / "on", images=8), thumbnails, again)
    assert read_card(tmp_path / "on").conditions == card.conditions
    with pytest.raises(CheckpointError, match="takes guidance up to 3, which is not what is trained here"):
        train_student(run_options(tmp_path / "no", images=8), thumbnails, replace(again, switches={}))


def test_an_enlarging_student_from_images_to_its_checkpoint(
    thumbnails: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(commands, "recipe", lambda name: replace(TINY_RECIPE, network=ENLARGING))
    plain = replace(thumbnails, labels=thumbnails.labels * 0 - 1, class_names=())
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    train_teacher(run_options(teacher, images=16), plain)
    card = read_card(teacher)
    assert card.conditions == (LOW,) and 0.05 < card.sigma_data < plain.sigma_data()  # of what enlarged images lack
    train_student(run_options(student, images=16), plain, Distillation(teacher))
    assert list((student / "samples").glob("*.png")) and read_card(student).conditions == (LOW,)
    with pytest.raises(SwitchError, match="consistency trains no student that takes low; dpdm, tied"):
        train_student(run_options(tmp_path / "no"), plain, Distillation(teacher, "consistency"))
    with pytest.raises(SwitchError, match="--warm stores endpoints"):
        train_student(run_options(tmp_path / "no"), plain, Distillation(teacher, switches={"warm": 0.1}))
    colour = replace(plain, images=plain.images.repeat(3, axis=3))
    with pytest.raises(DataError, match="has 3 channels, and the recipe enlarges images of 1"):
        train_teacher(run_options(tmp_path / "no"), colour)


def test_guidance_needs_a_teacher_that_knows_no_class(thumbnails: ImageSet, tiny_teacher: Path, tmp_path: Path):
    with pytest.raises(SwitchError, match="--guidance-max needs a teacher that knows images without their class"):
        request = Distillation(tiny_teacher, switches={"guidance_max": 2.0})
        train_student(run_options(tmp_path / "no"), thumbnails, request)
    plain = replace(thumbnails, labels=thumbnails.labels * 0 - 1, class_names=())
    with pytest.raises(SwitchError, match="these images have none"):
        train_teacher(run_options(tmp_path / "no"), plain, label_dropout=0.1)


def test_the_x4_recipe_is_convolutions_alone():
    from trainer.recipes.earth_x4 import EARTH_X4

    network = UNet(EARTH_X4.network)
    assert not any("attention" in name for name in network.state_dict())
    x, low = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        assert network(x, torch.zeros(1), torch.zeros(1, 0), low).shape == x.shape
