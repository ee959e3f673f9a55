"""Relative trajectory balance (Venkatraman et al. 2024): a posterior p(x) r(x)^beta / Z from a prior and a reward r.

Prior and posterior are two Markov chains over the same states (`Chains`): two denoisers in one Gaussian chain of
`fewstep.ancestral` (`Problem`), or any other pair whose steps have a log-ratio. Where for every trajectory

    Z p_posterior(x_0 .. x_n) = r(image)^beta p_prior(x_0 .. x_n)                                (Eq. 8 of the paper)

the posterior's images have the density sought. The loss of a trajectory is half the square of its residual,

    L = (log Z + sum_i l_i - beta log r)^2 / 2,  l_i = log p_posterior(x_{i+1} | x_i) - log p_prior(x_{i+1} | x_i)  (9)

It needs no gradient of r and none through sampling, and trajectories may be anybody's. An update draws them without a
gradient and then takes grad L = (log Z + sum l - beta log r) sum_i grad l_i step by step: the memory is that of one
network call, however long the chain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fewstep.ancestral import Chain, log_ratio, noised_back, renoised, step_mean
from trainer.run.draws import Draws
from trainer.run.optimizer import learning_rate
from trainer.settings import BehaviourMix, PosteriorConfig

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [B, C, H, W], sigma [B], y [B] -> clean images
LogReward = Callable[[Tensor, Tensor], Tensor]  # images [B, C, H, W], y [B] -> log r [B]
Following = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # step, x, `clean` of prior and posterior -> the next state
EVALUATED = 250  # trajectories at a time where nothing is trained
BEHAVIOURS = ("on_policy", "explore", "replay", "noised_back", "prior")


class Chains(Protocol):
    """A prior and a posterior that walk through the same states x_0 .. x_n, [B, ...] each, and a reward of the end.

    All that trajectory balance asks of them. `clean` is what both predict of the ends of states x at step i; from it
    come the next states and the log-ratio of a step. y is the group of a trajectory [B]; each has a Z of its own.
    """

    @property
    def steps(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def log_variance(self) -> Tensor: ...  # learned if the configuration says so; empty where chains have none
    @property
    def log_reward(self) -> LogReward: ...

    def start(self, like: Tensor, rng: Draws) -> Tensor: ...  # x_0, of the shape of `like`
    def clean(self, i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...
    def prior_step(self, i: int, x: Tensor, prior: Tensor, rng: Draws) -> Tensor: ...
    def own_step(self, i: int, x: Tensor, posterior: Tensor, rng: Draws, widened: float) -> Tensor: ...
    def ratio(self, i: int, x: Tensor, following: Tensor, prior: Tensor, posterior: Tensor) -> Tensor: ...
    def step_ratio(self, i: int, x: Tensor, following: Tensor, prior: Tensor, y: Tensor) -> Tensor: ...
    def image(self, last: Tensor, y: Tensor) -> Tensor: ...  # the end that has a reward
    def noised_back(self, images: Tensor, rng: Draws) -> list[Tensor]: ...  # x_0 .. x_n that lead to these ends
    def renoised(self, last: Tensor, rng: Draws) -> list[Tensor]: ...  # likewise to these states x_n


@dataclass(frozen=True)
class Problem:
    """Two denoisers in one Gaussian chain. The posterior is told y where there are groups."""

    prior: Denoise  # frozen; it also makes the image of the last state, for both chains
    posterior: Denoise
    chain: Chain
    log_reward: LogReward
    log_variance: Tensor  # [steps], the posterior's (`fewstep.ancestral.log_ratio`)
    groups: int = 1

    @property
    def steps(self) -> int:
        return self.chain.steps

    def start(self, like: Tensor, rng: Draws) -> Tensor:
        """x_0 ~ N(0, sigma_0^2 I)."""
        return self.chain.sigmas[0] * rng.normal_like(like)

    def image(self, last: Tensor, y: Tensor) -> Tensor:
        return self.prior(last, self._level(last, -1), y)

    def clean(self, i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the prior and the posterior make of x, the states at level i."""
        return self.prior(x, self._level(x, i), y), self.posterior(x, self._level(x, i), y)

    def spread(self, i: int) -> Tensor:
        """The posterior's standard deviation in step i, a scalar."""
        return math.sqrt(self.chain.variances[i]) * (self.log_variance[i] / 2).exp()

    def prior_step(self, i: int, x: Tensor, prior: Tensor, rng: Draws) -> Tensor:
        mean = step_mean(self.chain, i, x, prior)
        return mean + math.sqrt(self.chain.variances[i]) * rng.normal_like(mean)

    def own_step(self, i: int, x: Tensor, posterior: Tensor, rng: Draws, widened: float) -> Tensor:
        """The posterior's, its deviation times `widened`."""
        mean = step_mean(self.chain, i, x, posterior)
        return mean + widened * self.spread(i) * rng.normal_like(mean)

    def ratio(self, i: int, x: Tensor, following: Tensor, prior: Tensor, posterior: Tensor) -> Tensor:
        """l_i [B]. prior, posterior: their clean images of x."""
        return log_ratio(self.chain, i, x, following, prior, posterior, self.log_variance[i])

    def step_ratio(self, i: int, x: Tensor, following: Tensor, prior: Tensor, y: Tensor) -> Tensor:
        """l_i [B], with its gradient. prior: the prior's clean images of x."""
        return self.ratio(i, x, following, prior, self.posterior(x, self._level(x, i), y))

    def noised_back(self, images: Tensor, rng: Draws) -> list[Tensor]:
        return noised_back(images, self.chain, lambda _: rng.normal_like(images))

    def renoised(self, last: Tensor, rng: Draws) -> list[Tensor]:
        return renoised(last, self.chain, lambda _: rng.normal_like(last))

    def _level(self, x: Tensor, i: int) -> Tensor:
        return x.new_full((len(x),), self.chain.sigmas[i])


