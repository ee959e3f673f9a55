"""Posteriors in few steps: routes from a prior and a reward to a student of one to eight calls, on 8x8 digits.

    python benchmarks/posterior_few_steps.py            # about five minutes of one core a seed
    python benchmarks/posterior_few_steps.py --smoke    # seconds; proves that it runs

Class 3 by a classifier, against rejection from the prior's chain, which is exact. Columns are those of
`benchmarks/posterior.py`. Teacher: trajectory balance on the prior's chain of 20 calls. Then

two stages  a teacher of all levels from the chain's images, and DPDM with it, from the prior's student; also with
            images drawn by importance weights
one stage   DPDM of the prior's student with the prior's teacher, tilted by the gradient of r at every level, trained on
            the student's own outputs
own chain   trajectory balance on the student's own steps; weighted: its images drawn by importance weights
best of n   of images of the prior's student, at n times its calls
"""

from fewstep import extras

extras.name_missing()

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_digit_task import DigitTask, digit_task, judged
from benchmarks.posterior_results import SHOWN, end, parsed, said, summary, with_deviations, write_rows
from benchmarks.posterior_rivals import best_of, own_images
from fewstep.adapters import Adapter, adapted, merged
from fewstep.ancestral import denoising_errors, sample_ancestral, student_chain
from fewstep.precond import Denoiser
from fewstep.ranges import POSITIVE, number, whole
from fewstep.samplers import sample_dpdm
from fewstep.schedule import karras_sigmas
from trainer.methods.dpdm import Parts, Student
from trainer.methods.posterior_student import (
    FewStepPrior,
    Pool,
    adapter_parts,
    interpolated,
    pool_batches,
    tilted_teacher,
)
from trainer.methods.rtb import Problem, TrajectoryBalance, evaluate
from trainer.methods.tilted import TILTED, posterior_pool, tilted_regression
from trainer.rewards.classes import class_reward
from trainer.run.draws import seeded
from trainer.settings import AdamConfig, PosteriorConfig, StudentConfig

CALLS = (1, 2, 4, 8)
RANK = 4
COLUMNS = {
    "method": "method", "nfe": "calls", "log_reward": "E[log r]", "judged": "judged", "distance": "distance",
    "pairwise": "pairwise", "elbo": "ELBO", "log_z": "IS log Z", "ess": "ESS", "cpu_s": "train CPU s",
}  # fmt: skip
# Small levels of digits learn from the student's own trajectories alone, and need a high floor (docs/log.md).
WHOLE = StudentConfig(
    steps=CALLS, floor=0.2, simulate=1.0, simulate_from=0.3, auxiliary_sees_level=False,
    adam=AdamConfig(2e-4, (0.0, 0.99), decay_from=0.4, final=0.05),
    auxiliary_adam=AdamConfig(1e-3, (0.0, 0.99), decay_from=0.4, final=0.05),
)  # fmt: skip


def distilled(parts: Parts, config: StudentConfig, pool: Pool, updates: int, seed: int, weighted: bool = False) -> None:
    """Train the student of `parts` in place."""
    method, rng = Student.of_parts(parts, config, "cpu"), seeded(seed)
    batches = pool_batches(pool, 128, seed, weighted, 0)
    for update in range(updates):
        images, _ = next(batches)
        method.update(images, None, update / updates, rng)  # pyright: ignore[reportArgumentType]  # no classes


def images_of(student: Denoiser, calls: int, like: Tensor, seed: int) -> Tensor:
    rng = seeded(seed)
    with torch.no_grad():
        return sample_dpdm(student, lambda _: rng.normal_like(like), WHOLE.level_lists[calls]).images


def even(images: Tensor) -> Pool:
    return images, torch.zeros(len(images)), torch.zeros(len(images), dtype=torch.long)


