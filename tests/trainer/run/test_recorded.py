"""Whole updates, recorded and replayed: the same weights, what the host may not add, resumed runs, and refusals."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.methods.test_host_reads import METHODS, student
from tests.trainer.run.replays import Replays
from tests.trainer.run.test_loop import interrupt_after, weights
from tests.trainer.tiny import copied, draws, lively, normals, run_options
from trainer.classify import train_classifier
from trainer.commands import train_teacher
from trainer.critics.classifier import Classification, ClassifierConfig, NoisyClassifier
from trainer.methods.dpdm import Student
from trainer.methods.edm import Teacher
from trainer.run import draws as drawing
from trainer.run import loop, recorded
from trainer.run.budget import images_within
from trainer.run.compute import Compute
from trainer.run.draws import Draws
from trainer.run.loop import Method
from trainer.run.recorded import CudaGraphs, RecordedUpdates
from trainer.run.state import read_facts
from trainer.runs import records_graphs
from trainer.settings import MachineError, StudentConfig, TeacherConfig

UPDATES = 10
FEW = StudentConfig().steps[:2]
RECORDED: dict[str, Callable[[], Method]] = {
    name: make
    for name, make in METHODS.items()
    if name not in ("teacher in parts", "adapters", "rest", "one call") and "balance" not in name
} | {
    "dpdm": lambda: student(steps=FEW, simulate=0.5, simulate_from=0.2, auxiliary_first=0.1),
    "classifier": lambda: Classification(NoisyClassifier(ClassifierConfig(8, 1, 10, 0.5, width=8, shift=0)), Compute()),
}


class Trained(NamedTuple):
    weights: dict[str, Tensor]
    scalars: list[dict[str, float]]


def trained(method: Method, update: recorded.Update, updates: int = UPDATES) -> Trained:
    rng, scalars = draws(), []
    for i in range(updates):
        found = update(0.5 * normals(8, 1, 8, 8, seed=i), (torch.arange(8) + i) % 10, i / UPDATES, rng)
        scalars.append({name: float(value) for name, value in found.items()})
    weights = {f"{name}.{key}": value for name, net in method.networks.items() for key, value in copied(net).items()}
    assert all(weight.grad is None for net in method.networks.values() for weight in net.parameters())
    return Trained(weights, scalars)


def fresh(name: str) -> Method:
    torch.manual_seed(0)
    return RECORDED[name]()


@pytest.mark.parametrize("name", RECORDED)
def test_replayed_updates_train_the_weights_of_others(name: str, monkeypatch: pytest.MonkeyPatch):
    """What a recording kept of the host (a key, a rate, a decision) would be wrong in its replays."""
    monkeypatch.setattr(recorded, "WARM_UPS", 1)
    method, recorder = fresh(name), Replays()
    replayed = trained(method, RecordedUpdates(method.update, method.optimizers, recorder).update)
    assert recorder.recorded and recorder.replayed
    monkeypatch.setattr(recorded, "MOST", 0)
    method = fresh(name)
    taped = trained(method, RecordedUpdates(method.update, method.optimizers, recorder).update)
    assert replayed.scalars == taped.scalars
    torch.testing.assert_close(replayed.weights, taped.weights, rtol=0, atol=0)
    monkeypatch.setattr(drawing, "keyed_normals", drawing.normals_in_pieces)  # as with a tape
    method = fresh(name)
    for plain, other in zip(trained(method, method.update, 4).scalars, replayed.scalars, strict=False):
        assert plain == pytest.approx(other, rel=2e-3)


def recorded_update(update: recorded.Update, times: int = recorded.WARM_UPS + 2) -> list[dict[str, Tensor]]:
    updates, rng = RecordedUpdates(update, {}, Replays()), draws()
    return [updates.update(torch.full((2,), float(i)), torch.zeros(2), i / 8, rng) for i in range(times)]


@pytest.mark.parametrize(
    ("update", "error", "said"),
    [
        (lambda x, y, progress, rng: {"a": x.sum() * x.sum().item()}, RuntimeError, "needs the host"),
        (lambda x, y, progress, rng: {"a": x.sum() * torch.tensor(2.0)}, RuntimeError, "needs the host"),
        (lambda x, y, progress, rng: {"a": x.sum() * progress}, TypeError, "unsupported operand"),
        (lambda x, y, progress, rng: {"a": x.sum() * rng.shared_uniform()}, RuntimeError, "shared_choice"),
    ],
    ids=["read", "tensor", "progress", "uniform"],
)
def test_what_a_recording_would_keep_of_the_host_is_refused(update: Any, error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        recorded_update(update)


def test_other_entries_after_the_same_decisions_are_refused():
    drawn = iter([1, 1, 2])

    def update(x: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        return {"a": sum(rng.normal_like(x).sum() for _ in range(next(drawn)))}  # pyright: ignore

    with pytest.raises(RuntimeError, match="asked for more than 1 entries after the same decisions"):
        recorded_update(update)


def test_rarer_combinations_go_without_and_a_sentence_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(recorded, "MOST", 1)
    rng, recorder = draws(), Replays()

    def update(x: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        return {"a": x.sum() * rng.shared_choice(lambda u: int(2 * u)) + rng.uniform(1)[0]}

    updates = RecordedUpdates(update, {}, recorder)
    for i in range(16):
        x, plain = torch.full((2,), float(i)), draws()
        plain.generator.set_state(rng.generator.get_state())
        assert updates.update(x, x, 0.0, rng) == {"a": update(x, x, 0.0, plain)["a"]}
    assert recorder.recorded == 1 and recorder.replayed > 1
    assert capsys.readouterr().err == "1 CUDA graphs are recorded; rarer kinds of updates go without\n"


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[Replays]:
    """Runs record their updates. Returns the recorders."""
    recorders: list[Replays] = []
    monkeypatch.setattr("trainer.runs.records_graphs", lambda *_: True)
    monkeypatch.setattr("trainer.runs.CudaGraphs", lambda: (recorders.append(Replays()), recorders[-1])[1])
    return recorders


@pytest.mark.usefixtures("tiny_recipe")
def test_a_recorded_run_is_resumed_to_the_same_weights(thumbnails, tmp_path, recording, monkeypatch):
    """Averages are part of a recording; a resumed run makes its recordings again. A budget is measured with others."""

    def averages(folder: Path) -> dict[str, Tensor]:
        return {name: kept for name, kept in load_file(folder / "state.safetensors").items() if "average" in name}

    monkeypatch.setattr(loop, "STAGES", 1)  # fewer updates for measuring
    monkeypatch.setattr(loop, "images_within", lambda *arguments: (images_within(*arguments), 64)[1])
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    train_teacher(run_options(straight, sheets=False, images=None, budget_s=60.0), thumbnails)
    with monkeypatch.context() as patch:
        interrupt_after(3, Teacher, patch)  # the recording; a replay does not come by here
        train_teacher(run_options(parts, sheets=False), thumbnails)
    assert read_facts(parts)["images"] == 24
    train_teacher(run_options(parts, sheets=False, resume=True), thumbnails)
    assert weights(parts) == weights(straight)
    assert [each.recorded for each in recording] == [1, 1, 1, 1]  # the budget's, too
    monkeypatch.setattr("trainer.runs.records_graphs", lambda *_: False)
    train_teacher(run_options(tmp_path / "plain", sheets=False), thumbnails)
    torch.testing.assert_close(averages(straight), averages(tmp_path / "plain"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "device", "said"),
    [
        ({}, "cpu", "needs an NVIDIA GPU, and this run is on cpu"),
        ({"rows": 4}, "cuda", "one process and whole calls"),
        ({"shard": True}, "cuda", "one process and whole calls"),
    ],
)
def test_where_graphs_cannot_be_recorded_they_are_refused(changes: dict[str, Any], device: str, said: str):
    options = run_options(Path("run"), cuda_graphs=True, **changes)
    with pytest.raises(MachineError, match=said):
        records_graphs(options, device)
    assert not records_graphs(replace(options, cuda_graphs=False), device)


def test_a_classifier_refuses_them_as_well(thumbnails, tmp_path):
    with pytest.raises(MachineError, match="needs an NVIDIA GPU"):
        train_classifier(run_options(tmp_path, cuda_graphs=True), thumbnails)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["teacher", "dpdm"])
def test_updates_of_cuda_graphs_train_the_weights_of_others(name: str, compile: bool):
    compute = Compute("cuda", compile=compile)
    config = StudentConfig(steps=FEW, simulate=0.5, simulate_from=0.2, auxiliary_first=0.1)
    make: Callable[[], Method] = {
        "teacher": lambda: Teacher(lively().cuda(), 0.5, TeacherConfig(), compute),
        "dpdm": lambda: Student(lively().cuda(), 0.5, config, compute),
    }[name]
    found = []
    for record in (False, True):
        method, rng = make(), replace(draws(), device="cuda")
        update = RecordedUpdates(method.update, method.optimizers, CudaGraphs()).update if record else method.update
        for i in range(24):
            update(0.5 * normals(8, 1, 8, 8, seed=i).cuda(), ((torch.arange(8) + i) % 10).cuda(), i / 24, rng)
        found.append(copied(method.networks[method.served]))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4)
