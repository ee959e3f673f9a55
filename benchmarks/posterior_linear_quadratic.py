"""Offline control in closed form: a linear system, a quadratic cost, and a Gaussian behaviour.

    s' = A s + B a + w,  w ~ N(0, W);  reward -(s'U s + a'R a) / 2, discounted by g;  behaviour a ~ N(G s, S)

The value of a linear Gaussian policy is -(s'P s) / 2 + c with P = U + G'R G + g (A + B G)'P (A + B G), so that

    Q(s, a) = -(s'U s + a'R a + g (A s + B a)'P (A s + B a)) / 2 + g (c - tr(P W) / 2)

is quadratic in a. The behaviour times exp(beta Q), the solution of maximising E[Q] - KL / beta for every state
(Peters et al. 2010), is Gaussian again, with the precision S^-1 + beta (R + g B'P B). A chain whose denoiser is affine
in x and s is Gaussian, too: `law` is its mean and covariance, without a sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.posterior_told import Given, Told, gaussian_denoiser, gaussian_error, told_problem
from fewstep.ancestral import Chain, ancestral_chain
from fewstep.schedule import karras_sigmas
from trainer.methods.rtb import Problem
from trainer.run.draws import Draws

SOLVED = 2000  # rounds of the recursion for P: its error falls by the discount in each


class Policy(NamedTuple):
    """a ~ N(gain s, covariance)."""

    gain: Tensor  # [d, m]
    covariance: Tensor  # [d, d]


@dataclass(frozen=True, eq=False)
class LinearQuadratic:
    """States of m numbers and actions of d; first states are N(0, I)."""

    move: Tensor  # A [m, m]
    push: Tensor  # B [m, d]
    noise: Tensor  # W [m, m]
    state_cost: Tensor  # U [m, m]
    action_cost: Tensor  # R [d, d]
    discount: float
    behaviour: Policy
    beta: float

    def value(self, policy: Policy) -> tuple[Tensor, float]:
        """P [m, m] and c of a policy. Raises ValueError for one under which the cost is infinite."""
        gain, closed = policy.gain, self.move + self.push @ policy.gain
        if self.discount * float(torch.linalg.eigvals(closed).abs().max()) ** 2 >= 1:
            raise ValueError("the policy does not hold the system: its discounted cost is infinite")
        once = self.state_cost + gain.T @ self.action_cost @ gain
        p = torch.zeros_like(once)
        for _ in range(SOLVED):
            p = once + self.discount * closed.T @ p @ closed
        trace = (self._curvature(p) @ policy.covariance).trace() + self.discount * (p @ self.noise).trace()
        return p, -float(trace) / 2 / (1 - self.discount)

    def expected_return(self, policy: Policy) -> float:
        """The mean discounted return from first states N(0, I)."""
        p, constant = self.value(policy)
        return constant - float(p.trace()) / 2

    def q(self, states: Tensor, actions: Tensor) -> Tensor:
        """Q of the behaviour [B]; states [B, m], actions [B, d]."""
        p, constant = self._value
        following = states @ self.move.T + actions @ self.push.T
        cost = _form(self.state_cost, states) + _form(self.action_cost, actions) + self.discount * _form(p, following)
        return -cost / 2 + self.discount * (constant - float((p @ self.noise).trace()) / 2)

    def posterior(self, prior: Policy | None = None) -> Policy:
        """prior(a | s) exp(beta Q(s, a)) / Z(s). prior: the behaviour, or what a chain makes of it."""
        prior, (p, _) = prior or self.behaviour, self._value
        inverse = torch.linalg.inv(prior.covariance)
        covariance = torch.linalg.inv(inverse + self.beta * self._curvature(p))
        pull = inverse @ prior.gain - self.beta * self.discount * self.push.T @ p @ self.move
        return Policy(covariance @ pull, covariance)

    def log_z(self, states: Tensor, prior: Policy | None = None) -> Tensor:
        """[B]: Bayes' rule at the posterior's mean."""
        before, after = prior or self.behaviour, self.posterior(prior)
        likely = states @ after.gain.T
        gap = _form(torch.linalg.inv(before.covariance), likely - states @ before.gain.T)
        shrunk = torch.logdet(after.covariance) - torch.logdet(before.covariance)
        return self.beta * self.q(states, likely) - gap / 2 + shrunk / 2

    def prior_clean(self, x: Tensor, sigma: float, states: Tensor) -> Tensor:
        """E[a | x] of the behaviour [B, d] for a noisy action x."""
        return gaussian_denoiser(self.behaviour.covariance, states @ self.behaviour.gain.T, x, sigma)

    @cached_property
    def _value(self) -> tuple[Tensor, float]:
        return self.value(self.behaviour)

    def _curvature(self, p: Tensor) -> Tensor:
        """-d^2 Q / da^2 [d, d]."""
        return self.action_cost + self.discount * self.push.T @ p @ self.push


def example(beta: float = 1.0) -> LinearQuadratic:
    """A mass on a line, pushed by two coupled actions; the behaviour holds it, with much noise."""
    behaviour = Policy(torch.tensor([[-0.3, -0.1], [0.0, -0.4]]), torch.tensor([[0.6, 0.2], [0.2, 0.4]]))
    return LinearQuadratic(
        move=torch.tensor([[1.0, 0.2], [0.0, 0.9]]),
        push=torch.tensor([[0.3, 0.0], [0.1, 0.4]]),
        noise=0.02 * torch.eye(2),
        state_cost=torch.tensor([[1.0, 0.0], [0.0, 0.5]]),
        action_cost=0.1 * torch.eye(2),
        discount=0.95,
        behaviour=behaviour,
        beta=beta,
    )


def chain_of(case: LinearQuadratic, levels: int) -> Chain:
    sigmas = karras_sigmas(levels, 0.02, 40.0)
    return ancestral_chain(sigmas, "opt", [gaussian_error(case.behaviour.covariance, sigma) for sigma in sigmas])


def told(case: LinearQuadratic, chain: Chain) -> Told:
    """A policy that is the behaviour's chain until it is trained."""
    d, m = case.behaviour.gain.shape
    return Told(case.prior_clean, chain, d, m)


