"""Replayed CUDA graphs: outputs outlive the next replay, an update begins by giving up the last one's, and refusals."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.tiny import TINY, copied, draws, lively, normals, run_options
from trainer.methods.dpdm import Student
from trainer.methods.edm import Teacher
from trainer.run.compute import Compute, replayed, runner, wrap_for_compute
from trainer.run.loop import Method
from trainer.runs import records_graphs
from trainer.settings import MachineError, StudentConfig, TeacherConfig

GRAPHS = Compute(compile=True, cuda_graphs=True)


class Replays:
    """torch.compile where outputs lie in the same memory at every call, as those of a replayed graph do."""

    def __init__(self) -> None:
        self.modes: list[str | None] = []

    def __call__(self, function: Callable[..., Any], *, dynamic: bool, mode: str | None) -> Callable[..., Any]:
        self.modes.append(mode)
        memory: dict[torch.Size, Tensor] = {}

        def kept(output: Tensor) -> Tensor:
            return memory.setdefault(output.shape, torch.empty_like(output)).copy_(output)

        def run(*inputs: Any) -> Any:
            found = function(*inputs)
            return kept(found) if isinstance(found, Tensor) else [kept(each) for each in found]

        return run


@torch.no_grad()
def outputs(compute: Compute) -> list[Tensor]:
    """Of the first of two calls, after the second."""
    network, found = lively(replace(TINY, mult=(1, 2))), []
    for run in (runner(network, compute), wrap_for_compute(network.features, compute)):
        first, _ = (run(normals(4, 1, 8, 8, seed=seed), torch.ones(4), torch.eye(10)[:4]) for seed in (0, 1))
        found += [first] if isinstance(first, Tensor) else first
    return found


def test_an_output_outlives_the_next_replay(monkeypatch: pytest.MonkeyPatch):
    eager, replays = outputs(Compute()), Replays()
    monkeypatch.setattr(torch, "compile", replays)
    torch.testing.assert_close(outputs(GRAPHS), eager)
    overwritten = outputs(replace(GRAPHS, cuda_graphs=False))
    assert len(eager) == 3 and not any(torch.allclose(*pair) for pair in zip(overwritten, eager, strict=True))
    assert replays.modes == ["reduce-overhead"] * 2 + [None] * 2


def test_every_update_begins_with_a_mark(monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: events.append("mark"))
    update = replayed(lambda image: events.append(image) or image)
    assert [update("a"), update("b")] == ["a", "b"] and events == ["mark", "a", "mark", "b"]


@pytest.mark.parametrize(
    ("changes", "device", "said"),
    [
        ({}, "cpu", "needs an NVIDIA GPU, and this run is on cpu"),
        ({"compile": "off"}, "cuda", "--compile off compiles none"),
        ({"compile": "on", "rows": 4}, "cuda", "one process and whole calls"),
        ({"compile": "on", "shard": True}, "cuda", "one process and whole calls"),
    ],
)
def test_where_graphs_cannot_be_recorded_they_are_refused(changes: dict[str, Any], device: str, said: str):
    options = replace(run_options(Path("run"), cuda_graphs=True), **changes) if changes else run_options(
        Path("run"), compile="auto", cuda_graphs=True
    )  # fmt: skip
    with pytest.raises(MachineError, match=said):
        records_graphs(options, device)
    assert not records_graphs(replace(options, cuda_graphs=False), device)


METHODS: dict[str, Callable[[Compute], Method]] = {
    "teacher": lambda compute: Teacher(lively().to(compute.device), 0.5, TeacherConfig(), compute),
    "dpdm": lambda compute: Student(
        lively().to(compute.device), 0.5, StudentConfig(simulate=0.5, simulate_from=0.0), compute
    ),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", METHODS)
def test_updates_of_replayed_graphs_train_the_weights_of_eager_ones(name: str):
    trained = []
    for compute in (Compute("cuda"), replace(GRAPHS, device="cuda")):
        method, rng = METHODS[name](compute), replace(draws(), device="cuda")
        update = replayed(method.update) if compute.cuda_graphs else method.update
        for progress in range(6):
            update(0.5 * normals(8, 1, 8, 8, seed=progress).cuda(), (torch.arange(8) % 10).cuda(), progress / 6, rng)
        trained.append(copied(method.networks[method.served]))
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, rtol=1e-3, atol=1e-4)
