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
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.posterior_ddpo import clipped_policy_gradient
from benchmarks.posterior_digits import Digits, make_digits
from benchmarks.posterior_ram import reinforce_adjoint_matching
from benchmarks.posterior_results import SHOWN, end, parsed, said, summary, with_deviations, write_rows
from benchmarks.posterior_rivals import Reference, best_of, dps, own_images, policy_gradient, prior_images, rejection
from fewstep.adapters import Adapter, adapted
from fewstep.analytic import Mixture
from fewstep.ancestral import Chain, ancestral_chain, denoising_errors
from fewstep.precond import Denoiser
from fewstep.ranges import POSITIVE, number, whole
from fewstep.schedule import karras_sigmas
from trainer.levels.conditioning import LEVEL_FEATURES, level_features
from trainer.methods.rtb import Problem, TrajectoryBalance, evaluate, own_steps, start, walk
from trainer.methods.tilted import prior_pool, tilted_regression
from trainer.rewards.classes import class_reward
from trainer.run.draws import Draws, seeded
from trainer.settings import BehaviourMix, PosteriorConfig

SIGMA_MIN, SIGMA_MAX = 0.05, 10.0  # of the digits' chain
RANK = 4
STEPS_OF_DPS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
EVALUATED = 256  # rows of a batch where nothing is trained
CLOSED_COLUMNS = {
    "task": "task", "method": "method", "mean_error": "|mean error|", "cov_error": "|cov error|", "mode_tv": "mode TV",
    "weighted_tv": "weighted TV", "log_z_error": "IS log Z error", "gap": "log Z - ELBO", "ess": "ESS",
}  # fmt: skip
DIGIT_COLUMNS = {
    "method": "method", "log_reward": "E[log r]", "accuracy": "accuracy", "judged": "judged", "distance": "distance",
    "pairwise": "pairwise", "elbo": "ELBO", "log_z": "IS log Z", "eubo": "EUBO", "ess": "ESS", "nfe": "NFE",
    "cpu_s": "train CPU s",
}  # fmt: skip


# Closed forms


class Correction(nn.Module):
    """A perceptron of x and sigma beside the exact prior denoiser: what the posterior adds to it, 0 at first."""

    def __init__(self, prior: Mixture, steps: int) -> None:
        super().__init__()
        self.prior = prior
        last = nn.Linear(128, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Linear(2 + LEVEL_FEATURES, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), last)
        self.log_variance = nn.Parameter(torch.zeros(steps))

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        unit = x.flatten(1) / (1 + sigma[:, None] ** 2).sqrt()
        moved = self.body(torch.cat([unit, level_features(sigma)], dim=1))
        return self.prior.denoiser(x, sigma) + moved.view_as(x)


@dataclass(frozen=True)
class Closed:
    """A posterior in closed form."""

    name: str
    prior: Mixture
    posterior: Mixture
    log_z: float
    log_reward: Callable[[Tensor, Tensor], Tensor]
    chain: Chain


def closed_tasks(levels: dict[str, int]) -> list[Closed]:
    tight = Mixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    modes = np.array([[x, y] for x in range(-10, 11, 5) for y in range(-10, 11, 5)], float)
    many = Mixture(np.full(25, 1 / 25), modes, np.repeat(0.3 * np.eye(2)[None], 25, axis=0))
    return [
        _measured("gaussian", tight, np.array([[1.0, 0.5]]), 1.5, 0.5, 20.0, levels["gaussian"]),
        _measured("mixture", many, np.array([[1.0, 1.0]]) / math.sqrt(2), 3.0, 2.0, 80.0, levels["mixture"]),
    ]


