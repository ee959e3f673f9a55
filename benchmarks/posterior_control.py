"""Offline control as a posterior: a behaviour p(a | s) times exp(beta Q(s, a)), one diffusion policy that is told s.

    python benchmarks/posterior_control.py            # six minutes of one core
    python benchmarks/posterior_control.py --smoke    # seconds; proves that it runs

linear-quadratic: Q, the posterior, log Z(s) and the return of every policy are known in closed form
(benchmarks/posterior_linear_quadratic.py). Errors are the largest entry's, of the gain and the covariance of a | s:
without an error of sampling, as the trained chain's law is Gaussian, too. "of the chain": what the behaviour's chain
makes is tilted exactly; "exact": the behaviour itself is.
pendulum: Gymnasium's Pendulum-v1 from a fixed set of data (benchmarks/posterior_pendulum.py). p is a diffusion model
of the data's actions, Q from implicit Q-learning on the same data, and log r = beta (Q - V) / its deviation over the
data. Each seed has its own data, Q, p and training; they count from 1, as settings were chosen on 0. "return": of 30
whole episodes, in Pendulum's units. "W1": the Wasserstein distance of 128 actions to p exp(log r) / Z in units of
torque, mean over 32 states; the reference are 512 actions of p with their weights, and the row "reference" is 128 of
another such draw. Two ways without training: the best of n actions of p by Q, and one of n in proportion to r, which is
the posterior itself for large n. "tilted denoising": p's own training, on the data's actions in proportion to r.
"calls" are those of a network of p's size per decision.
"""

from fewstep import extras

extras.name_missing()

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_linear_quadratic import (
    LinearQuadratic,
    behaviour_law,
    chain_of,
    draw_states,
    example,
    policy_law,
    problem_of,
    told,
)
from benchmarks.posterior_pendulum import (
    TORQUE,
    ActionNetwork,
    Critic,
    Policy,
    Steps,
    collect,
    controller,
    denoiser_of,
    play,
    regress,
    spread,
    train_critic,
    train_prior,
    wasserstein,
)
from benchmarks.posterior_results import end, parsed, said, summary, with_deviations, write_rows
from benchmarks.posterior_told import Given, told_problem, train_told
from fewstep.adapters import Adapter, adapted, merged
from fewstep.ancestral import Chain, ancestral_chain, denoising_errors, sample_ancestral
from fewstep.ranges import POSITIVE, number, whole
from fewstep.schedule import karras_sigmas
from trainer.methods.rtb import Problem, evaluate
from trainer.run.draws import Draws, seeded
from trainer.settings import PosteriorConfig

RANK = 64  # of the adapter: all that the prior's layers have
STATES, REFERENCE, JUDGED, AMONG = 32, 512, 128, (4, 16)
LQ_COLUMNS = {
    "method": "method", "gain_error": "gain error of the chain", "cov_error": "cov error of the chain",
    "gain_exact": "gain error, exact", "cov_exact": "cov error, exact", "log_z_error": "log Z(s) error",
    "gap": "log Z - ELBO", "ess": "ESS", "return": "return",
}  # fmt: skip
PENDULUM_COLUMNS = {
    "beta": "beta", "method": "method", "calls": "calls", "return": "return", "w1": "W1", "log_reward": "E[log r]",
    "gap": "log Z - ELBO", "log_z_error": "log Z error", "ess": "ESS", "cpu_s": "train CPU s",
}  # fmt: skip
Row = dict[str, float]


# The closed form


def linear_rows(args: argparse.Namespace, began: float) -> list[dict[str, Any]]:
    case = example()
    chain = chain_of(case, args.levels)
    learned = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=0.02))
    chosen = {"RTB": learned, "RTB, fixed variance": replace(learned, learn_variance=False)}
    found = {name: [trained_linear(case, chain, config, args, seed) for seed in range(args.seeds)]
             for name, config in chosen.items()}  # fmt: skip
    rows = [{"task": "linear-quadratic", "method": name, **summary(runs)} for name, runs in found.items()]
    for name, policy in (("behaviour", case.behaviour), ("posterior, exact", case.posterior())):
        known = {"return": case.expected_return(policy), "std": {}}
        rows.append({"task": "linear-quadratic", "method": name, **known})
    said("linear-quadratic", began)
    return rows


