"""No update reads a scalar of the device: on a GPU the host would wait for all the work before it.

On a CPU every tensor is the host's, so what is forbidden here is every way to read one, and a draw or a count of the
host is read by `numpy()`, which fails on a tensor of a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.analytic import Gaussian
from fewstep.ancestral import ancestral_chain
from fewstep.schedule import karras_sigmas
from tests.trainer.tiny import draws, lively, normals
from trainer.critics.classifier import Classification, ClassifierConfig, NoisyClassifier
from trainer.methods.consistency import Consistency
from trainer.methods.dmd2 import DMD2, dmd2
from trainer.methods.dpdm import Student
from trainer.methods.edm import Teacher
from trainer.methods.endpoints import Endpoints
from trainer.methods.gan import Adversarial
from trainer.methods.posterior_student import adapter_parts
from trainer.methods.rtb import Problem, TrajectoryBalance
from trainer.methods.self_distillation import Progressive
from trainer.run.compute import Compute
from trainer.run.loop import Method
from trainer.settings import (
    AdversarialConfig,
    BehaviourMix,
    ConsistencyConfig,
    PosteriorConfig,
    ProgressiveConfig,
    StudentConfig,
    TeacherConfig,
)

LISTS = ((2.5,), (2.5, 0.4), (2.5, 0.9, 0.06))
IMAGES, LABELS = 0.5 * normals(8, 1, 8, 8, seed=1), torch.arange(8) % 10
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select")


class NoReads(TorchDispatchMode):
    """Fails at an operation whose result the host needs before it can go on; so does an index by a mask."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put_") and any(i is not None and i.dtype is torch.bool for i in args[1])
        assert name not in READS and not masks, f"the host waits for {name}"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(tensor: Tensor) -> Any:
        raise AssertionError("the host waits for a tensor")

    with monkeypatch.context() as patch, NoReads():
        for name in ("tolist", "cpu"):  # which pass the mode by
            patch.setattr(Tensor, name, refuse)
        yield


def student(**changes: Any) -> Student:
    config = StudentConfig(**changes)
    return Student(lively(), 0.5, config, Compute(), None, Endpoints(IMAGES, LABELS) if config.warm else None)


def adversarial(**changes: Any) -> Adversarial:
    classifier = NoisyClassifier(ClassifierConfig(8, 1, 10, 0.5, width=8, features=16)).eval().requires_grad_(False)
    config = AdversarialConfig(lists=LISTS, first=0.1, imitation_share=0.5, clip=True, **changes)
    return Adversarial(lively(), [classifier], 0.5, config, Compute())


def by_adapters() -> Student:
    parts = adapter_parts(lively(), 2, 0.5, 10, torch.Generator().manual_seed(0))
    return Student.of_parts(parts, StudentConfig(), "cpu")


def balance(**changes: Any) -> TrajectoryBalance:
    data, sigmas = Gaussian(0.0, 1.0), karras_sigmas(5, 0.05, 10.0)
    chain, network = ancestral_chain(sigmas, "opt", [data.error(sigma) for sigma in sigmas]), torch.nn.Conv2d(1, 1, 1)
    problem = Problem(
        lambda x, sigma, y: data.teacher(x, sigma), lambda x, sigma, y: data.teacher(x, sigma) + network(x), chain,
        lambda images, y: images.mean(dim=(1, 2, 3)), torch.nn.Parameter(torch.zeros(chain.steps)), 10,
    )  # fmt: skip
    mix = BehaviourMix(on_policy=0.3, explore=0.2, replay=0.2, noised_back=0.2, prior=0.1)
    return TrajectoryBalance(problem, network, PosteriorConfig(mix=mix, replay_from=0.1, **changes), IMAGES[0])


METHODS: dict[str, Callable[[], Method]] = {
    "teacher": lambda: Teacher(lively(), 0.5, TeacherConfig(), Compute()),
    "teacher in parts": lambda: Teacher(lively(), 0.5, TeacherConfig(), Compute(rows=3)),
    "dpdm": lambda: student(simulate=0.5, simulate_from=0.0, auxiliary_updates=2),
    "sid": lambda: student(loss="sid"),
    "ncvsd": lambda: student(objective="ncvsd", warm=0.3),
    "adapters": by_adapters,
    "dmd2": lambda: DMD2(lively(), 0.5, replace(dmd2(StudentConfig()), auxiliary_updates=2), Compute()),
    "consistency": lambda: Consistency(lively(), 0.5, ConsistencyConfig(target_halflife=100), Compute()),
    "progressive": lambda: Progressive(
        lively(), 0.5, ProgressiveConfig(lists=LISTS, further=(0.1,), simulate=0.5, top=0.3, saturate=0.1), Compute()
    ),
    "adversarial": adversarial,
    "one call": lambda: adversarial(trained_steps="first"),
    "rest": lambda: adversarial(trained_steps="rest"),
    "classifier": lambda: Classification(NoisyClassifier(ClassifierConfig(8, 1, 10, 0.5, width=8)), Compute()),
    "balance": lambda: balance(log_z="learned"),
    "balance of groups": lambda: balance(log_z="vargrad"),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_update_reads_no_scalar_of_the_device(name: str, monkeypatch: pytest.MonkeyPatch):
    method, rng = METHODS[name](), draws()
    method.update(IMAGES, LABELS, 0.0, rng)  # the first update of an optimiser makes its moments
    with no_reads(monkeypatch):
        scalars = [method.update(IMAGES, LABELS, progress / 6, rng) for progress in range(1, 6)]
    assert all(isinstance(value, Tensor) and value.isfinite() for found in scalars for value in found.values())


@pytest.mark.parametrize(
    "read",
    [Tensor.item, float, bool, Tensor.tolist, Tensor.cpu, lambda x: x[x > 0]],
    ids=["item", "float", "bool", "tolist", "cpu", "mask"],
)
def test_the_check_finds_what_the_host_waits_for(read: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch):
    read = {Tensor.tolist: lambda x: x.tolist(), Tensor.cpu: lambda x: x.cpu()}.get(read, read)
    with pytest.raises(AssertionError, match="the host waits"), no_reads(monkeypatch):
        read(torch.ones(1).abs())