def student_of_prior(task: DigitTask, updates: int) -> Any:
    """The few-step student of the prior, all of its weights trained; frozen at the end."""
    prior, sigma_data = task.digits.prior, task.digits.sigma_data
    student, auxiliary = (copy.deepcopy(prior).requires_grad_(True) for _ in range(2))
    parts = Parts(
        Denoiser(prior, sigma_data), Denoiser(student, sigma_data), Denoiser(auxiliary, sigma_data),
        {"student": student, "auxiliary": auxiliary},
    )  # fmt: skip
    distilled(parts, WHOLE, even(task.digits.images), updates, seed=50)
    return student.requires_grad_(False)


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    began = time.monotonic()
    task = digit_task(args, began)
    begun = student_of_prior(task, args.student_updates)
    said("the prior's student", began)
    found: dict[str, list[dict[str, float]]] = {}
    shown: dict[str, Tensor] = {}

    def add(name: str, seed: int, images: Tensor, **more: float) -> None:
        found.setdefault(name, []).append({**judged(task, images), **more})
        if seed == 0:
            shown[name] = images[:SHOWN]
        said(f"{name}, seed {seed}: {found[name][-1]}", began)

    acceptance = task.reference.acceptance
    add("rejection (other half)", 0, task.halves[1], nfe=args.levels / acceptance, log_z=task.reference.log_z)
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        one_seed(task, begun, args, seed, add)
        rows = [{"task": "digits", "method": name, **summary(runs)} for name, runs in found.items()]
        reference = {
            "acceptance": acceptance, "log_z": task.reference.log_z, "log_reward": task.reference.log_reward,
            "split_distance": task.split, "judged_by": len(task.like), "seeds_done": seed + 1,
        }  # fmt: skip
        write_rows(args, "posterior_few_steps", rows, shown, reference=reference)
    end(args.out, with_deviations(rows, COLUMNS))


def one_seed(task: DigitTask, begun: Any, args: argparse.Namespace, seed: int, add: Callable[..., None]) -> None:
    sigma_data, like = task.digits.sigma_data, task.like
    few = lambda network: Denoiser(network, sigma_data)  # noqa: E731
    add("prior's student, 4 calls", seed, images_of(few(begun), 4, like, 300 + seed), nfe=4)
    problem = own_problem(task, begun, 4, Adapter(begun, RANK, 3))
    add("prior's student, best of 8, 4 calls", seed, best_of(problem, like, 8, seeded(seed)), nfe=32)
    if "two" in args.routes:
        from_chain(task, begun, args, seed, add)
    if "one" in args.routes:
        one_stage(task, begun, args, seed, add)
    for calls in (4, 8) if "own" in args.routes else ():
        own_chain(task, begun, calls, args, seed, add)


def from_chain(task: DigitTask, begun: Any, args: argparse.Namespace, seed: int, add: Callable[..., None]) -> None:
    like, since = task.like, time.process_time()
    adapter = task.new_adapter(700 + seed)
    balance(task.problem(adapter), adapter, args.updates, args.lr, 800 + seed)
    problem, rng = task.problem(adapter.requires_grad_(False)), seeded(900 + seed)
    taught = time.process_time() - since
    monitored = lambda of: {key: numbers_of(of, like, rng)[key] for key in ("elbo", "log_z", "ess")}  # noqa: E731
    add("RTB", seed, own_images(problem, like, rng), **monitored(problem), nfe=args.levels, cpu_s=taught)
    rows = torch.empty(256, *like.shape[1:])
    pool = posterior_pool(problem, rows, torch.zeros(256, dtype=torch.long), args.pool, rng)
    for weighted in (False, True):
        two_stages(task, begun, adapter, pool, weighted, args, seed, taught, add)


