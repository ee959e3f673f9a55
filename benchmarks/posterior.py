"""Posteriors p(x) r(x) / Z against their exact truth: relative trajectory balance and its rivals on one chain.

    python benchmarks/posterior.py                # about a quarter of an hour of one core
    python benchmarks/posterior.py --smoke        # seconds; proves that it runs

gaussian: two dimensions, a linear measurement; everything is known in closed form.
mixture: 25 modes, a linear measurement; the posterior is a mixture, too.
digits: 8x8 digits of one class by a classifier's probability. The reference is rejection from the prior's own chain,
which is exact as r <= 1: a method that beats its E[log r] has left the posterior. Distances are Fréchet distances in
features of a second classifier, which no method sees; "split" is that of one half of the reference to the other.
Every trained row is a mean over seeds of training, with the standard deviation; the prior is one. Rows without
training have seeds of sampling. The step of DPS is the best of a list by the distance to the reference; so is the rate
of every trained method with `--rates`.
"""

from fewstep import extras

extras.name_missing()

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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
from trainer.methods.tilted import TILTED, prior_pool, tilted_regression
from trainer.rewards.classes import class_reward
from trainer.run.draws import Draws, seeded
from trainer.settings import PosteriorConfig

SEARCH_SEED = 99  # of the searches for a rate
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


Train = Callable[[DigitTask, Adapter, Draws], None]