class Trajectories(NamedTuple):
    states: list[Tensor]  # x_0 .. x_n, each [B, C, H, W]
    prior: list[Tensor]  # what the prior predicts of all but the last: clean images
    images: Tensor  # of the last
    log_ratio: Tensor  # [B], sum of l_i
    log_reward: Tensor  # [B]
    y: Tensor  # [B]

    def residual(self, beta: float) -> Tensor:
        """sum l - beta log r: -log Z on a trajectory that is in balance."""
        return self.log_ratio - beta * self.log_reward


@torch.no_grad()
def walk(problem: Chains, y: Tensor, first: Tensor, following: Following) -> Trajectories:
    """Trajectories from `first`, the states x_0 [B, C, H, W], with their log-ratios; `following` makes the others."""
    states, predicted, ratios = [first], [], []
    for i in range(problem.steps):
        prior, posterior = problem.clean(i, x := states[-1], y)
        states.append(following(i, x, prior, posterior))
        predicted.append(prior)
        ratios.append(problem.ratio(i, x, states[-1], prior, posterior))
    images = problem.image(states[-1], y)
    return Trajectories(states, predicted, images, sum(ratios[1:], ratios[0]), problem.log_reward(images, y), y)


def own_steps(problem: Chains, rng: Draws, widened: float = 1.0) -> Following:
    """The posterior's steps, their deviation times `widened`."""
    return lambda i, x, _, posterior: problem.own_step(i, x, posterior, rng, widened)


def prior_steps(problem: Chains, rng: Draws) -> Following:
    return lambda i, x, prior, _: problem.prior_step(i, x, prior, rng)


def given_steps(states: list[Tensor]) -> Following:
    """Those of known trajectories."""
    return lambda i, *_: states[i + 1]


def deviations(
    residual: Tensor, y: Tensor, log_z: Tensor | None, config: PosteriorConfig, groups: int | None = None
) -> Tensor:
    """How far trajectories are from balance [B], the factors of grad sum l in the gradient of the loss.

    log_z [groups]; None: minus the mean residual of a group (VarGrad: Richter et al. 2020), for which the loss is half
    the variance. groups: how many; None: read from y, for which the host waits. Dead zone and clip are heuristics of
    the paper's code and ours: both keep zero where it is.
    """
    if log_z is None:
        groups = int(y.max()) + 1 if groups is None else groups
        count = residual.new_zeros(groups).index_add_(0, y, torch.ones_like(residual)).clamp(min=1)
        log_z = -residual.new_zeros(groups).index_add_(0, y, residual) / count
    away = residual + log_z[y]
    limit = config.clip * away.square().mean().sqrt()
    away = away.clamp(-limit, limit)
    return torch.where(away.square() < config.dead_zone, torch.zeros_like(away), away)


def accumulate(problem: Chains, found: Trajectories, away: Tensor, steps: list[int]) -> None:
    """Add the gradient of the loss, mean over trajectories, one step of the chain at a time. Of steps drawn at random,
    K of n, the factor n / K keeps it unbiased."""
    factor = problem.steps / len(steps)
    for i in steps:
        ratio = problem.step_ratio(i, found.states[i], found.states[i + 1], found.prior[i], found.y)
        (factor * away * ratio).mean().backward()


