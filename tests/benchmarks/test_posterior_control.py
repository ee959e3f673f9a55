"""Offline control: the linear-quadratic closed form against simulation and quadrature, what training reaches, and the
parts of the pendulum."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from benchmarks import posterior_control as control
from benchmarks import posterior_pendulum as pendulum
from benchmarks.posterior_linear_quadratic import (
    Policy,
    behaviour_law,
    chain_of,
    draw_states,
    example,
    policy_law,
    problem_of,
    told,
)
from benchmarks.posterior_told import train_told
from fewstep.ancestral import ancestral_chain
from fewstep.schedule import karras_sigmas
from tests.trainer.tiny import draws, normals
from trainer.methods.rtb import own_steps, walk
from trainer.settings import PosteriorConfig

CASE = example()


def acting(policy: Policy, states: Tensor, seed: int) -> Tensor:
    root = torch.linalg.cholesky(policy.covariance)
    return states @ policy.gain.T + normals(len(states), len(root), seed=seed) @ root.T


def simulated(policy: Policy, first: Tensor, steps: int = 200) -> Tensor:
    """Discounted returns [B] of episodes from first states."""
    states, total = first, torch.zeros(len(first))
    for step in range(steps):
        actions = acting(policy, states, 2 * step)
        cost = (states @ CASE.state_cost * states).sum(dim=1) + (actions @ CASE.action_cost * actions).sum(dim=1)
        total -= CASE.discount**step * cost / 2
        noise = normals(len(states), 2, seed=2 * step + 1) @ torch.linalg.cholesky(CASE.noise).T
        states = states @ CASE.move.T + actions @ CASE.push.T + noise
    return total


@pytest.mark.parametrize("policy", [CASE.behaviour, CASE.posterior()], ids=["behaviour", "posterior"])
def test_the_return_of_a_policy_is_that_of_simulated_episodes(policy: Policy):
    found = simulated(policy, normals(4000, 2, seed=999))
    assert CASE.expected_return(policy) == pytest.approx(float(found.mean()), abs=4 * float(found.std()) / 4000**0.5)


def test_q_is_the_reward_and_the_discounted_value_of_what_follows():
    first, action = torch.tensor([[0.8, -0.5]]).expand(4000, 2), torch.tensor([[-0.7, 0.4]]).expand(4000, 2)
    noise = normals(4000, 2, seed=7) @ torch.linalg.cholesky(CASE.noise).T
    following = first @ CASE.move.T + action @ CASE.push.T + noise
    found = simulated(CASE.behaviour, following)
    cost = (first @ CASE.state_cost * first).sum(dim=1) + (action @ CASE.action_cost * action).sum(dim=1)
    expected = -float(cost[0]) / 2 + CASE.discount * float(found.mean())
    assert float(CASE.q(first, action)[0]) == pytest.approx(expected, abs=4 * float(found.std()) / 4000**0.5)


def test_the_posterior_and_its_z_are_those_of_quadrature():
    state, line = torch.tensor([[0.6, -1.1]], dtype=torch.float64), torch.linspace(-7, 7, 401, dtype=torch.float64)
    actions = torch.cartesian_prod(line, line)
    double = replace(CASE, **{name: getattr(CASE, name).double() for name in ("move", "push", "noise", "state_cost",
                     "action_cost")}, behaviour=Policy(*(part.double() for part in CASE.behaviour)))  # fmt: skip
    prior = torch.distributions.MultivariateNormal((state @ double.behaviour.gain.T)[0], double.behaviour.covariance)
    log_mass = prior.log_prob(actions) + double.beta * double.q(state.expand(len(actions), 2), actions)
    log_mass += 2 * (line[1] - line[0]).log()
    share = log_mass.softmax(dim=0)
    mean = share @ actions
    covariance = (share[:, None] * (actions - mean)).T @ (actions - mean)
    exact = double.posterior()
    assert float(double.log_z(state)[0]) == pytest.approx(float(log_mass.logsumexp(0)), abs=1e-6)
    torch.testing.assert_close(mean, (state @ exact.gain.T)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(covariance, exact.covariance, rtol=0, atol=1e-6)


def test_a_policy_that_does_not_hold_the_system_has_no_value():
    with pytest.raises(ValueError, match="does not hold"):
        CASE.value(Policy(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.eye(2)))


def test_training_finds_the_gaussian_policy_of_every_state():
    chain = chain_of(CASE, 20)
    network, before = told(CASE, chain), behaviour_law(CASE, chain)
    target = CASE.posterior(before)
    assert float((policy_law(CASE, network).gain - before.gain).abs().max()) < 1e-6
    assert float((before.gain - target.gain).abs().max()) > 0.4
    config = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=0.02))
    train_told(lambda states: problem_of(CASE, network, states), network,
               lambda count, rng: draw_states(CASE, count, rng), config, 100, draws(0), d=2, m=2)  # fmt: skip
    found = policy_law(CASE, network)
    torch.testing.assert_close(found.gain, target.gain, rtol=0, atol=0.02)
    torch.testing.assert_close(found.covariance, target.covariance, rtol=0, atol=0.02)
    assert CASE.expected_return(found) == pytest.approx(CASE.expected_return(target), abs=0.15)

    states = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.5, 0.5], [0.5, -1.5]])
    problem, y, rng = problem_of(CASE, network, states), torch.arange(8000) % 4, draws(2)
    found_z, exact = [], CASE.log_z(states, before)
    made = walk(problem, y, problem.start(torch.empty(8000, 1, 1, 2), rng), own_steps(problem, rng))
    for row in range(4):
        log_weights = -made.residual(1.0)[y == row]
        found_z.append(log_weights.logsumexp(0) - math.log(2000))
        assert 0 < exact[row] - log_weights.mean() < 0.05
    assert float(exact.std()) > 1  # a Z of every state
    torch.testing.assert_close(torch.stack(found_z), exact, rtol=0, atol=0.03)
    for row in range(4):  # the law without samples is that of samples
        some = made.images[y == row].flatten(1)
        torch.testing.assert_close(some.mean(dim=0), found.gain @ states[row], rtol=0, atol=0.06)
        torch.testing.assert_close(some.T.cov(), found.covariance, rtol=0, atol=0.06)


def test_the_distance_of_weighted_samples_is_scipys():
    samples, others, log_weights = normals(3, 40, seed=1), 0.5 + normals(3, 25, seed=2), normals(2, 3, 40, seed=3)
    weights, other_weights = log_weights[0].softmax(dim=1), log_weights[1, :, :25].softmax(dim=1)
    expected = [
        wasserstein_distance(*(part[row].numpy() for part in (samples, others, weights, other_weights)))
        for row in range(3)
    ]
    assert pendulum.wasserstein(samples, weights, others, other_weights).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_controller_balances_and_the_same_seed_plays_the_same_episodes():
    steps, returns = pendulum.play(pendulum.controller, 8, 3)
    assert float(returns.mean()) > -350  # -1,200 for random torques
    again, _ = pendulum.play(pendulum.controller, 8, 3)
    assert torch.equal(steps.states, again.states) and len(steps.states) == 8 * pendulum.EPISODE // pendulum.HELD
    torch.testing.assert_close(steps.following[:-8], steps.states[8:])  # one decision later, episode by episode
    assert float(returns.sum()) == pytest.approx(pendulum.REWARD * float(steps.rewards.sum()), rel=1e-4)


def test_the_critic_finds_a_reward_and_its_expectile():
    """Without a future, Q is r = -a^2 and V the expectile of it over uniform actions: the mean, for 0.5."""
    actions = 2 * draws(1).uniform(3000)[:, None] - 1
    states = normals(3000, 3, seed=2)
    steps = pendulum.Steps(states, actions, -actions[:, 0].square(), states)
    fair, high = (pendulum.train_critic(steps, 400, 0, discount=0.0, expectile=tau) for tau in (0.5, 0.8))
    torch.testing.assert_close(fair.q(states, actions), steps.rewards, rtol=0, atol=0.12)
    assert float(fair.v(states).mean()) == pytest.approx(-1 / 3, abs=0.03)
    assert float(high.v(states).mean()) == pytest.approx(-0.181, abs=0.03)  # the root of its equation
    assert torch.equal(fair.q(states, 3 * actions.sign()), fair.q(states, actions.sign()))  # as the torque is cut


def test_regression_by_log_r_is_the_denoiser_of_the_tilt():
    """Two actions as often as each other, one with nine times the reward: far above the data, D is the tilted mean."""
    torch.manual_seed(0)
    signs, states = torch.arange(400)[:, None] % 2 * 2.0 - 1, normals(400, 3, seed=8)
    steps = pendulum.Steps(states, 0.6 * signs, signs[:, 0], states)
    network = pendulum.ActionNetwork()
    pendulum.regress(network, network, steps, 0.6, math.log(9) * (signs[:, 0] > 0), 300, draws(9))
    noisy, sigma = 5.0 * normals(400, 1, 1, 1, seed=10), torch.full((400,), 5.0)
    found = pendulum.denoiser_of(network.requires_grad_(False), 0.6)(noisy, sigma, states)
    assert float(found.mean()) == pytest.approx(0.6 * (0.9 - 0.1), abs=0.06)


def untrained() -> control.Pendulum:
    torch.manual_seed(0)
    network, critic = pendulum.ActionNetwork().requires_grad_(False), pendulum.Critic().requires_grad_(False)
    states = normals(50, 3, seed=4)
    steps = pendulum.Steps(states, states[:, :1].tanh(), states[:, 0], states)
    chain = ancestral_chain(karras_sigmas(5, 0.03, 20.0), "small")
    return control.Pendulum(steps, critic, 0.01, network, 0.5, chain)


def test_choosing_among_actions_of_the_prior():
    task, states = untrained(), normals(200, 3, seed=5)
    one = control.act(task, states, draws(1))
    assert torch.equal(control.best_of(task, 1, draws(1))(states), one)
    q = lambda policy: float(task.critic.q(states, policy(states)).mean())  # noqa: E731
    best, drawn = control.best_of(task, 8, draws(1)), control.one_of(task, 8, 1.0, draws(1))
    assert q(best) > q(drawn) > float(task.critic.q(states, one).mean())


def test_an_adapter_that_is_not_trained_acts_as_the_prior_and_misses_balance_by_log_r():
    task, states = untrained(), normals(20, 3, seed=6)
    adapter = control.Adapter(task.network, 2, task.chain.steps, torch.Generator().manual_seed(0))
    assert torch.equal(control.act(task, states, draws(2), adapter), control.act(task, states, draws(2)))
    y = torch.arange(20)
    problem, rng = task.problem(adapter, 2.0, states), draws(3)
    found = walk(problem, y, problem.start(torch.empty(20, 1, 1, 1), rng), own_steps(problem, rng))
    expected = 2.0 / 0.01 * task.critic.advantage(states, found.images.flatten(1))
    torch.testing.assert_close(found.residual(1.0), -expected)