def problem_of(case: LinearQuadratic, network: Told, states: Tensor) -> Problem:
    """y of the problem is the number of a state in `states` [M, m]."""
    log_reward = lambda actions, given: case.beta * case.q(given, actions.flatten(1))  # noqa: E731
    return told_problem(prior_of(case), network, network.chain, log_reward, network.log_variance, states)


def prior_of(case: LinearQuadratic) -> Given:
    return lambda x, sigma, given: case.prior_clean(x.flatten(1), float(sigma[0]), given).view_as(x)


def draw_states(case: LinearQuadratic, count: int, rng: Draws) -> Tensor:
    """[count, m] from N(0, I)."""
    return rng.normal_like(torch.empty(count, len(case.move)))


@torch.no_grad()
def law(chain: Chain, denoiser: Given, decoder: Given, log_variance: Sequence[float], d: int, m: int) -> Policy:
    """What a chain makes given s, where its denoiser and its last map are affine: linear in s, without a constant."""
    mean, covariance = torch.zeros(d, m), chain.sigmas[0] ** 2 * torch.eye(d)
    for i, sigma in enumerate(chain.sigmas[:-1]):
        of_x, of_s = _parts(denoiser, sigma, d, m)
        of_x, of_s = (1 - chain.gains[i]) * torch.eye(d) + chain.gains[i] * of_x, chain.gains[i] * of_s
        spread = chain.variances[i] * math.exp(log_variance[i])
        mean, covariance = of_x @ mean + of_s, of_x @ covariance @ of_x.T + spread * torch.eye(d)
    of_x, of_s = _parts(decoder, chain.sigmas[-1], d, m)
    return Policy(of_x @ mean + of_s, of_x @ covariance @ of_x.T)


def behaviour_law(case: LinearQuadratic, chain: Chain) -> Policy:
    """Of the behaviour's own chain: close to the behaviour, and what the reward really tilts."""
    d, m = case.behaviour.gain.shape
    return law(chain, prior_of(case), prior_of(case), [0.0] * chain.steps, d, m)


def policy_law(case: LinearQuadratic, network: Told) -> Policy:
    """Of a trained posterior."""
    d, m = case.behaviour.gain.shape
    return law(network.chain, network, prior_of(case), network.log_variance.tolist(), d, m)


def _parts(denoiser: Given, sigma: float, d: int, m: int) -> tuple[Tensor, Tensor]:
    """The matrices [d, d] and [d, m] of an affine denoiser, read from unit vectors."""
    level = lambda rows: torch.full((rows,), sigma)  # noqa: E731
    of_x = denoiser(torch.eye(d).view(d, 1, 1, d), level(d), torch.zeros(d, m)).view(d, d)
    of_s = denoiser(torch.zeros(m, 1, 1, d), level(m), torch.eye(m)).view(m, d)
    return of_x.T, of_s.T


def _form(matrix: Tensor, rows: Tensor) -> Tensor:
    """r'M r of every row [B, k]: [B]."""
    return torch.einsum("bi,ij,bj->b", rows, matrix, rows)
