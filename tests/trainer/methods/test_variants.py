"""Every variant of the student as a training run: what it changes, that it resumes, from where it starts."""

import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.card import CARD_FILE, Card, CheckpointError, Dataset
from fewstep.checkpoint import load_denoiser, save_checkpoint
from fewstep.network import UNet
from fewstep.unet_config import UNetConfig
from tests.trainer.tiny import TINY, copied, draws, equal, lively, normals, run_options
from trainer.commands import train_student
from trainer.methods.dpdm import Student
from trainer.methods.endpoints import FILE, Endpoints
from trainer.methods.rivals import diff_instruct
from trainer.options import Distillation
from trainer.run.compute import Compute
from trainer.run.state import STATE_FILE
from trainer.settings import StudentConfig

VARIANTS = {
    "sid": StudentConfig(loss="sid", alpha=1.2),
    "one": StudentConfig(weight="one"),
    "ncvsd": StudentConfig(objective="ncvsd"),
    "ncvsd sid": StudentConfig(objective="ncvsd", loss="sid"),
    "told": StudentConfig(auxiliary_sees_level=True),
    "three": StudentConfig(auxiliary_updates=3),
    "simulated": StudentConfig(simulate=1.0, simulate_from=0.0),
    "warm": StudentConfig(warm=0.3),
    "ncvsd warm simulated": StudentConfig(objective="ncvsd", warm=0.1, simulate=0.7, simulate_from=0.0),
    "diff-instruct": diff_instruct(StudentConfig()),
}
IMAGES, LABELS = 0.5 * normals(8, 1, 8, 8, seed=1), torch.arange(8) % 10


@pytest.mark.parametrize("classes", [10, 0])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=list(VARIANTS))
def test_a_variant_trains_with_finite_numbers_and_changes_only_its_own_networks(config: StudentConfig, classes: int):
    teacher = lively(replace(TINY, classes=classes), std=0.05)
    before = copied(teacher)
    labels = LABELS if classes else torch.full_like(LABELS, -1)
    student = Student(teacher, 0.5, config, Compute(), None, Endpoints(IMAGES, labels) if config.warm else None)
    start = {name: copied(network) for name, network in student.networks.items()}
    rng = draws()
    rows = [student.update(IMAGES, labels, progress, rng) for progress in (0.2, 0.5, 0.8)]
    assert all(value.isfinite() for row in rows for value in row.values())
    assert equal(teacher, before) and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert set(student.networks) == {"student", "auxiliary"}
    for name, network in student.networks.items():
        moved = [key for key, value in network.state_dict().items() if not torch.equal(value, start[name][key])]
        still = set(start[name]) - set(moved) - {"embedding.freqs"}
        assert not still, f"{name}: {still} did not learn"
        assert moved


def test_while_the_auxiliary_goes_first_the_student_stands_still():
    student = Student(lively(std=0.05), 0.5, StudentConfig(auxiliary_first=0.5), Compute())
    start, rng = {name: copied(network) for name, network in student.networks.items()}, draws()
    scalars = student.update(IMAGES, LABELS, 0.49, rng)
    assert "gap" not in scalars and equal(student.networks["student"], start["student"])
    assert not equal(student.networks["auxiliary"], start["auxiliary"])
    assert "gap" in student.update(IMAGES, LABELS, 0.5, rng)
    assert not equal(student.networks["student"], start["student"])


# Together they take every switch that leaves something behind: networks, moments, files, draws of its own.
RUNS = {
    "levels": {"loss": "sid", "alpha": 0.5, "auxiliary_sees_level": True},
    "auxiliary": {"auxiliary_updates": 2, "auxiliary_first": 0.2},
    "warm": {"warm": 0.6, "weight": "one", "renoise": "lognormal"},
    "ncvsd": {"objective": "ncvsd", "simulate": 0.5, "simulate_from": 0.0},
}


@pytest.mark.usefixtures("tiny_recipe")
@pytest.mark.parametrize("switches", RUNS.values(), ids=list(RUNS))
def test_an_interrupted_variant_resumes_to_identical_state(switches, thumbnails, tiny_teacher, tmp_path, monkeypatch):
    request = Distillation(tiny_teacher, switches=switches)
    assert train_student(run_options(tmp_path / "straight"), thumbnails, request)
    update = Student.update

    def interrupted(self, images, labels, progress, rng):
        if progress == 0.375:
            signal.raise_signal(signal.SIGINT)
        return update(self, images, labels, progress, rng)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "update", interrupted)
        assert not train_student(run_options(tmp_path / "parts"), thumbnails, request)
    assert train_student(run_options(tmp_path / "parts", resume=True), thumbnails, request)
    straight, parts = (load_file(tmp_path / name / "state.safetensors") for name in ("straight", "parts"))
    assert straight.keys() == parts.keys()
    assert [name for name in straight if not torch.equal(straight[name], parts[name])] == []
    assert (tmp_path / "parts" / FILE).exists() == ("warm" in switches)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def student_folder(tiny_recipe, thumbnails, tiny_teacher, tmp_path) -> Path:
    train_student(run_options(tmp_path / "first", images=16), thumbnails, Distillation(tiny_teacher))
    return tmp_path / "first"


