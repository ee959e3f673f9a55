"""Offline data of Gymnasium's Pendulum-v1, what is learned from it, and the returns of policies.

A torque is held for HELD steps of Pendulum, of which the rewards are summed: a decision. The data is of three
policies, as many episodes of each: in every decision a controller acts with probability 0.8, 0.4 or 0, otherwise a
torque is drawn uniformly. The controller pumps energy until it can balance, with a noise of 0.3 on its torque. States
are (cos, sin, angular velocity / 8) [B, 3], actions torques / 2 [B, 1] in [-1, 1]; rewards are divided by 16.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.posterior_told import Given
from fewstep.precond import Denoiser, with_inputs
from trainer.levels.conditioning import LEVEL_FEATURES, level_features
from trainer.methods.edm import denoising_loss
from trainer.run.draws import Draws, seeded
from trainer.run.optimizer import descend
from trainer.settings import AdamConfig

EPISODE, HELD = 200, 2  # steps of an episode, as Gymnasium cuts it, and of a decision
STATE, TORQUE, SPEED, REWARD = 3, 2.0, 8.0, 16.0
SHARES = (0.8, 0.4, 0.0)  # of the controller's steps, by policy of the data
JITTER = 0.15  # of its actions
WIDTH, BATCH = 64, 256
Policy = Callable[[Tensor], Tensor]  # states [B, 3] -> actions [B, 1]
PRIOR_ADAM = AdamConfig(2e-3, (0.9, 0.99), decay_from=0.4, final=0.02)
CRITIC_ADAM = AdamConfig(3e-3, (0.9, 0.999), decay_from=0.5, final=0.05, clip=10.0)


def controller(states: Tensor) -> Tensor:
    """Energy towards that of the upright pendulum; near it, a spring and a damper. g = 10, length and mass 1."""
    angle, velocity = torch.atan2(states[:, 1], states[:, 0]), SPEED * states[:, 2]
    energy = velocity.square() / 6 + 5 * states[:, 0]  # I = 1/3: I w^2 / 2 + m g l cos / 2
    pumping = torch.where(velocity.abs() < 1e-3, 1.0, velocity.sign()) * (5 - energy)
    torque = torch.where(states[:, 0] > 0.85, -12 * angle - 3 * velocity, pumping)
    return (torque / TORQUE).clamp(-1, 1)[:, None]


def mixed(share: float, rng: Draws) -> Policy:
    """The controller, with noise, in a share of the steps; otherwise uniform torques."""

    def act(states: Tensor) -> Tensor:
        count = len(states)
        uniform = 2 * rng.uniform(count)[:, None] - 1
        chosen = (controller(states) + JITTER * rng.normal(count)[:, None]).clamp(-1, 1)
        return torch.where(rng.uniform(count)[:, None] < share, chosen, uniform)

    return act


@dataclass(frozen=True)
class Steps:
    states: Tensor  # [N, 3]
    actions: Tensor  # [N, 1]
    rewards: Tensor  # [N]
    following: Tensor  # [N, 3], the states after


def play(policy: Policy, episodes: int, seed: int) -> tuple[Steps, Tensor]:
    """All steps of `episodes` whole episodes, and the return of each in Pendulum's own units [episodes]. Episode i
    starts where Gymnasium's seed `seed` + i puts it."""
    envs = SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * episodes)
    observed, _ = envs.reset(seed=seed)
    kept: list[tuple[Tensor, ...]] = []
    for _ in range(EPISODE // HELD):
        states, reward = _states(observed), np.zeros(episodes, np.float32)
        actions = policy(states).clamp(-1, 1)
        for _ in range(HELD):
            observed, rewards, *_ = envs.step(TORQUE * actions.numpy())
            reward += rewards.astype(np.float32) / REWARD
        kept.append((states, actions, torch.from_numpy(reward), _states(observed)))
    envs.close()
    states, actions, rewards, following = (torch.stack(column) for column in zip(*kept, strict=True))
    flat = Steps(states.flatten(0, 1), actions.flatten(0, 1), rewards.flatten(), following.flatten(0, 1))
    return flat, REWARD * rewards.sum(dim=0)


def _states(observed: np.ndarray) -> Tensor:
    return torch.from_numpy(observed / np.array([1, 1, SPEED], np.float32))


def collect(episodes: int, seed: int) -> tuple[Steps, Tensor]:
    """The offline data, `episodes` of each policy, and the returns [3, episodes]."""
    rng = seeded(seed)
    parts = [play(mixed(share, rng), episodes, 10_000 * seed + 1000 * i) for i, share in enumerate(SHARES)]
    together = (torch.cat([getattr(steps, name) for steps, _ in parts]) for name in Steps.__annotations__)
    return Steps(*together), torch.stack([returns for _, returns in parts])


class ActionNetwork(nn.Module):
    """F for one action, told the state in the place of a class, and the level. About 10,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(1 + STATE + LEVEL_FEATURES, WIDTH)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, c_noise: Tensor, states: Tensor) -> Tensor:
        inputs = torch.cat([x.flatten(1), states, level_features((4 * c_noise).exp())], dim=1)
        return self.out(self.body(self.stem(inputs))).view_as(x)


def denoiser_of(network: Callable[..., Tensor], sigma_data: float) -> Given:
    return lambda x, sigma, states: Denoiser(with_inputs(network, features=states), sigma_data)(x, sigma)


def train_prior(steps: Steps, sigma_data: float, updates: int, seed: int) -> ActionNetwork:
    """EDM training of p(action | state), frozen at the end."""
    torch.manual_seed(seed)
    network, rng = ActionNetwork(), seeded(seed)
    regress(network, network, steps, sigma_data, None, updates, rng)
    return network.eval().requires_grad_(False)


def regress(
    run: Callable[..., Tensor], trained: nn.Module, steps: Steps, sigma_data: float, log_weights: Tensor | None,
    updates: int, rng: Draws,
) -> None:  # fmt: skip
    """Denoising of the data's actions by F = `run`, drawn in proportion to exp(log_weights) [N], or evenly: with log r,
    the minimiser is the denoiser of p(a | s) r(s, a) / Z(s) for every s."""
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, PRIOR_ADAM.lr, PRIOR_ADAM.betas)
    chances = None if log_weights is None else log_weights.double().softmax(dim=0)
    for update in range(updates):
        rows = (
            rng.integers(len(steps.states), BATCH)
            if chances is None
            else torch.multinomial(chances, BATCH, replacement=True, generator=rng.generator)
        )
        clean, sigma = steps.actions[rows].view(-1, 1, 1, 1), (-1.0 + 1.4 * rng.normal(BATCH)).exp()
        denoiser = Denoiser(with_inputs(run, features=steps.states[rows]), sigma_data)
        loss = denoising_loss(denoiser, clean, None, sigma, rng.normal_like(clean)).mean()
        descend(optimizer, loss, PRIOR_ADAM, update / updates)


class Critic(nn.Module):
    """Q of states and actions, and V of states."""

    def __init__(self) -> None:
        super().__init__()
        self.action_value, self.state_value = (
            nn.Sequential(nn.Linear(n, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))
            for n in (STATE + 1, STATE)
        )

    def q(self, states: Tensor, actions: Tensor) -> Tensor:
        """[B], of actions clamped to [-1, 1], as the pendulum does."""
        return self.action_value(torch.cat([states, actions.clamp(-1, 1)], dim=1))[:, 0]

    def v(self, states: Tensor) -> Tensor:
        return self.state_value(states)[:, 0]

    def advantage(self, states: Tensor, actions: Tensor) -> Tensor:
        """Q - V [B]."""
        return self.q(states, actions) - self.v(states)


def train_critic(steps: Steps, updates: int, seed: int, *, discount: float = 0.95, expectile: float = 0.8) -> Critic:
    """Implicit Q-learning (Kostrikov et al. 2022, Eqs. 5 and 6): V is an expectile of Q over the data's actions, and
    Q(s, a) regresses r + discount V(s'). No action outside the data is asked for. Episodes go on beyond their cut."""
    torch.manual_seed(seed)
    critic, slow, rng = Critic(), Critic(), seeded(seed)
    with torch.no_grad():  # start where the values are, not at 0: a network takes long to get there
        for network in (critic.action_value, critic.state_value):
            last = network[-1]
            assert isinstance(last, nn.Linear)
            last.bias.fill_(float(steps.rewards.mean()) / (1 - discount))
    slow.load_state_dict(critic.state_dict())
    optimizer = torch.optim.Adam(critic.parameters(), CRITIC_ADAM.lr, CRITIC_ADAM.betas)
    for update in range(updates):
        rows = rng.integers(len(steps.states), BATCH)
        states, actions = steps.states[rows], steps.actions[rows]
        with torch.no_grad():
            target = steps.rewards[rows] + discount * critic.v(steps.following[rows])
            reached = slow.q(states, actions)
        gap = reached - critic.v(states)
        weight = torch.where(gap > 0, expectile, 1 - expectile)
        loss = functional.mse_loss(critic.q(states, actions), target) + (weight * gap.square()).mean()
        descend(optimizer, loss, CRITIC_ADAM, update / updates)
        with torch.no_grad():
            for mean, new in zip(slow.parameters(), critic.parameters(), strict=True):
                mean.lerp_(new, 0.02)
    return critic.eval().requires_grad_(False)


def spread(critic: Critic, steps: Steps) -> float:
    """The standard deviation of Q - V over the data: the unit of log r."""
    return float(critic.advantage(steps.states, steps.actions).std())


def wasserstein(samples: Tensor, weights: Tensor, others: Tensor, other_weights: Tensor) -> Tensor:
    """W1 of two weighted samples of numbers in every row: [M, L] each, weights that sum to 1. [M]."""
    values, order = torch.cat([samples, others], dim=1).sort(dim=1)
    gap = torch.cat([weights, -other_weights], dim=1).gather(1, order).cumsum(dim=1)
    return (gap[:, :-1].abs() * values.diff(dim=1)).sum(dim=1)
