"""Posteriors p(x) r(x) / Z against their exact truth: relative trajectory balance and its rivals on one chain.

    python benchmarks/posterior.py                # about a quarter of an hour of one core
    python benchmarks/posterior.py --smoke        # seconds; proves that it runs

gaussian: two dimensions, a linear measurement; everything is known in closed form.
mixture: 25 modes, a linear measurement; the posterior is a mixture, too.
digits: 8x8 digits of one class by a classifier's probability. The reference is rejection from the prior's own chain,
which is exact as r <= 1: a method that beats its E[log r] has left the posterior. Distances are Fréchet distances in
features of a second classifier, which no method sees; "split" is that of one half of the reference to the other.
Every trained row is a mean over seeds of training, with the standard deviation; the prior is one. Rows without
training have seeds of sampling. The step of DPS is the best of a list by the distance to the reference.
"""

from fewstep import extras

extras.name_missing()

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_closed import closed_rows, closed_tasks
from benchmarks.posterior_ddpo import clipped_policy_gradient
from benchmarks.posterior_digit_task import EVALUATED, SIGMA_MAX, SIGMA_MIN, DigitTask, digit_task, judged
from benchmarks.posterior_ram import reinforce_adjoint_matching
from benchmarks.posterior_results import SHOWN, end, parsed, said, summary, with_deviations, write_rows
from benchmarks.posterior_rivals import best_of, dps, own_images, policy_gradient, prior_images
from fewstep.adapters import Adapter
from fewstep.ranges import POSITIVE, number, whole
from trainer.methods.rtb import TrajectoryBalance, evaluate
from trainer.methods.tilted import prior_pool, tilted_regression
from trainer.rewards.classes import class_reward
from trainer.run.draws import Draws, seeded
from trainer.settings import PosteriorConfig

STEPS_OF_DPS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
CLOSED_COLUMNS = {
    "task": "task", "method": "method", "mean_error": "|mean error|", "cov_error": "|cov error|", "mode_tv": "mode TV",
    "weighted_tv": "weighted TV", "log_z_error": "IS log Z error", "gap": "log Z - ELBO", "ess": "ESS",
}  # fmt: skip
DIGIT_COLUMNS = {
    "method": "method", "log_reward": "E[log r]", "accuracy": "accuracy", "judged": "judged", "distance": "distance",
    "pairwise": "pairwise", "elbo": "ELBO", "log_z": "IS log Z", "eubo": "EUBO", "ess": "ESS", "nfe": "NFE",
    "cpu_s": "train CPU s",
}  # fmt: skip


