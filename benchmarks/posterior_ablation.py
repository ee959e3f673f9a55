"""Trajectory balance on 8x8 digits: one switch at a time, and how it scales with prior, rank, steps, batch and updates.

    python benchmarks/posterior_ablation.py            # about half an hour of one core; goes on where it stopped
    python benchmarks/posterior_ablation.py --smoke    # seconds; proves that it runs

The task is that of `benchmarks/posterior.py`: digits of one class by a classifier's probability, beside rejection from
the prior's chain, which is exact. Every row differs from the first one in what it is named after. Chains of other
lengths and other priors have posteriors of their own, so the columns are relative to the row's own reference: nats by
which E[log r] is below it, log Z - ELBO, and the distance over that of the reference's two halves.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import WORK
from benchmarks.posterior_closed import MIXED
from benchmarks.posterior_digit_task import RANK, DigitTask, digit_task, judged
from benchmarks.posterior_digits import WIDTH
from benchmarks.posterior_results import end, parsed, said, settings_of, summary, with_deviations, write_rows
from benchmarks.posterior_rivals import own_images
from fewstep.card import write_atomically
from fewstep.ranges import POSITIVE, number, whole
from trainer.methods.rtb import TrajectoryBalance, evaluate
from trainer.run.draws import seeded
from trainer.settings import PosteriorConfig

OFF = 1e9  # a limit that nothing reaches
FREE = ("work",)
COLUMNS = {
    "method": "row", "below": "nats below", "judged": "held-out accuracy", "distance_ratio": "distance ratio",
    "gap": "log Z - ELBO", "ess": "ESS", "cpu_s": "train CPU s",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One run: the switches of trajectory balance, and what it is run with."""

    config: PosteriorConfig
    updates: int
    batch: int = 128
    levels: int = 20
    width: int = WIDTH
    rank: int = RANK


def rows_of(args: argparse.Namespace) -> dict[str, Row]:
    default = PosteriorConfig()
    base = Row(replace(default, adam=replace(default.adam, lr=args.lr)), args.updates)
    adam = base.config.adam
    switched: dict[str, dict[str, Any]] = {
        "fixed variance": {"learn_variance": False},
        "log Z learned": {"log_z": "learned"},
        "residuals not clipped": {"clip": OFF},
        "gradients not clipped": {"adam": replace(adam, clip=OFF)},
        "no warm-up of the rate": {"adam": replace(adam, warmup=0.0)},
        "dead zone 1": {"dead_zone": 1.0},
        "8 of 20 steps": {"levels": 8},
        "beta from 0.2, over half": {"beta_start": 0.2, "beta_until": 0.5},
        "mixed behaviours": {"mix": MIXED},
    }
    scaled = {
        "rank 1": replace(base, rank=1), "rank 16": replace(base, rank=16),
        "batch 32": replace(base, batch=32), "batch 512": replace(base, batch=512),
        "a third of the updates": replace(base, updates=max(args.updates // 3, 1)),
        "three times the updates": replace(base, updates=3 * args.updates),
        "10 levels": replace(base, levels=10), "40 levels": replace(base, levels=40),
        "prior of 35,000 weights": replace(base, width=64), "prior of 430,000 weights": replace(base, width=256),
    }  # fmt: skip
    ablated = {name: replace(base, config=replace(base.config, **changes)) for name, changes in switched.items()}
    return {"as in posterior.py": base, **ablated, **scaled}


def trained(task: DigitTask, row: Row, seed: int) -> dict[str, float]:
    """One run, judged by its own reference."""
    adapter, rng = task.new_adapter(700 + seed), seeded(800 + seed)
    images, y = torch.empty(row.batch, 1, 8, 8), torch.zeros(row.batch, dtype=torch.long)
    since = time.process_time()
    method = TrajectoryBalance(task.problem(adapter), adapter, row.config, task.like[0])
    for update in range(row.updates):
        method.update(images, y, update / row.updates, rng)
    spent = time.process_time() - since
    problem = task.problem(adapter.requires_grad_(False))
    numbers = evaluate(problem, task.like, torch.zeros(len(task.like), dtype=torch.long), 1.0, rng)
    found = judged(task, own_images(problem, task.like, rng))
    return {
        **found, "below": task.reference.log_reward - found["log_reward"],
        "distance_ratio": found["distance"] / task.split, "gap": task.reference.log_z - numbers["elbo"],
        "ess": numbers["ess"], "cpu_s": spent,
    }  # fmt: skip


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    began, asked = time.monotonic(), rows_of(args)
    args.work.mkdir(parents=True, exist_ok=True)
    kept = Kept(args.work / "runs.json", settings_of(args, FREE))

    @cache
    def task(levels: int, width: int, rank: int) -> DigitTask:
        return digit_task(argparse.Namespace(**{**vars(args), "levels": levels}), began, width, rank)

    found: dict[str, list[dict[str, float]]] = {}
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for name, row in asked.items():
            run = lambda row=row, seed=seed: trained(task(row.levels, row.width, row.rank), row, seed)  # noqa: E731
            found.setdefault(name, []).append(kept.get(f"{name}, seed {seed}", run))
            said(f"{name}, seed {seed}: {found[name][-1]}", began)
        rows = [{"task": "digits", "method": name, **summary(runs)} for name, runs in found.items()]
        write_rows(args, "posterior_ablation", rows, free=FREE)
    end(args.out, with_deviations(rows, COLUMNS))


@dataclass(frozen=True)
class Kept:
    """The runs that are finished, in a JSON that belongs to one set of settings."""

    path: Path
    settings: dict[str, Any]

    def get(self, name: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
        stored = json.loads(self.path.read_text()) if self.path.exists() else {"settings": self.settings, "runs": {}}
        if stored["settings"] != self.settings:
            raise SystemExit(f"error: {self.path} is of other settings; repeat them, or give another --work")
        if name not in stored["runs"]:
            stored["runs"][name] = make()
            write_atomically(self.path, (json.dumps(stored, indent=1) + "\n").encode())
        return stored["runs"][name]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=whole(1), default=3, help="runs of each row, with seeds from 0 (default %(default)s)")
    add("--updates", type=whole(1), default=120, help="of trajectory balance (default %(default)s)")
    add("--lr", type=number(POSITIVE), default=4e-3, help="of trajectory balance (default 0.004)")
    add("--digit", type=whole(0, 9), default=3, help="the class that the reward asks for (default %(default)s)")
    add("--prior-updates", type=whole(1), default=5000, help="of the digits' prior (default %(default)s)")
    add("--proposals", type=whole(100), default=12_000, help="of rejection (default %(default)s)")
    add("--images", type=whole(2), default=800, help="that a row is judged by (default %(default)s)")
    add("--work", type=Path, default=WORK / "runs/posterior-ablation", metavar="DIR",
        help="what is finished (default runs/posterior-ablation)")  # fmt: skip
    args = parsed(parser, "posterior-ablation")
    if args.smoke:
        args.seeds, args.updates, args.prior_updates, args.proposals, args.images = 1, 2, 30, 1000, 40
        args.work = args.work.with_name(args.work.name + "-smoke")
    return args


if __name__ == "__main__":
    main()