def trained_linear(
    case: LinearQuadratic, chain: Chain, config: PosteriorConfig, args: argparse.Namespace, seed: int
) -> Row:
    d, m = case.behaviour.gain.shape
    network, before = told(case, chain), behaviour_law(case, chain)
    problem = lambda states: problem_of(case, network, states)  # noqa: E731
    draw = lambda count, rng: draw_states(case, count, rng)  # noqa: E731
    train_told(problem, network, draw, config, args.linear_updates, seeded(seed), d=d, m=m)
    reached, target, exact = policy_law(case, network), case.posterior(before), case.posterior()
    states = draw(50, seeded(1000 + seed))
    y = torch.arange(50 * 40) % 50
    numbers = evaluate(problem(states), torch.empty(len(y), 1, 1, d), y, 1.0, seeded(2000 + seed))
    log_z = float(case.log_z(states, before).mean())
    apart = lambda one, other: float((one - other).abs().max())  # noqa: E731
    return {
        "gain_error": apart(reached.gain, target.gain),
        "cov_error": apart(reached.covariance, target.covariance),
        "gain_exact": apart(reached.gain, exact.gain),
        "cov_exact": apart(reached.covariance, exact.covariance),
        "log_z_error": abs(numbers["log_z"] - log_z), "gap": log_z - numbers["elbo"], "ess": numbers["ess"],
        "return": case.expected_return(reached),
    }  # fmt: skip


# The pendulum


@dataclass(frozen=True)
class Pendulum:
    """What is learned from one set of data."""

    steps: Steps
    critic: Critic
    unit: float  # the deviation of Q - V over the data
    network: ActionNetwork  # of the prior
    sigma_data: float
    chain: Chain

    @property
    def prior(self) -> Given:
        return denoiser_of(self.network, self.sigma_data)

    def log_reward(self, beta: float) -> Callable[[Tensor, Tensor], Tensor]:
        """images [B, 1, 1, 1] and states [B, 3] -> log r [B]."""
        return lambda images, states: beta / self.unit * self.critic.advantage(states, images.flatten(1))

    def problem(self, adapter: Adapter, beta: float, states: Tensor) -> Problem:
        posterior = denoiser_of(adapted(self.network, adapter), self.sigma_data)
        reward = self.log_reward(beta)
        return told_problem(self.prior, posterior, self.chain, reward, adapter.log_variance, states)

    def draw(self, count: int, rng: Draws) -> Tensor:
        """States of the data [count, 3]."""
        return self.steps.states[rng.integers(len(self.steps.states), count)]


def make_pendulum(args: argparse.Namespace, seed: int) -> tuple[Pendulum, Tensor]:
    """With the returns of the data's episodes [3, episodes]."""
    steps, returns = collect(args.data_episodes, seed)
    critic = train_critic(steps, args.critic_updates, seed)
    sigma_data = float(steps.actions.std())
    network = train_prior(steps, sigma_data, args.prior_updates, seed)
    sigmas, shown = karras_sigmas(args.pendulum_levels, 0.03, 20.0), steps.actions[:4000].view(-1, 1, 1, 1)
    prior, states = denoiser_of(network, sigma_data), steps.states[:4000]
    bound = lambda x, sigma: prior(x, sigma, states)  # noqa: E731
    errors = denoising_errors(bound, shown, sigmas, lambda i: seeded(i).normal_like(shown))
    return Pendulum(
        steps, critic, spread(critic, steps), network, sigma_data, ancestral_chain(sigmas, "opt", errors)
    ), returns


@torch.no_grad()
def act(task: Pendulum, states: Tensor, rng: Draws, adapter: Adapter | None = None) -> Tensor:
    """Actions [B, 1] of the prior's chain, or of a posterior's, in [-1, 1]."""
    network = task.network if adapter is None else merged(task.network, adapter)
    policy, shape = denoiser_of(network, task.sigma_data), torch.empty(len(states), 1, 1, 1)
    made = sample_ancestral(
        lambda x, sigma: policy(x, sigma, states), lambda _: rng.normal_like(shape), task.chain,
        decoder=lambda x, sigma: task.prior(x, sigma, states),
        log_variance=None if adapter is None else adapter.log_variance.tolist(),
    )  # fmt: skip
    return made.images.flatten(1).clamp(-1, 1)


def best_of(task: Pendulum, among: int, rng: Draws) -> Policy:
    """The largest Q of so many actions of the prior."""

    def policy(states: Tensor) -> Tensor:
        many = states.repeat(among, 1)
        actions = act(task, many, rng)
        best = task.critic.q(many, actions).view(among, -1).argmax(dim=0)
        return actions.view(among, -1, 1)[best, torch.arange(len(states))]

    return policy


def one_of(task: Pendulum, among: int, beta: float, rng: Draws) -> Policy:
    """One of so many actions of the prior, drawn in proportion to r."""

    def policy(states: Tensor) -> Tensor:
        many = states.repeat(among, 1)
        actions = act(task, many, rng)
        log_rewards = task.log_reward(beta)(actions.view(-1, 1, 1, 1), many).view(among, -1)
        chosen = torch.multinomial(log_rewards.softmax(dim=0).T, 1, generator=rng.generator)[:, 0]
        return actions.view(among, -1, 1)[chosen, torch.arange(len(states))]

    return policy