def trainers(args: argparse.Namespace, lr: float | None = None) -> dict[str, Train]:
    """lr: of all methods; None: --lr, and tilted denoising its own."""
    config = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=lr or args.lr))
    tilted_adam = replace(TILTED, lr=lr or TILTED.lr)
    rows = torch.empty(args.batch, 1, 8, 8)

    def tilt(task: DigitTask, adapter: Adapter, rng: Draws, updates: int = args.tilted_updates) -> None:
        y = torch.zeros(EVALUATED, dtype=torch.long)
        pool = prior_pool(task.problem(adapter), torch.empty(EVALUATED, 1, 8, 8), y, args.pool, rng)
        levels = (SIGMA_MIN, SIGMA_MAX)
        tilted_regression(task.posterior(adapter), adapter, pool, levels, updates, rng, adam=tilted_adam)

    def balance(task: DigitTask, adapter: Adapter, rng: Draws, updates: int = args.updates) -> None:
        method = TrajectoryBalance(task.problem(adapter), adapter, config, task.like[0])
        y = torch.zeros(args.batch, dtype=torch.long)
        for update in range(updates):
            method.update(rows, y, update / updates, rng)

    def tilt_and_balance(task: DigitTask, adapter: Adapter, rng: Draws) -> None:
        tilt(task, adapter, rng, args.tilted_updates * 2 // 3)
        balance(task, adapter, rng, args.updates // 2)

    def clipped(task: DigitTask, adapter: Adapter, rng: Draws, **more: Any) -> None:
        clipped_policy_gradient(task.problem(adapter), adapter, rows, args.updates // 2, config.adam, rng, **more)

    return {
        "RTB": balance,
        "KL-RL, corrected": lambda task, adapter, rng: policy_gradient(
            task.problem(adapter), adapter, rows, args.updates, config.adam, rng
        ),
        "DDPO": clipped,
        "DPOK": partial(clipped, alpha=1.0, normalised=False),
        "RAM": lambda task, adapter, rng: reinforce_adjoint_matching(
            task.problem(adapter), adapter, rows, args.updates, config.adam, rng, sigma_data=task.digits.sigma_data
        ),
        "tilted denoising": tilt,
        "tilted denoising, then RTB": tilt_and_balance,
    }


@dataclass(frozen=True)
class Trained:
    images: Tensor  # like task.like
    monitors: dict[str, float]
    cpu_s: float


def trained(task: DigitTask, train: Train, seed: int) -> Trained:
    adapter, rng = task.new_adapter(700 + seed), seeded(800 + seed)
    since = time.process_time()
    train(task, adapter, rng)
    spent = time.process_time() - since
    adapter.requires_grad_(False)
    problem, y = task.problem(adapter), torch.zeros(len(task.like), dtype=torch.long)
    numbers = evaluate(problem, task.like, y, 1.0, rng)
    monitors = {key: numbers[key] for key in ("elbo", "log_z", "eubo", "ess")}
    return Trained(own_images(problem, task.like, rng), monitors, spent)


Kept = Callable[[list[dict[str, Any]], dict[str, Tensor], dict[str, Any]], None]
Add = Callable[..., None]  # a row's name, the seed, its images, further columns


def digit_rows(args: argparse.Namespace, began: float, keep: Kept) -> None:
    """keep: is given the rows, the first images of every method, and facts of the reference, after every seed."""
    task = digit_task(args, began)
    found: dict[str, list[dict[str, float]]] = {}
    shown: dict[str, Tensor] = {}

    def add(name: str, seed: int, images: Tensor, **more: float) -> None:
        found.setdefault(name, []).append({**judged(task, images), **more})
        if seed == 0:
            shown[name] = images[:SHOWN]
        said(f"{name}, seed {seed}: {found[name][-1]}", began)

    acceptance, halves = task.reference.acceptance, task.halves
    add(
        "rejection (the reference's other half)", 0, halves[1], log_z=task.reference.log_z, nfe=args.levels / acceptance
    )
    distances = untrained_rows(task, args, add)
    methods, tried = searched(task, args, began) if args.rates else (trainers(args), {})
    facts = {
        "acceptance": acceptance, "log_z": task.reference.log_z, "log_reward": task.reference.log_reward,
        "split_distance": task.split,
        "accepted": len(task.reference.accepted), "judged_by": len(task.like),
        "classifier_accuracy": task.digits.accuracy, "dps_distances": said_distances(distances),
        "dps_scale": best(distances), "rate_distances": tried,
        "parameters": {
            "prior": sum(p.numel() for p in task.digits.prior.parameters()),
            "adapter": sum(p.numel() for p in task.new_adapter(0).parameters()),
        },
    }  # fmt: skip
    for seed in range(args.seeds):
        for name, train in methods.items():
            if not args.only or name in args.only:
                made = trained(task, train, seed)
                add(name, seed, made.images, **made.monitors, nfe=args.levels, cpu_s=made.cpu_s)
        keep([{"task": "digits", "method": name, **summary(runs)} for name, runs in found.items()], shown, facts)


def untrained_rows(task: DigitTask, args: argparse.Namespace, add: Add) -> dict[float, float]:
    """Rows of methods without training. Returns the distance of every step size of DPS."""
    untrained, calls = task.problem(task.new_adapter(0)), args.levels
    reward = class_reward(task.digits.classifier, [args.digit])
    distances = {
        scale: distance(task, dps(untrained, task.like[:1000], reward, scale, seeded(500))) for scale in args.dps_steps
    }
    for seed in range(args.seeds):
        add("prior", seed, prior_images(untrained, task.like, len(task.like), seeded(300 + seed))[0], nfe=calls)
        for among in (4, 16):
            add(f"best of {among}", seed, best_of(untrained, task.like, among, seeded(400 + seed)), nfe=among * calls)
        for name, scale in (("DPS, tuned", best(distances)), ("DPS, scale 1", 1.0)):
            add(name, seed, dps(untrained, task.like, reward, scale, seeded(600 + seed)), nfe=calls)
    return distances


def searched(
    task: DigitTask, args: argparse.Namespace, began: float
) -> tuple[dict[str, Train], dict[str, dict[str, float | str]]]:
    """Every trained method at the best of --rates, on a seed that no row uses; and the distances that decided."""
    chosen: dict[str, Train] = {}
    tried: dict[str, dict[str, float | str]] = {}
    for name in args.only or trainers(args):
        distances = {}
        for rate in args.rates:
            distances[rate] = distance(task, trained(task, trainers(args, rate)[name], SEARCH_SEED).images)
            said(f"{name} at {rate:g}: distance {distances[rate]:.3g}", began)
        chosen[name] = trainers(args, best(distances))[name]
        tried[name] = said_distances(distances)
    return chosen, tried


def distance(task: DigitTask, images: Tensor) -> float:
    """To half of the reference; infinite for a method that diverged."""
    return task.digits.distance(images, task.halves[0]) if bool(images.isfinite().all()) else math.inf


def best(distances: dict[float, float]) -> float:
    return min(distances, key=distances.__getitem__)


def said_distances(distances: dict[float, float]) -> dict[str, float | str]:
    """As JSON holds them."""
    return {f"{key:g}": value if math.isfinite(value) else "diverged" for key, value in distances.items()}


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
    add(
        "--rates",
        nargs="+",
        type=number(POSITIVE),
        default=[],
        metavar="RATE",
        help="instead of --lr: the rate of every trained method is the best of these, by the distance on another seed",
    )
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