def test_init_continues_a_student_under_other_settings(student_folder, thumbnails, tiny_teacher, tmp_path):
    # Only the auxiliary learns here, so the student that comes out is the one that went in.
    switches = {"auxiliary_first": 1.0, "loss": "sid"}
    for objective in ("marginal", "ncvsd"):
        request = Distillation(tiny_teacher, switches=switches | {"objective": objective}, start=student_folder)
        assert train_student(run_options(tmp_path / objective, images=16), thumbnails, request)
    first, same, wide = (weights(folder) for folder in (student_folder, tmp_path / "marginal", tmp_path / "ncvsd"))
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert any(not torch.equal(value, weights(tiny_teacher)[name]) for name, value in first.items())
    assert torch.equal(wide["stem.conv.weight"][:, :1], first["stem.conv.weight"])
    assert wide["stem.conv.weight"].shape[1] == 2 and (wide["stem.conv.weight"][:, 1] == 0).all()
    _, card = load_denoiser(student_folder)
    assert load_denoiser(tmp_path / "marginal")[1].training["start"] == card.weights


def auxiliary_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / STATE_FILE)
    return {name: value for name, value in tensors.items() if name.startswith("net.auxiliary.")}


def test_init_continues_the_auxiliary_too_where_its_run_is_kept(
    student_folder, thumbnails, tiny_teacher, tmp_path, capsys
):
    # With a rate of next to nothing the auxiliary that comes out is the one that went in.
    still = {"auxiliary_lr": 1e-12, "auxiliary_first": 1.0}
    published = tmp_path / "published"
    published.mkdir()
    for name in (CARD_FILE, "model.safetensors"):
        shutil.copy(student_folder / name, published)
    kept = auxiliary_of(student_folder)
    cases = {
        "kept": (student_folder, {}, True),
        "without its run": (published, {}, False),
        "another shape": (student_folder, {"auxiliary_sees_level": False}, False),
    }
    for name, (start, switches, continues) in cases.items():
        request = Distillation(tiny_teacher, switches=still | switches, start=start)
        assert train_student(run_options(tmp_path / name, images=16), thumbnails, request)
        assert load_denoiser(tmp_path / name)[1].training["auxiliary_continues"] == continues
        assert ("the auxiliary continues" in capsys.readouterr().err) == continues
        begun = auxiliary_of(tmp_path / name)
        near = [torch.allclose(begun[key], kept[key], atol=1e-7) for key in kept if begun[key].shape == kept[key].shape]
        assert all(near) == continues
    (published / STATE_FILE).write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="not a readable training state"):
        train_student(run_options(tmp_path / "new"), thumbnails, Distillation(tiny_teacher, start=published))


def stored(folder: Path, config: UNetConfig, like: Card) -> Path:
    network = UNet(config)
    save_checkpoint(folder, network.state_dict(), replace(like, network=asdict(config)))
    return folder


def test_init_refuses_what_is_no_student_of_such_a_teacher(student_folder, thumbnails, tiny_teacher, tmp_path):
    _, card = load_denoiser(student_folder)
    assert isinstance(card.dataset, Dataset)
    bigger = stored(tmp_path / "bigger", replace(TINY, resolution=16), card)
    classless = stored(tmp_path / "classless", replace(TINY, classes=0), card)
    wider = stored(tmp_path / "other data", TINY, replace(card, sigma_data=0.3))
    for folder in (tiny_teacher, bigger, classless, wider):
        with pytest.raises(CheckpointError, match="is not a student of such a teacher; --init continues one"):
            train_student(run_options(tmp_path / "new"), thumbnails, Distillation(tiny_teacher, start=folder))
    ncvsd = stored(tmp_path / "ncvsd", replace(TINY, extra=1), card)
    with pytest.raises(CheckpointError, match="continue it with --objective ncvsd"):
        train_student(run_options(tmp_path / "new"), thumbnails, Distillation(tiny_teacher, start=ncvsd))
    assert not (tmp_path / "new").exists()