def greedy(task: Pendulum) -> Policy:
    """The largest Q of 41 torques, likely under the behaviour or not."""
    grid = torch.linspace(-1, 1, 41)

    def policy(states: Tensor) -> Tensor:
        values = torch.stack([task.critic.q(states, action.expand(len(states), 1)) for action in grid])
        return grid[values.argmax(dim=0)][:, None]

    return policy


@dataclass(frozen=True)
class Judge:
    """The exact posterior at some states, by weighted actions of the prior's chain; and the episodes to play."""

    task: Pendulum
    beta: float
    states: Tensor  # [M, 3]
    actions: Tensor  # [M, REFERENCE]
    weights: Tensor  # likewise
    log_z: float  # mean over states
    episodes: int
    seed: int

    def judged(self, policy: Policy, calls: int) -> Row:
        many = self.states.repeat(JUDGED, 1)
        actions = policy(many)
        log_reward = self.task.log_reward(self.beta)(actions.view(-1, 1, 1, 1), many).mean()
        returns = play(policy, self.episodes, self.seed)[1]
        return {
            "calls": calls, "return": float(returns.mean()), "w1": self.distance(actions.view(JUDGED, -1).T),
            "log_reward": float(log_reward),
        }  # fmt: skip

    def distance(self, actions: Tensor) -> float:
        """W1 of actions [M, JUDGED], mean over states."""
        even = torch.full_like(actions, 1 / JUDGED)
        return TORQUE * float(wasserstein(actions, even, self.actions, self.weights).mean())