def two_stages(
    task: DigitTask, begun: Any, adapter: Adapter, pool: Pool, weighted: bool, args: argparse.Namespace, seed: int,
    taught: float, add: Callable[..., None],
) -> None:  # fmt: skip
    """With the chain's images as they are, the prior's student and the teacher as the start are compared."""
    since, sigma_data, like = time.process_time(), task.digits.sigma_data, task.like
    network = merged(task.digits.prior, adapter).requires_grad_(False)
    fresh = Adapter(network, RANK, 0, torch.Generator().manual_seed(seed))
    weights = pool[1] if weighted else torch.zeros_like(pool[1])
    chain = task.problem(adapter).chain
    levels = (chain.sigmas[-1], chain.sigmas[0])
    teacher_of = Denoiser(adapted(network, fresh), sigma_data)
    tilted_regression(
        teacher_of, fresh, (pool[0], weights, pool[2]), levels, args.consolidate, seeded(seed), adam=TILTED
    )
    teacher: Any = merged(network, fresh).requires_grad_(False)
    spent = time.process_time() - since
    name = "two stages, weighted" if weighted else "two stages"
    rng = seeded(950 + seed)
    with torch.no_grad():
        images = sample_ancestral(Denoiser(teacher, sigma_data), lambda _: rng.normal_like(like), chain).images
    add(f"{name}: the teacher's chain", seed, images, nfe=args.levels, cpu_s=taught + spent)
    for start in (begun, None) if not weighted else (begun,):
        since = time.process_time()
        generator = torch.Generator().manual_seed(60 + seed)
        begin = FewStepPrior(start, task.digits.prior) if start is not None else None  # pyright: ignore[reportArgumentType]
        parts = adapter_parts(teacher, RANK, sigma_data, 0, generator, begin, sees_level=False)
        distilled(parts, by_adapters(args), pool, args.distil_updates, 70 + seed, weighted)
        total = taught + spent + time.process_time() - since
        whole = merged(start or teacher, parts.trained["student"])  # pyright: ignore[reportArgumentType]
        for calls in CALLS if start is not None and not weighted else (4,):
            images = images_of(Denoiser(whole, sigma_data), calls, like, 400 + seed)  # pyright: ignore[reportArgumentType]
            suffix = "" if start is not None else ", from the teacher"
            add(f"{name}{suffix}, {calls} calls", seed, images, nfe=calls, cpu_s=total)


def one_stage(task: DigitTask, begun: Any, args: argparse.Namespace, seed: int, add: Callable[..., None]) -> None:
    since, sigma_data = time.process_time(), task.digits.sigma_data
    denoiser = Denoiser(task.digits.prior, sigma_data)
    sigmas = karras_sigmas(20, 0.02, 80.0)
    data = task.digits.images
    errors = denoising_errors(denoiser, data, sigmas, lambda i: seeded(i).normal_like(data))
    reward = class_reward(task.digits.classifier, [args.digit])
    teacher = tilted_teacher(denoiser, reward, interpolated(sigmas, errors), seeded(80 + seed), samples=args.samples)
    prior: Any = task.digits.prior  # a perceptron, not of the networks that checkpoints hold
    generator = torch.Generator().manual_seed(60 + seed)
    parts = adapter_parts(prior, RANK, sigma_data, 0, generator, FewStepPrior(begun, prior), sees_level=False)
    parts = replace(parts, teacher=teacher)
    # Noised data are inputs of the prior's student; a tilted one meets its own outputs, so it is trained on these.
    config = replace(by_adapters(args), simulate=1.0, simulate_from=0.0)
    distilled(parts, config, even(data), args.distil_updates, 70 + seed)
    whole: Any = merged(begun, parts.trained["student"])  # pyright: ignore[reportArgumentType]
    spent = time.process_time() - since
    images = images_of(Denoiser(whole, sigma_data), 4, task.like, 400 + seed)
    add("one stage, 4 calls", seed, images, nfe=4, cpu_s=spent)


def own_chain(
    task: DigitTask, begun: Any, calls: int, args: argparse.Namespace, seed: int, add: Callable[..., None]
) -> None:
    since, rng = time.process_time(), seeded(970 + seed)
    adapter = Adapter(begun, RANK, calls - 1, torch.Generator().manual_seed(700 + seed))
    problem = own_problem(task, begun, calls, adapter)
    balance(problem, adapter, args.own_updates, args.lr, 800 + seed)
    adapter.requires_grad_(False)
    spent, numbers = time.process_time() - since, numbers_of(problem, task.like, rng)
    kept = {key: numbers[key] for key in ("elbo", "log_z", "ess")}
    add(f"own chain, {calls} calls", seed, own_images(problem, task.like, rng), **kept, nfe=calls, cpu_s=spent)
    rows = torch.empty(256, *task.like.shape[1:])
    images, log_weights, _ = posterior_pool(problem, rows, torch.zeros(256, dtype=torch.long), 8 * len(task.like), rng)
    drawn = torch.multinomial(log_weights.softmax(0), len(task.like), replacement=True, generator=rng.generator)
    add(f"own chain, {calls} calls, weighted, 8 drawn for 1", seed, images[drawn], nfe=8 * (2 * calls - 1), cpu_s=spent)