class TrajectoryBalance:
    """trainer.run.loop.Method: an update is a batch of one behaviour, drawn by the shares of the mix."""

    served = "adapter"

    def __init__(self, problem: Chains, trained: nn.Module, config: PosteriorConfig, like: Tensor) -> None:
        """trained: holds what the posterior's denoiser learns, and log_variance. like: an image [C, H, W]."""
        self.problem, self.config, self.ema_width = problem, config, config.ema_width
        problem.log_variance.requires_grad_(config.learn_variance)
        self.log_z = LogZ(problem.groups).to(like.device)
        self.replay = Replay(config.replay_size, like)
        self.networks: dict[str, nn.Module] = {"adapter": trained, "log_z": self.log_z, "replay": self.replay}
        weights = [weight for weight in trained.parameters() if weight.requires_grad]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            # fused: its step count is not read by the host
            "adapter": torch.optim.Adam(weights, config.adam.lr, config.adam.betas, fused=True),
            "log_z": torch.optim.Adam(self.log_z.parameters(), config.log_z_lr, fused=True),
        }
        self.monitored: dict[str, Tensor] = {}

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """images: data, read by the behaviour `noised_back`, otherwise for their shape. labels: y [B], from 0 up."""
        config, beta = self.config, beta_at(self.config, progress)
        replayable = progress >= config.replay_from and bool(self.replay.filled.numpy())
        behaviour = choose(config.mix, rng.shared_uniform(), replayable)
        found = self.trajectories(behaviour, images, labels, progress, rng)
        residual = found.residual(beta)
        learned = config.log_z == "learned"
        log_z = self.log_z.value.detach() if learned else None
        away = deviations(residual, found.y, log_z, config, self.problem.groups)
        if learned:
            (away * self.log_z.value[found.y]).mean().backward()
        accumulate(self.problem, found, away, self._steps(rng))
        norm = self._descend(progress)
        if behaviour not in ("replay", "noised_back"):
            self.replay.add(found)
        self.replay.used[BEHAVIOURS.index(behaviour)] += 1
        if behaviour == "on_policy":
            self.monitored = monitors(residual, found.log_reward)
        return {"loss": away.square().mean() / 2, "gradient": norm, **self.monitored, **self._shares()}

    def trajectories(self, behaviour: str, images: Tensor, y: Tensor, progress: float, rng: Draws) -> Trajectories:
        problem, config = self.problem, self.config
        if behaviour == "noised_back":
            states = problem.noised_back(images, rng)
        elif behaviour == "replay":
            last, y = self.replay.draw(len(images), config.replay_power, rng)
            states = problem.renoised(last, rng)
        else:
            fading = max(1 - progress / config.explore_until, 0.0) if config.explore_until else 0.0
            widened = 1 + config.explore_noise * fading if behaviour == "explore" else 1.0
            steps = prior_steps(problem, rng) if behaviour == "prior" else own_steps(problem, rng, widened)
            return walk(problem, y, problem.start(images, rng), steps)
        return walk(problem, y, states[0], given_steps(states))

    def _shares(self) -> dict[str, Tensor]:
        """Of the updates so far, by behaviour; without those that the mix does not have."""
        shares = self.replay.used / self.replay.used.sum()
        named = zip(BEHAVIOURS, shares, self.replay.used.numpy(), strict=True)  # counted on the host
        return {f"share_{name}": share for name, share, used in named if getattr(self.config.mix, name) or used}

    def _steps(self, rng: Draws) -> list[int]:
        steps = self.problem.steps
        if self.config.levels is None or self.config.levels >= steps:
            return list(range(steps))
        return torch.randperm(steps, generator=rng.generator)[: self.config.levels].tolist()

    def _descend(self, progress: float) -> Tensor:
        adam = self.optimizers["adapter"]
        adam.param_groups[0]["lr"] = learning_rate(self.config.adam, progress)
        norm = nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], self.config.adam.clip)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm


