"""What the student is fed: real images noised, its own trajectory, levels of the served lists or any."""

import math
from collections import Counter
from functools import partial

import pytest
import torch

from fewstep.analytic import Gaussian
from fewstep.precond import Denoiser
from fewstep.samplers import sample_dpdm
from fewstep.schedule import SIGMA_MAX
from tests.trainer.tiny import draws, lively, normals
from trainer.levels.renoise import Drawn, LevelLists, renoise_levels
from trainer.methods.base import add_noise, simulate_input
from trainer.methods.dpdm import Student
from trainer.run.compute import Compute
from trainer.settings import RULES, StudentConfig, served_lists

FLOOR = 0.05
LISTS = LevelLists.of(served_lists((1, 2, 4), 0.01), FLOOR)


def test_images_are_noised_to_their_level_and_the_top_is_nothing_but_noise():
    position = torch.arange(3000) % 3
    sigma = torch.tensor([80.0, 3.0, 0.2])[position]
    images = 0.9 + 0.05 * normals(3000, 1, 4, 4)
    fed = add_noise(images, Drawn(sigma, sigma / 2, position), draws(1))
    unit = fed.x / sigma[:, None, None, None]
    assert abs(unit[position == 0].mean()) < 0.02 and abs(unit[position == 0].std() - 1) < 0.02
    for at in (1, 2):
        added = (fed.x - images)[position == at] / sigma[position == at, None, None, None]
        assert abs(added.mean()) < 0.02 and abs(added.std() - 1) < 0.02
    # not merely drowned: at the top another image is the same input
    again = add_noise(-images, Drawn(sigma, sigma / 2, position), draws(1))
    same = (again.x == fed.x).flatten(1).all(1)
    assert same[position == 0].all() and not same[position > 0].any()


@pytest.mark.parametrize("seed", range(4))
def test_a_simulated_input_is_where_the_sampler_stands_before_that_step(seed):
    labels, like = torch.arange(8) % 10, torch.empty(8, 1, 8, 8)
    student = Denoiser(lively(), 0.5, 10)
    fed = simulate_input(student, LISTS, like, labels, draws(seed))
    rng = draws(seed)
    sigmas, stop = LISTS.list_at(rng.shared_uniform()), int(fed.drawn.position[0])
    assert stop == int(rng.shared_uniform() * len(sigmas))
    noise = [rng.normal_like(like) for _ in range(stop + 1)]
    expected = sigmas[0] * noise[0]
    if stop:
        with torch.no_grad():
            expected = sample_dpdm(partial(student, labels=labels), noise.__getitem__, sigmas[:stop]).images
        expected = expected + sigmas[stop] * noise[stop]
    torch.testing.assert_close(fed.x, expected)
    assert fed.drawn.sigma.tolist() == pytest.approx([sigmas[stop]] * 8)
    assert fed.drawn.below.tolist() == pytest.approx([(*sigmas, FLOOR)[stop + 1]] * 8)
    assert not fed.x.requires_grad


def test_seeds_above_reach_the_first_and_a_later_step():
    like, labels = torch.empty(1, 1, 1, 1), torch.zeros(1)
    stops = [int(simulate_input(lambda x, *_: x, LISTS, like, labels, draws(seed)).drawn.position) for seed in range(4)]
    assert min(stops) == 0 and max(stops) > 0


def test_lists_and_their_steps_are_simulated_equally_often():
    rng, still = draws(2), lambda x, sigma, labels: x
    seen = Counter()
    for _ in range(3000):
        drawn = simulate_input(still, LISTS, torch.empty(1, 1, 1, 1), torch.zeros(1), rng).drawn
        seen[round(drawn.sigma.item(), 3), round(drawn.below.item(), 3), int(drawn.position)] += 1
    for levels in served_lists((1, 2, 4), 0.01):
        for step, sigma in enumerate(levels):
            share = seen[round(sigma, 3), round((*levels, FLOOR)[step + 1], 3), step] / 3000
            assert share == pytest.approx(1 / 3 / len(levels), abs=0.03)


def test_a_perfect_students_trajectory_has_the_law_of_noised_data():
    data, rng, like = Gaussian(0.2, 0.5), draws(3), torch.empty(400, 1, 8, 8)
    for _ in range(12):
        fed = simulate_input(lambda x, sigma, labels: data.student(x, sigma), LISTS, like, torch.zeros(400), rng)
        sigma, top = fed.drawn.sigma[0].item(), int(fed.drawn.position[0]) == 0
        std = math.hypot(0.0 if top else data.std, sigma)
        assert fed.x.std().item() == pytest.approx(std, rel=0.02)
        assert fed.x.mean().item() == pytest.approx(0 if top else data.mean, abs=4 * std / fed.x.numel() ** 0.5)


def test_an_ncvsd_student_decides_afresh_at_every_step_it_simulates():
    student = Student(lively(), 0.5, StudentConfig(objective="ncvsd", simulate=1.0, simulate_from=0.0), Compute())
    latents = []

    def network(x, c_noise, onehot):
        latents.append(x[:, 1:])
        return torch.zeros_like(x[:, :1])

    student.student = Denoiser(network, 0.5, 10)
    rng = draws(4)
    for _ in range(6):
        student.feed(torch.empty(4, 1, 8, 8), torch.zeros(4).long(), 0.5, rng)
    assert len(latents) > 4
    assert len({latent.sum().item() for latent in latents}) == len(latents)


@pytest.mark.parametrize(("progress", "share"), [(0.4, 0.0), (0.5, 0.3), (1.0, 0.3)])
def test_own_trajectories_are_fed_at_their_share_and_not_before_their_time(progress, share):
    student = Student(lively(), 0.5, StudentConfig(simulate=0.3, simulate_from=0.5), Compute())
    student.student = Denoiser(lambda x, c_noise, onehot: torch.zeros_like(x), 0.5, 10)
    rng = draws(5)
    images, labels = torch.empty(64, 1, 8, 8), torch.zeros(64).long()
    fed = [student.feed(images, labels, progress, rng) for _ in range(400)]
    own = sum(len(one.drawn.sigma.unique()) == 1 for one in fed) / len(fed)  # a trajectory is at one level
    assert own == pytest.approx(share, abs=0.25 * share)


def test_a_share_of_one_draws_the_top_alone():
    drawn = LISTS.draw(100, 1.0, draws())
    assert (drawn.position == 0).all() and (drawn.below < drawn.sigma).all()
    torch.testing.assert_close(drawn.sigma, torch.full_like(drawn.sigma, SIGMA_MAX))


@pytest.mark.parametrize("rule", RULES)
def test_outputs_of_any_level_are_noised_to_the_floor_at_least(rule):
    drawn = LISTS.draw(5000, 0.3, draws(9))
    assert renoise_levels(rule, drawn, FLOOR, draws(10)).min() >= FLOOR * 0.9999