def _measured(
    name: str, prior: Mixture, matrix: np.ndarray, y: float, std: float, sigma_max: float, levels: int
) -> Closed:
    posterior, log_z = prior.observed(matrix, np.array([y]), np.array([[std**2]]))
    row = torch.from_numpy(matrix[0]).float()
    constant = 0.5 * math.log(2 * math.pi * std**2)
    log_reward = lambda images, _: -((images.flatten(1) @ row - y) ** 2) / (2 * std**2) - constant  # noqa: E731
    sigmas = karras_sigmas(levels, SIGMA_MIN, sigma_max)
    rng = np.random.default_rng(0)
    data = torch.from_numpy(prior.sample(20_000, rng)).float().view(-1, 1, 1, 2)
    errors = denoising_errors(prior.denoiser, data, sigmas, lambda i: seeded(i).normal_like(data))
    return Closed(name, prior, posterior, log_z, log_reward, ancestral_chain(sigmas, "opt", errors))


def closed_problem(task: Closed, network: Correction) -> Problem:
    prior = lambda x, sigma, _: task.prior.denoiser(x, sigma)  # noqa: E731
    return Problem(prior, network, task.chain, task.log_reward, network.log_variance)


def closed_rows(task: Closed, args: argparse.Namespace, began: float) -> list[dict[str, Any]]:
    like = torch.empty(args.closed_images, 1, 1, 2)
    config = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=4e-3))
    trained = {"RTB": config}
    if len(task.prior.weights) == 1:  # a mixture takes its time
        trained["RTB, mixed behaviours"] = replace(config, mix=MIXED)
        trained["RTB, fixed variance"] = replace(config, learn_variance=False)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        for name, chosen in trained.items():
            torch.manual_seed(seed)
            network, rng = Correction(task.prior, task.chain.steps), seeded(100 + seed)
            problem = closed_problem(task, network)
            data = (
                torch.from_numpy(task.prior.sample(args.batch, np.random.default_rng(seed))).float().view(-1, 1, 1, 2)
            )
            method, y = TrajectoryBalance(problem, network, chosen, like[0]), torch.zeros(args.batch, dtype=torch.long)
            for update in range(args.closed_updates):
                method.update(data, y, update / args.closed_updates, rng)
            many = torch.zeros(len(like), dtype=torch.long)
            numbers = evaluate(problem, like, many, 1.0, rng)
            weighted, images = _weighted_images(problem, like, rng)
            found.setdefault(name, []).append({
                **_closed_errors(task, images, weighted),
                "log_z_error": abs(numbers["log_z"] - task.log_z), "gap": task.log_z - numbers["elbo"],
                "ess": numbers["ess"],
            })  # fmt: skip
        network, rng = Correction(task.prior, task.chain.steps), seeded(200 + seed)
        problem = closed_problem(task, network)
        found.setdefault("DPS, scale 1", []).append(_closed_errors(task, dps(problem, like, task.log_reward, 1.0, rng)))
        found.setdefault("prior", []).append(_closed_errors(task, prior_images(problem, like, len(like), rng)[0]))
        said(f"{task.name}, seed {seed}", began)
    return [{"task": task.name, "method": name, **summary(runs)} for name, runs in found.items()]


def _weighted_images(problem: Problem, like: Tensor, rng: Draws) -> tuple[Tensor, Tensor]:
    """Importance weights [B] of the posterior's trajectories, that sum to 1, and their images."""
    own = walk(problem, torch.zeros(len(like), dtype=torch.long), start(problem, like, rng), own_steps(problem, rng))
    return (-own.residual(1.0)).softmax(dim=0), own.images