def own_problem(task: DigitTask, begun: Any, calls: int, adapter: Adapter) -> Problem:
    """The prior is the few-step student here; r is that of the task."""
    chain, sigma_data = student_chain(WHOLE.level_lists[calls]), task.digits.sigma_data
    prior, told = Denoiser(begun, sigma_data), Denoiser(adapted(begun, adapter), sigma_data)
    log_reward = task.problem(task.new_adapter(0)).log_reward
    return Problem(
        lambda x, sigma, _: prior(x, sigma), lambda x, sigma, _: told(x, sigma), chain, log_reward, adapter.log_variance
    )


def balance(problem: Problem, adapter: Adapter, updates: int, lr: float, seed: int) -> None:
    config = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=lr))
    images, y, rng = torch.empty(128, 1, 8, 8), torch.zeros(128, dtype=torch.long), seeded(seed)
    method = TrajectoryBalance(problem, adapter, config, images[0])
    for update in range(updates):
        method.update(images, y, update / updates, rng)


def numbers_of(problem: Problem, like: Tensor, rng: Any) -> dict[str, float]:
    return evaluate(problem, like, torch.zeros(len(like), dtype=torch.long), 1.0, rng)


def by_adapters(args: argparse.Namespace) -> StudentConfig:
    rate = AdamConfig(args.distil_lr, (0.0, 0.99), warmup=0.05, decay_from=0.5, final=0.02, clip=1.0)
    return replace(WHOLE, adam=replace(rate, lr=args.distil_lr / 4), auxiliary_adam=rate)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--routes",
        nargs="+",
        choices=("two", "one", "own"),
        default=["two", "one", "own"],
        help="two stages, one stage, a student's own chain (default all)",
    )
    add("--seeds", type=whole(1), default=3, help="runs of each route, with seeds from 0 (default %(default)s)")
    add("--levels", type=whole(3), default=20, help="of the prior's chain: network calls per image (default 20)")
    add("--digit", type=whole(0, 9), default=3, help="the class that the reward asks for (default %(default)s)")
    add("--updates", type=whole(1), default=300, help="of trajectory balance on the prior's chain (default 300)")
    add("--own-updates", type=whole(1), default=400, help="of trajectory balance on a student's chain (default 400)")
    add("--lr", type=number(POSITIVE), default=4e-3, help="of trajectory balance (default 0.004)")
    add("--pool", type=whole(256), default=8192, help="images of the posterior's chain (default 8192)")
    add(
        "--consolidate",
        type=whole(1),
        default=400,
        help="updates of a teacher on the images of a chain (default %(default)s)",
    )
    add("--student-updates", type=whole(1), default=5000, help="of the prior's student (default 5000)")
    add("--distil-updates", type=whole(1), default=1500, help="of the posterior's students (default 1500)")
    add("--distil-lr", type=number(POSITIVE), default=2e-3, help="of the posterior's students (default %(default)s)")
    add("--samples", type=whole(1), default=4, help="of E[r | x] in the one-stage route (default 4)")
    add("--prior-updates", type=whole(1), default=5000, help="of the digits' prior (default %(default)s)")
    add("--proposals", type=whole(100), default=20_000, help="of rejection (default 20000)")
    add("--images", type=whole(2), default=1000, help="that a row is judged by (default 1000)")
    args = parsed(parser, "posterior-few-steps")
    if args.smoke:
        args.seeds, args.levels, args.updates, args.own_updates, args.pool, args.consolidate = 1, 5, 3, 3, 256, 3
        args.student_updates, args.distil_updates, args.prior_updates, args.proposals, args.images = 5, 5, 300, 2000, 60
    return args


if __name__ == "__main__":
    main()
