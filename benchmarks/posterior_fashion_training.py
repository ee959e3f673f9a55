"""What `benchmarks/posterior_fashion.py` trains: adapters of the teacher's chain, and a student of one of them."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.inputs import MODELS
from benchmarks.posterior_fashion_task import CLASSES, RANK, SIGMA_MAX, SIGMA_MIN, Task
from benchmarks.posterior_results import told_every
from fewstep.adapters import Adapter, AdapterCard, adapted, load_adapter, merged, save_adapter
from fewstep.checkpoint import NetworkModule, load_denoiser
from fewstep.precond import Denoiser
from trainer.methods.dpdm import Student
from trainer.methods.posterior_student import FewStepPrior, adapter_parts, pool_batches
from trainer.methods.rtb import TrajectoryBalance
from trainer.methods.tilted import TILTED as TILTED_ADAM
from trainer.methods.tilted import tilted_regression
from trainer.posterior_distil import student_config
from trainer.posterior_options import DistilConfig
from trainer.run.draws import seeded
from trainer.settings import PosteriorConfig

CALLS = (1, 2, 4)  # of the student
TILTED, RTB = "tilted denoising", "RTB"


def teachers(task: Task) -> dict[str, tuple[Adapter, float]]:
    """The adapter of every row that is asked for, and its CPU time with that of the images it learns from."""
    args = task.args
    pool_s = float(task.proposals["cpu_s"]) * args.pool / (args.pool + args.proposals)
    tilted, spent = trained(task, TILTED, lambda adapter: tilt(task, adapter))
    found = {TILTED: (tilted, spent + pool_s)}
    for name, times in rtb_times(args.longer).items() if not args.without_rtb else ():
        found[name] = trained(task, name, lambda adapter, times=times: balance(task, adapter, times * (spent + pool_s)))
    return found


def rtb_times(longer: float) -> dict[str, float]:
    """The rows of trajectory balance, and how often the time of tilted denoising they get."""
    return {RTB: 1.0} | ({f"{RTB}, {longer:g} times as long": longer} if longer > 1 else {})


def trained(task: Task, name: str, train: Callable[[Adapter], None]) -> tuple[Adapter, float]:
    """An adapter beside the teacher, and the CPU time of its training. One that is kept is read."""
    folder, adapter = task.args.work / folder_of(name), task.new_adapter(task.chain.steps)
    if not (folder / "adapter.json").exists():
        since = time.process_time()
        train(adapter)
        spent = {"cpu_s": time.process_time() - since}
        card = AdapterCard("", RANK, 0, task.chain, "light", training=spent)
        save_adapter(folder, adapter, card)
        print(f"{name}: {spent['cpu_s']:.0f} CPU s", flush=True)
    loaded, card = load_adapter(folder, task.network)
    return loaded, card.training["cpu_s"]


def folder_of(method: str) -> str:
    """The name below --work of what a method makes: tilted, rtb, rtb-3."""
    words = method.replace(",", "").lower().split()
    return "-".join([words[0], *(word for word in words if word.replace(".", "").isdigit())])


def tilt(task: Task, adapter: Adapter) -> None:
    """Tilted denoising on the prior's images that are not the reference's proposals."""
    denoiser = Denoiser(adapted(task.network, adapter), task.prior.sigma_data, CLASSES)
    pool = tuple(task.proposals[name][task.args.proposals :] for name in ("images", "log_rewards", "y"))
    with torch.autocast("cpu", torch.bfloat16):
        tilted_regression(
            denoiser, adapter, pool, (SIGMA_MIN, SIGMA_MAX), task.args.tilted_updates, seeded(800),  # pyright: ignore[reportArgumentType]
            batch=task.args.batch, adam=replace(TILTED_ADAM, lr=task.args.tilted_lr), told=True, said=told_every(20),
        )  # fmt: skip


def balance(task: Task, adapter: Adapter, seconds: float) -> None:
    """Trajectory balance for so many CPU seconds. Its sums over a chain are too fine for bfloat16."""
    default, rng = PosteriorConfig(), seeded(801)
    config = replace(default, adam=replace(default.adam, lr=task.args.lr), levels=task.args.gradient_levels)
    y = torch.arange(task.args.balance_batch) % CLASSES
    like = torch.empty(len(y), 1, 32, 32)
    method, since, update = TrajectoryBalance(task.problem(adapter), adapter, config, like[0]), time.process_time(), 0
    say = told_every(5)
    while (progress := (time.process_time() - since) / seconds) < 1:
        found = method.update(like, y, progress, rng)
        update += 1
        say(update, float(found["loss"]))


def distil(task: Task, adapter: Adapter, images: Tensor) -> Path:
    """The student's adapter beside the shipped student, in a folder that `fewstep export adapter --add` takes."""
    folder = task.args.work / "light"
    if (folder / "adapter.json").exists():
        return folder
    since = time.process_time()
    begun, card = load_denoiser(MODELS)
    assert isinstance(begun.network, NetworkModule)
    lists = {calls: card.levels[calls] for calls in CALLS}
    teacher = merged(task.network, adapter)
    assert isinstance(teacher, NetworkModule)
    begin = FewStepPrior(begun.network, task.network)
    generator = torch.Generator().manual_seed(60)
    parts = adapter_parts(teacher, RANK, task.prior.sigma_data, CLASSES, generator, begin, sees_level=True)
    config = student_config(DistilConfig(), task.args.distil_lr, lists, sees_level=True)
    config = replace(config, auxiliary_first=task.args.auxiliary_first)
    method, rng, say = Student.of_parts(parts, config, "cpu"), seeded(70), told_every(20)
    batches = pool_batches((images, torch.zeros(len(images)), task.labels), task.args.distil_batch, 71, False, 0)
    with torch.autocast("cpu", torch.bfloat16):
        for update in range(task.args.distil_updates):
            some, y = next(batches)
            found = method.update(some, y, update / task.args.distil_updates, rng)
            say(update + 1, float(found["auxiliary_loss"]))
    student = parts.trained["student"]
    assert isinstance(student, Adapter)
    spent = {"cpu_s": time.process_time() - since}
    names = load_denoiser(MODELS / "teacher")[1].class_names
    save_adapter(
        folder,
        student,
        AdapterCard(card.weights, RANK, 0, None, "light", training=spent, levels=lists, class_names=names),
    )
    print(f"student: {spent['cpu_s']:.0f} CPU s", flush=True)
    return folder