def _closed_errors(task: Closed, images: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """Of the mean and covariance, largest entries; of the mass of modes, if there are some, total variation, and again
    with importance weights."""
    exact_mean = task.posterior.weights @ task.posterior.means
    gaps = task.posterior.means - exact_mean
    spread = task.posterior.covariances + gaps[:, :, None] * gaps[:, None, :]
    exact_cov = np.einsum("k,kij->ij", task.posterior.weights, spread)
    values = images.flatten(1).double().numpy()
    errors = {
        "mean_error": float(np.abs(values.mean(axis=0) - exact_mean).max()),
        "cov_error": float(np.abs(np.cov(values, rowvar=False) - exact_cov).max()),
    }
    if len(task.prior.weights) == 1:
        return errors
    even = torch.full((len(images),), 1 / len(images))
    errors["mode_tv"] = _mode_tv(task, images, even)
    return errors if weights is None else {**errors, "weighted_tv": _mode_tv(task, images, weights)}


def _mode_tv(task: Closed, images: Tensor, weights: Tensor) -> float:
    """Total variation between the weights of the posterior's modes and the mass of images nearest to them."""
    modes = torch.from_numpy(task.posterior.means).float()
    nearest = torch.cdist(images.flatten(1), modes).argmin(dim=1)
    mass = torch.zeros(len(modes)).index_add_(0, nearest, weights.float())
    return float((mass - torch.from_numpy(task.posterior.weights).float()).abs().sum() / 2)


# Digits

MIXED = BehaviourMix(0.6, explore=0.1, replay=0.1, prior=0.2)


@dataclass(frozen=True)
class DigitTask:
    digits: Digits
    digit: int
    problem: Callable[[Adapter], Problem]
    posterior: Callable[[Adapter], Denoiser]
    new_adapter: Callable[[int], Adapter]
    reference: Reference
    like: Tensor  # [images, 1, 8, 8]: how many a row is judged by
    split: float  # distance of the reference's halves

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        accepted = self.reference.accepted
        return accepted[: len(self.like)], accepted[len(self.like) : 2 * len(self.like)]


def digit_task(args: argparse.Namespace, began: float) -> DigitTask:
    digits = make_digits(args.prior_updates, 1500)
    said(f"prior and classifiers; accuracy of classifier and judge {digits.accuracy}", began)
    denoiser = Denoiser(digits.prior, digits.sigma_data)
    sigmas = karras_sigmas(args.levels, SIGMA_MIN, SIGMA_MAX)
    errors = denoising_errors(denoiser, digits.images, sigmas, lambda i: seeded(i).normal_like(digits.images))
    chain = ancestral_chain(sigmas, "opt", errors)
    reward = class_reward(digits.classifier, [args.digit])
    no_label = lambda x, sigma, _: denoiser(x, sigma)  # noqa: E731
    posterior = lambda adapter: Denoiser(adapted(digits.prior, adapter), digits.sigma_data)  # noqa: E731

    def problem(adapter: Adapter) -> Problem:
        told = posterior(adapter)
        return Problem(no_label, lambda x, sigma, _: told(x, sigma), chain, clipped, adapter.log_variance)

    def clipped(images: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return reward(images, y).clamp(min=-20)

    new = lambda seed: Adapter(digits.prior, RANK, chain.steps, torch.Generator().manual_seed(seed))  # noqa: E731
    like = torch.empty(EVALUATED, 1, 8, 8)
    reference = rejection(problem(new(0)), like, args.proposals, seeded(1))
    count = min(args.images, len(reference.accepted) // 2)
    said(f"{len(reference.accepted)} of {args.proposals} proposals accepted, log Z {reference.log_z:.3f}", began)
    split = digits.distance(reference.accepted[:count], reference.accepted[count : 2 * count])
    return DigitTask(digits, args.digit, problem, posterior, new, reference, torch.empty(count, 1, 8, 8), split)


def judged(task: DigitTask, images: Tensor) -> dict[str, float]:
    """What images alone say."""
    digits, chosen = task.digits, task.problem(task.new_adapter(0))
    log_reward = chosen.log_reward(images, torch.zeros(len(images), dtype=torch.long))
    right = [
        float((net(images).argmax(dim=1) == task.digit).float().mean()) for net in (digits.classifier, digits.judge)
    ]
    flat = images[:1000].flatten(1)
    return {
        "log_reward": float(log_reward.mean()), "accuracy": right[0], "judged": right[1],
        "distance": digits.distance(images, task.halves[0]),
        "pairwise": float(torch.pdist(flat).mean()),
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
