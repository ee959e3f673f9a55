"""Masked diffusion of a toy language: exact laws, log-ratios and every behaviour, and what training reaches."""

from dataclasses import replace

import pytest
import torch

from benchmarks.posterior_language import (
    LENGTH,
    MASK,
    SYMBOLS,
    Filler,
    Masked,
    conditionals,
    divisor,
    language,
    law,
    looked_up,
    make_task,
    rewards,
    tilted,
    trained,
    variation,
)
from tests.trainer.tiny import draws
from trainer.methods.rtb import BEHAVIOURS, TrajectoryBalance, prior_steps, walk
from trainer.settings import BehaviourMix, PosteriorConfig

Y = torch.zeros(64, dtype=torch.long)
LIKE = torch.empty(64, LENGTH, dtype=torch.long)
FAST = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=0.01))


def lively(task, seed: int = 0) -> Filler:
    torch.manual_seed(seed)
    network = Filler(task.prior)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network.requires_grad_(False)


def test_one_symbol_a_step_makes_the_language_and_two_make_another_law():
    prior = looked_up(conditionals(language()))
    laws = {uncovered: law(prior, uncovered)[0] for uncovered in (1, 2, 6)}
    assert all(float(made.sum()) == pytest.approx(1) for made in laws.values())
    assert variation(laws[1], language()) < 1e-6 and variation(laws[2], language()) > 0.05
    alone = torch.ones(())  # all at once: the product of the marginals
    for axis in range(LENGTH):
        alone = alone[..., None] * language().sum(dim=[other for other in range(LENGTH) if other != axis])
    assert variation(laws[6], alone) < 1e-6


def test_sampled_sentences_have_the_law_that_the_sum_over_states_says():
    task = make_task("given", 2)
    network = lively(task)
    made, _ = law(network, 2)
    rng, count = draws(1), 40_000
    like, y = LIKE.new_empty(count, LENGTH), torch.zeros(count, dtype=torch.long)
    problem = Masked(network, network, task.log_reward, 2)
    found = walk(problem, y, problem.start(like, rng), prior_steps(problem, rng)).images
    for first, second in ((0, 3), (2, 5)):
        pairs = torch.bincount(found[:, first] * SYMBOLS + found[:, second], minlength=SYMBOLS**2) / count
        others = [axis for axis in range(LENGTH) if axis not in (first, second)]
        torch.testing.assert_close(pairs, made.sum(dim=others).flatten().float(), rtol=0, atol=0.01)


def behaved(problem: Masked, trained: Filler, behaviour: str):
    method = TrajectoryBalance(problem, trained, PosteriorConfig(explore_noise=0.5), LIKE[0])
    sentences = torch.randint(SYMBOLS, LIKE.shape, generator=torch.Generator().manual_seed(5))
    if behaviour == "replay":
        method.replay.add(method.trajectories("on_policy", sentences, Y, 0.0, draws(6)))
    return method.trajectories(behaviour, sentences, Y, 0.0, draws(7))


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("reward", rewards())
def test_with_the_exact_denoiser_every_trajectory_is_in_balance(reward: str, behaviour: str):
    task = make_task(reward, 1)
    problem = task.problem(looked_up(conditionals(task.target)))
    residual = behaved(problem, Filler(task.prior), behaviour).residual(1.0)
    torch.testing.assert_close(-residual, torch.full_like(residual, task.log_z), rtol=0, atol=1e-4)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_log_ratio_is_that_of_the_probabilities_of_new_symbols(behaviour: str):
    task = make_task("ending", 3)
    network = lively(task)
    found = behaved(task.problem(network), Filler(task.prior), behaviour)
    expected = torch.zeros(len(Y))
    for before, after in zip(found.states, found.states[1:], strict=False):
        assert (((before == MASK) & (after != MASK)).sum(dim=1) == 3).all()
        assert (after[before != MASK] == before[before != MASK]).all()
        for row in range(len(Y)):
            for at in (before[row] != after[row]).nonzero()[:, 0]:
                log_p = [model(before[row : row + 1])[0, at, after[row, at]] for model in (network, task.prior)]
                expected[row] += log_p[0] - log_p[1]
    torch.testing.assert_close(found.log_ratio, expected, rtol=1e-4, atol=1e-5)


def test_the_divergence_and_the_reward_of_a_law_give_the_bound_that_trajectories_have():
    task = make_task("ending", 2)
    network = lively(task)
    numbers = task.judged(network, 3)
    like, y = LIKE.new_empty(20_000, LENGTH), torch.zeros(20_000, dtype=torch.long)
    problem = Masked(network, task.prior, task.log_reward, 2)  # its prior walks as the network does
    found = walk(problem, y, problem.start(like, draws(4)), prior_steps(problem, draws(8)))
    assert task.log_z - numbers["gap"] == pytest.approx(float((found.log_ratio + found.log_reward).mean()), abs=0.05)


@pytest.mark.parametrize("mix", [BehaviourMix(), BehaviourMix(0.4, 0.2, 0.1, 0.1, 0.2)])
def test_training_finds_the_posterior(mix: BehaviourMix):
    task = make_task("given", 1)
    assert variation(task.chain_law, task.target) > 0.7
    found = task.judged(trained(task, replace(FAST, mix=mix), 150, 64, 0), 1)
    assert found["tv"] < 0.1 and found["log_z_error"] < 0.03 and 0 <= found["gap"] < 0.1 and found["ess"] > 0.85


def test_z_is_the_sum_over_sentences():
    law_ = torch.zeros((SYMBOLS,) * LENGTH)
    law_[0, 3, 0, 0, 1, 2] = 0.25  # both given symbols right
    law_[0, 3, 0, 0, 0, 2] = 0.75  # one
    target, log_z = tilted(law_, rewards()["given"])
    assert log_z == pytest.approx(float(torch.tensor(0.25 * 0.94**2 + 0.75 * 0.94 * 0.02).log()))
    assert float(target[0, 3, 0, 0, 1, 2]) == pytest.approx(0.25 * 0.94 / (0.25 * 0.94 + 0.75 * 0.02))


def test_a_step_uncovers_a_divisor_of_the_length():
    assert [divisor(text) for text in "1236"] == [1, 2, 3, 6]
    for text, says in (("4", "give 1, 2, 3 or 6"), ("0", "from 1 to 6"), ("x", "whole number")):
        with pytest.raises(Exception, match=says):
            divisor(text)


def test_predictions_are_probabilities_in_every_state():
    task = make_task("ending", 1)
    states = torch.randint(SYMBOLS + 1, (200, LENGTH), generator=torch.Generator().manual_seed(2))
    for predict in (task.prior, lively(task)):
        torch.testing.assert_close(predict(states).exp().sum(dim=2), torch.ones(200, LENGTH), rtol=0, atol=1e-5)