class LogZ(nn.Module):
    """The learned log Z of every group."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(groups))


class Replay(nn.Module):
    """The last trajectory ends, a ring of fixed size, and the updates each behaviour had. Part of a run's state."""

    states: Tensor
    log_rewards: Tensor
    y: Tensor
    filled: Tensor  # ends added so far
    used: Tensor  # [behaviours]

    def __init__(self, size: int, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("states", like.new_zeros(size, *like.shape))
        self.register_buffer("log_rewards", torch.zeros(size, device=like.device))  # states may be whole numbers
        self.register_buffer("y", torch.zeros(size, dtype=torch.long, device=like.device))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.register_buffer("used", torch.zeros(len(BEHAVIOURS)))

    def add(self, found: Trajectories) -> None:
        size, rows = len(self.y), len(found.y)
        places = (torch.arange(rows) + self.filled) % size
        self.states[places], self.log_rewards[places], self.y[places] = found.states[-1], found.log_reward, found.y
        self.filled += rows

    def draw(self, count: int, power: float, rng: Draws) -> tuple[Tensor, Tensor]:
        """Last states [count, C, H, W] and their y, in proportion to r^power."""
        kept = min(int(self.filled.numpy()), len(self.y))
        shares = (power * self.log_rewards[:kept]).softmax(dim=0).cumsum(dim=0)
        drawn = torch.rand(count, generator=rng.generator).to(shares)  # the host does not wait for the rewards
        rows = torch.searchsorted(shares, drawn * shares[-1], right=True).clamp(max=kept - 1)
        return self.states[rows], self.y[rows]


def choose(mix: BehaviourMix, number: float, replayable: bool) -> str:
    """The behaviour of an update, by a number in [0, 1); on-policy in place of a replay that is not possible yet."""
    below = 0.0
    for name in BEHAVIOURS:
        below += getattr(mix, name)
        if number < below:
            return name if name != "replay" or replayable else "on_policy"
    return "on_policy"  # the shares summed to a little less than 1


def beta_at(config: PosteriorConfig, progress: float) -> float:
    risen = min(progress / config.beta_until, 1.0) if config.beta_until else 1.0
    return config.beta_start + (config.beta - config.beta_start) * risen


def monitors(residual: Tensor, log_reward: Tensor) -> dict[str, Tensor]:
    """Of on-policy trajectories with residuals and log r [B]: scalars.

    elbo: at most log Z, and equal to it in balance; log_z: by importance sampling with weights exp(-residual);
    ess: the effective sample size of those weights, as a share of B.
    """
    log_weights = -residual
    return {
        "elbo": log_weights.mean(),
        "log_z": torch.logsumexp(log_weights, 0) - math.log(len(residual)),
        "ess": effective_share(log_weights),
        "log_reward": log_reward.mean(),
    }


def effective_share(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / (B sum w^2) (Kong 1992), in [1 / B, 1]."""
    return torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)) / len(log_weights)


@torch.no_grad()
def evaluate(problem: Chains, like: Tensor, y: Tensor, beta: float, rng: Draws) -> dict[str, float]:
    """`monitors` of as many trajectories as `like` [B, C, H, W] has rows, and, of as many of the prior,

    log_z_prior: log of the mean of r^beta; eubo: the mean of -residual under the posterior's law, by weights r^beta: at
    least log Z. elbo and eubo bracket log Z, up to the error of sampling. elbo_error and prior_log_reward_error:
    standard errors of these means. y [B], each of its values at least twice; the mean over groups of each.
    """
    own, own_reward = _residuals(problem, like, y, beta, own_steps(problem, rng), rng)
    prior, prior_reward = _residuals(problem, like, y, beta, prior_steps(problem, rng), rng)
    found = []
    for group in y.unique():
        rows = y == group
        rewards = beta * prior_reward[rows]
        found.append({
            **monitors(own[rows], own_reward[rows]),
            "log_z_prior": torch.logsumexp(rewards, 0) - math.log(len(rewards)),
            "eubo": (rewards.softmax(0) * -prior[rows]).sum(),
            "prior_ess": effective_share(rewards),
            "prior_log_reward": prior_reward[rows].mean(),
            "elbo_error": standard_error(own[rows]),
            "prior_log_reward_error": standard_error(prior_reward[rows]),
        })  # fmt: skip
    groups = {name: torch.stack([each[name] for each in found]) for name in found[0]}
    # the groups are independent: their squared errors add up
    return {
        name: float(values.norm() / len(found) if name.endswith("_error") else values.mean())
        for name, values in groups.items()
    }


def standard_error(values: Tensor) -> Tensor:
    """Of the mean of values [B], B at least 2."""
    return values.std() / math.sqrt(len(values))


def _residuals(
    problem: Chains, like: Tensor, y: Tensor, beta: float, following: Following, rng: Draws
) -> tuple[Tensor, Tensor]:
    """Residuals and log r [B], some trajectories at a time: their states are not kept."""
    parts = []
    for rows, groups in zip(like.split(EVALUATED), y.split(EVALUATED), strict=True):
        found = walk(problem, groups, problem.start(rows, rng), following)
        parts.append((found.residual(beta), found.log_reward))
    residuals, log_rewards = zip(*parts, strict=True)
    return torch.cat(residuals), torch.cat(log_rewards)