def weighted(task: Pendulum, beta: float, states: Tensor, rng: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Actions and weights [M, REFERENCE], and log r likewise."""
    many = states.repeat(REFERENCE, 1)
    actions = act(task, many, rng)
    log_rewards = task.log_reward(beta)(actions.view(-1, 1, 1, 1), many).view(REFERENCE, -1).T
    return actions.view(REFERENCE, -1).T, log_rewards.softmax(dim=1), log_rewards


def make_judge(task: Pendulum, beta: float, args: argparse.Namespace, seed: int) -> tuple[Judge, Row]:
    """With the row of the reference itself, by another draw of it."""
    states = task.draw(STATES, seeded(5000 + seed))
    actions, weights, log_rewards = weighted(task, beta, states, seeded(6000 + seed))
    log_z = float((log_rewards.logsumexp(dim=1) - math.log(REFERENCE)).mean())
    judge = Judge(task, beta, states, actions, weights, log_z, args.episodes, 500_000 + 1000 * seed)
    rng = seeded(7000 + seed)
    others, other_weights, again = weighted(task, beta, states, rng)
    drawn = torch.multinomial(other_weights, JUDGED, replacement=True, generator=rng.generator)
    return judge, {
        "w1": judge.distance(others.gather(1, drawn)),
        "log_reward": float((other_weights * again).sum(dim=1).mean()),
        "ess": float((1 / weights.square().sum(dim=1) / REFERENCE).mean()),
    }


def pendulum_rows(
    args: argparse.Namespace, began: float, keep: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    found: dict[tuple[float | None, str], list[Row]] = {}

    def add(beta: float | None, name: str, row: Row) -> None:
        found.setdefault((beta, name), []).append(row)

    def rows() -> list[dict[str, Any]]:
        return [{"task": "pendulum", "beta": beta, "method": name, **summary(runs)}
                for (beta, name), runs in found.items()]  # fmt: skip

    for seed in range(1, args.seeds + 1):
        task, returns = make_pendulum(args, seed)
        said(
            f"pendulum, seed {seed}: data, Q and prior; returns of the data {returns.mean(dim=1).round().tolist()}",
            began,
        )
        for share, each in zip(("0.8", "0.4", "0"), returns, strict=True):
            add(None, f"data, controller in {share} of the decisions", {"return": float(each.mean())})
        seed_of_play = 500_000 + 1000 * seed
        for name, policy in (("controller", controller), ("largest Q", greedy(task))):
            add(None, name, {"calls": 0, "return": float(play(policy, args.episodes, seed_of_play)[1].mean())})
        for beta in args.betas:
            _tilted_rows(task, beta, args, seed, lambda name, row, beta=beta: add(beta, name, row), began)
        keep(rows())
    return rows()


def _tilted_rows(
    task: Pendulum, beta: float, args: argparse.Namespace, seed: int, add: Callable[[str, Row], None], began: float
) -> None:
    judge, reference = make_judge(task, beta, args, seed)
    calls = len(task.chain.sigmas)
    add("reference", reference)
    add("behaviour", judge.judged(lambda states, rng=seeded(seed): act(task, states, rng), calls))
    for among in AMONG:
        add(f"best of {among}", judge.judged(best_of(task, among, seeded(100 + seed)), among * calls))
        add(f"one of {among} by r", judge.judged(one_of(task, among, beta, seeded(200 + seed)), among * calls))
    new = lambda: Adapter(task.network, RANK, task.chain.steps, torch.Generator().manual_seed(seed))  # noqa: E731

    def done(name: str, adapter: Adapter, cpu_s: float) -> None:
        add(name, {**_monitored(judge, adapter, seed), "cpu_s": cpu_s})
        said(f"{name}, seed {seed}, beta {beta:g}", began)

    adapter = new()
    done("RTB", adapter, balance(task, adapter, beta, args, args.updates, seed))
    adapter, started = new(), time.process_time()
    log_rewards = task.log_reward(beta)(task.steps.actions.view(-1, 1, 1, 1), task.steps.states)
    run = adapted(task.network, adapter)
    regress(run, adapter, task.steps, task.sigma_data, log_rewards, args.tilted_updates, seeded(500 + seed))
    done("tilted denoising", adapter, spent := time.process_time() - started)
    spent += balance(task, adapter, beta, args, args.updates // 2, seed)
    done("tilted denoising, then RTB", adapter, spent)


def balance(task: Pendulum, adapter: Adapter, beta: float, args: argparse.Namespace, updates: int, seed: int) -> float:
    """Trajectory balance in place; CPU seconds."""
    config, started = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=args.lr)), time.process_time()
    train_told(
        lambda states: task.problem(adapter, beta, states), adapter, task.draw, config, updates,
        seeded(300 + seed), d=1, m=3, each=args.each,
    )  # fmt: skip
    return time.process_time() - started


def _monitored(judge: Judge, adapter: Adapter, seed: int) -> Row:
    task, calls, rng = judge.task, len(judge.task.chain.sigmas), seeded(400 + seed)
    y = torch.arange(STATES * 64) % STATES
    numbers = evaluate(task.problem(adapter, judge.beta, judge.states), torch.empty(len(y), 1, 1, 1), y, 1.0, rng)
    return {
        **judge.judged(lambda states: act(task, states, rng, adapter), calls),
        "gap": judge.log_z - numbers["elbo"], "log_z_error": abs(numbers["log_z"] - judge.log_z), "ess": numbers["ess"],
    }  # fmt: skip


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    began = time.monotonic()
    linear = linear_rows(args, began) if "linear" in args.parts else []
    keep = lambda found: write_rows(args, "posterior_control", linear + found)  # noqa: E731
    keep([])
    found = pendulum_rows(args, began, keep) if "pendulum" in args.parts else []
    tables = [(linear, LQ_COLUMNS), (found, PENDULUM_COLUMNS)]
    end(args.out, *(with_deviations(rows, columns) for rows, columns in tables if rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--parts",
        nargs="+",
        choices=("linear", "pendulum"),
        default=["linear", "pendulum"],
        help="the closed form, the pendulum, or both (default both)",
    )
    add("--seeds", type=whole(1), default=3, help="runs of each method (default %(default)s)")
    add("--betas", nargs="+", type=number(POSITIVE), default=[1.0, 3.0], help="of the pendulum (default 1 3)")
    add("--levels", type=whole(3), default=20, help="of the closed form's chain (default %(default)s)")
    add("--linear-updates", type=whole(1), default=150, help="of trajectory balance there (default %(default)s)")
    add("--pendulum-levels", type=whole(3), default=10, help="network calls per action (default %(default)s)")
    add("--data-episodes", type=whole(1), default=80, help="of each policy of the data (default %(default)s)")
    add("--critic-updates", type=whole(1), default=4000, help="of Q and V (default %(default)s)")
    add("--prior-updates", type=whole(1), default=3000, help="of the model of the behaviour (default %(default)s)")
    add("--updates", type=whole(1), default=300, help="of trajectory balance, 16 states each (default %(default)s)")
    add("--tilted-updates", type=whole(1), default=1500, help="of tilted denoising (default %(default)s)")
    add("--each", type=whole(2), default=16, help="trajectories of a state in an update (default %(default)s)")
    add("--lr", type=number(POSITIVE), default=0.01, help="of trajectory balance (default %(default)s)")
    add("--episodes", type=whole(1), default=30, help="that a policy plays (default %(default)s)")
    args = parsed(parser, "posterior-control")
    if args.smoke:
        args.seeds, args.levels, args.linear_updates, args.pendulum_levels, args.updates = 1, 5, 3, 4, 2
        args.tilted_updates = 2
        args.data_episodes, args.critic_updates, args.prior_updates, args.betas, args.episodes = 2, 5, 5, [1.0], 2
    return args


if __name__ == "__main__":
    main()
