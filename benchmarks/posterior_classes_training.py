"""What `benchmarks/posterior_classes.py` trains: adapters of the prior's chain that are told y."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.posterior_classes_task import GROUPS, RANK, SIGMA_MAX, SIGMA_MIN, Task
from benchmarks.posterior_results import told_every
from fewstep.adapters import Adapter, AdapterCard, load_adapter, save_adapter
from trainer.methods.rtb import TrajectoryBalance
from trainer.methods.tilted import TILTED as TILTED_ADAM
from trainer.methods.tilted import tilted_regression
from trainer.run.draws import seeded
from trainer.settings import PosteriorConfig

TILTED, RTB, BOTH = "tilted denoising", "RTB", "tilted denoising, then RTB"


def trained(task: Task) -> dict[str, tuple[Adapter, float]]:
    """The adapter of every row, and its CPU time with that of the images it learns from."""
    args = task.args
    pool_s = float(task.proposals["cpu_s"]) * args.pool / (args.pool + args.proposals)
    tilted, spent = kept(task, TILTED, task.new_adapter(), lambda adapter: tilt(task, adapter))
    seconds = args.times * (spent + pool_s)
    balanced, own = kept(task, RTB, task.new_adapter(), lambda adapter: balance(task, adapter, seconds, args.lr))
    again, _ = kept(task, TILTED, task.new_adapter(), lambda adapter: None)
    again.requires_grad_(True)  # what is read is frozen
    both, more = kept(task, BOTH, again, lambda adapter: balance(task, adapter, seconds - spent - pool_s, args.lr / 4))
    return {TILTED: (tilted, spent + pool_s), RTB: (balanced, own), BOTH: (both, spent + pool_s + more)}


def kept(task: Task, name: str, adapter: Adapter, train: Callable[[Adapter], None]) -> tuple[Adapter, float]:
    """The adapter, trained, and the CPU time of that. One that is kept in --work is read."""
    folder = task.args.work / name.replace(",", "").replace(" ", "-")
    if not (folder / "adapter.json").exists():
        since = time.process_time()
        train(adapter)
        spent = {"cpu_s": time.process_time() - since}
        save_adapter(folder, adapter, AdapterCard("", RANK, GROUPS, task.chain, "classes", training=spent))
        print(f"{name}: {spent['cpu_s']:.0f} CPU s", flush=True)
    loaded, card = load_adapter(folder, task.network)
    return loaded, card.training["cpu_s"]


def tilt(task: Task, adapter: Adapter) -> None:
    """Tilted denoising on the prior's images that are not the reference's proposals: each of them for every y."""
    images, log_rewards = (task.proposals[name][task.args.proposals :] for name in ("images", "log_rewards"))
    y = torch.arange(GROUPS).repeat_interleave(len(images))
    pool = images.repeat(GROUPS, 1, 1, 1), log_rewards.T.flatten(), y
    tilted_regression(
        task.told(adapter), adapter, pool, (SIGMA_MIN, SIGMA_MAX), task.args.tilted_updates, seeded(800),
        batch=task.args.batch, adam=replace(TILTED_ADAM, lr=task.args.tilted_lr), told=True, said=told_every(20),
    )  # fmt: skip


def balance(task: Task, adapter: Adapter, seconds: float, lr: float) -> None:
    """Trajectory balance for so many CPU seconds."""
    default, rng = PosteriorConfig(), seeded(801)
    config = replace(default, adam=replace(default.adam, lr=lr), levels=task.args.gradient_levels)
    y = torch.arange(task.args.balance_batch) % GROUPS
    like = torch.empty(len(y), 1, 32, 32)
    method, since, update = TrajectoryBalance(task.problem(adapter), adapter, config, like[0]), time.process_time(), 0
    say = told_every(10)
    while (progress := (time.process_time() - since) / seconds) < 1:
        found = method.update(like, y, progress, rng)
        update += 1
        say(update, float(found["loss"]))