def trainers(args: argparse.Namespace) -> dict[str, Callable[[DigitTask, Adapter, Draws], None]]:
    config = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=args.lr))
    tilted = lambda updates: lambda task, adapter, rng: _tilt(task, adapter, updates, args, rng)  # noqa: E731

    def tilted_then_rtb(task: DigitTask, adapter: Adapter, rng: Draws) -> None:
        _tilt(task, adapter, args.tilted_updates * 2 // 3, args, rng)
        _balance(task, adapter, config, args.updates // 2, args.batch, rng)

    return {
        "RTB": lambda task, adapter, rng: _balance(task, adapter, config, args.updates, args.batch, rng),
        "KL-RL, corrected": lambda task, adapter, rng: policy_gradient(
            task.problem(adapter), adapter, torch.empty(args.batch, 1, 8, 8), args.updates, config.adam, rng
        ),
        "DDPO": lambda task, adapter, rng: clipped_policy_gradient(
            task.problem(adapter), adapter, torch.empty(args.batch, 1, 8, 8), args.updates // 2, config.adam, rng
        ),
        "DPOK": lambda task, adapter, rng: clipped_policy_gradient(
            task.problem(adapter),
            adapter,
            torch.empty(args.batch, 1, 8, 8),
            args.updates // 2,
            config.adam,
            rng,
            alpha=1.0,
            normalised=False,
        ),
        "RAM": lambda task, adapter, rng: reinforce_adjoint_matching(
            task.problem(adapter),
            adapter,
            torch.empty(args.batch, 1, 8, 8),
            args.updates,
            config.adam,
            rng,
            sigma_data=task.digits.sigma_data,
        ),
        "tilted denoising": tilted(args.tilted_updates),
        "tilted denoising, then RTB": tilted_then_rtb,
    }


def _balance(task: DigitTask, adapter: Adapter, config: PosteriorConfig, updates: int, batch: int, rng: Draws) -> None:
    method = TrajectoryBalance(task.problem(adapter), adapter, config, task.like[0])
    images, y = torch.empty(batch, 1, 8, 8), torch.zeros(batch, dtype=torch.long)
    for update in range(updates):
        method.update(images, y, update / updates, rng)


def _tilt(task: DigitTask, adapter: Adapter, updates: int, args: argparse.Namespace, rng: Draws) -> None:
    problem = task.problem(adapter)
    y = torch.zeros(EVALUATED, dtype=torch.long)
    pool = prior_pool(problem, torch.empty(EVALUATED, 1, 8, 8), y, args.pool, rng)
    tilted_regression(task.posterior(adapter), adapter, pool, (SIGMA_MIN, SIGMA_MAX), updates, rng)


Kept = Callable[[list[dict[str, Any]], dict[str, Tensor], dict[str, Any]], None]


def digit_rows(args: argparse.Namespace, began: float, keep: Kept) -> None:
    """keep: is given the rows, the first images of every method, and facts of the reference, after every seed."""
    task = digit_task(args, began)
    calls = args.levels
    found: dict[str, list[dict[str, float]]] = {}
    shown: dict[str, Tensor] = {}
    untrained = task.problem(task.new_adapter(0))
    seeds = range(args.seeds)

    def add(name: str, seed: int, images: Tensor, **more: float) -> None:
        found.setdefault(name, []).append({**judged(task, images), **more})
        if seed == 0:
            shown[name] = images[:SHOWN]
        said(f"{name}, seed {seed}: {found[name][-1]}", began)

    acceptance = task.reference.acceptance
    add("rejection (the reference's other half)", 0, task.halves[1], log_z=task.reference.log_z, nfe=calls / acceptance)
    for seed in seeds:
        add("prior", seed, prior_images(untrained, task.like, len(task.like), seeded(300 + seed))[0], nfe=calls)
        for among in (4, 16):
            add(f"best of {among}", seed, best_of(untrained, task.like, among, seeded(400 + seed)), nfe=among * calls)
    reward = class_reward(task.digits.classifier, [args.digit])
    tuned = {}
    for scale in args.dps_steps:
        images = dps(untrained, task.like[:1000], reward, scale, seeded(500))
        if bool(images.isfinite().all()):  # large steps diverge
            tuned[scale] = task.digits.distance(images, task.halves[0])
    best = min(tuned, key=tuned.__getitem__)
    for seed in seeds:
        add("DPS, tuned", seed, dps(untrained, task.like, reward, best, seeded(600 + seed)), nfe=calls)
        add("DPS, scale 1", seed, dps(untrained, task.like, reward, 1.0, seeded(600 + seed)), nfe=calls)
    facts = {
        "acceptance": acceptance, "log_z": task.reference.log_z, "log_reward": task.reference.log_reward,
        "split_distance": task.split,
        "accepted": len(task.reference.accepted), "judged_by": len(task.like),
        "classifier_accuracy": task.digits.accuracy, "dps_distances": {str(k): v for k, v in tuned.items()},
        "dps_scale": best,
        "parameters": {
            "prior": sum(p.numel() for p in task.digits.prior.parameters()),
            "adapter": sum(p.numel() for p in task.new_adapter(0).parameters()),
        },
    }  # fmt: skip
    for seed in seeds:
        for name, train in trainers(args).items():
            if args.only and name not in args.only:
                continue
            adapter, rng = task.new_adapter(700 + seed), seeded(800 + seed)
            since = time.process_time()
            train(task, adapter, rng)
            spent = time.process_time() - since
            adapter.requires_grad_(False)
            problem, y = task.problem(adapter), torch.zeros(len(task.like), dtype=torch.long)
            numbers = evaluate(problem, task.like, y, 1.0, rng)
            kept = {key: numbers[key] for key in ("elbo", "log_z", "eubo", "ess")}
            add(name, seed, own_images(problem, task.like, rng), **kept, nfe=calls, cpu_s=spent)
        keep([{"task": "digits", "method": name, **summary(runs)} for name, runs in found.items()], shown, facts)


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    more: dict[str, Any] = {}
    if "closed" in args.parts:
        for task in closed_tasks({"gaussian": args.gaussian_levels, "mixture": args.mixture_levels}):
            rows += closed_rows(task, args, began)
    if "digits" in args.parts:
        closed = list(rows)

        def keep(found: list[dict[str, Any]], shown: dict[str, Tensor], facts: dict[str, Any]) -> None:
            rows[:] = closed + found
            more["reference"] = facts
            write_rows(args, "posterior", rows, shown, **more)

        digit_rows(args, began, keep)
    write_rows(args, "posterior", rows, **more)
    tables = []
    if closed := [row for row in rows if row["task"] != "digits"]:
        tables.append(with_deviations(closed, CLOSED_COLUMNS))
    if digits := [row for row in rows if row["task"] == "digits"]:
        tables += [with_deviations(digits, DIGIT_COLUMNS), f"reference: {more['reference']}"]
    end(args.out, *tables)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--parts",
        nargs="+",
        choices=("closed", "digits"),
        default=["closed", "digits"],
        help="cases with a closed form, digits, or both (default both)",
    )
    add("--only", nargs="+", metavar="METHOD", help="of the trained ones on digits, these alone")
    add("--seeds", type=whole(1), default=3, help="runs of each method, with seeds from 0 (default %(default)s)")
    add("--levels", type=whole(3), default=20, help="of the digits' chain: network calls per image (default 20)")
    add(
        "--gaussian-levels",
        type=whole(3),
        default=20,
        help="network calls per image of the Gaussian case (default %(default)s)",
    )
    add(
        "--mixture-levels",
        type=whole(3),
        default=30,
        help="network calls per image of the mixture case (default %(default)s)",
    )
    add("--digit", type=whole(0, 9), default=3, help="the class that the reward asks for (default %(default)s)")
    add("--updates", type=whole(1), default=200, help="of a posterior (default 200)")
    add(
        "--closed-updates",
        type=whole(1),
        default=300,
        help="of a posterior of the cases with a closed form (default %(default)s)",
    )
    add("--closed-images", type=whole(2), default=4000, help="of these cases, behind a row (default %(default)s)")
    add("--tilted-updates", type=whole(3), default=600, help="of tilted denoising (default %(default)s)")
    add("--prior-updates", type=whole(1), default=5000, help="of the digits' prior (default %(default)s)")
    add("--lr", type=number(POSITIVE), default=4e-3, help="of the posteriors of digits (default 0.004)")
    add("--batch", type=whole(2), default=128, help="images per update (default %(default)s)")
    add("--proposals", type=whole(100), default=40_000, help="of rejection (default 40000)")
    add("--pool", type=whole(256), default=24_000, help="samples of the prior for tilted denoising")
    add("--images", type=whole(2), default=2000, help="that a row is judged by (default 2000)")
    add("--threads", type=whole(1), default=1, help="of PyTorch (default %(default)s)")
    args = parsed(parser, "posterior")
    args.dps_steps = list(STEPS_OF_DPS)
    if args.smoke:
        args.seeds, args.levels, args.updates, args.closed_updates = 2, 5, 3, 3
        args.gaussian_levels, args.mixture_levels = 5, 5
        args.tilted_updates, args.prior_updates, args.proposals, args.pool, args.closed_images = 6, 300, 2000, 256, 200
        args.images, args.dps_steps = 100, [0.5, 1.0]
    return args


if __name__ == "__main__":
    main()
