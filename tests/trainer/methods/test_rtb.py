"""Relative trajectory balance: its gradient in three forms, every behaviour, and a Gaussian posterior."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fewstep.analytic import Gaussian
from fewstep.ancestral import ancestral_chain, student_chain
from fewstep.ranges import RangeError
from fewstep.schedule import karras_sigmas
from tests.trainer.tiny import draws, normals
from trainer.methods.rtb import (
    BEHAVIOURS,
    Problem,
    TrajectoryBalance,
    accumulate,
    beta_at,
    choose,
    deviations,
    evaluate,
    monitors,
    own_steps,
    prior_steps,
    walk,
)
from trainer.settings import BehaviourMix, PosteriorConfig

DATA = Gaussian(0.0, 1.0)
SIGMAS = karras_sigmas(9, 0.05, 10.0)
CHAIN = ancestral_chain(SIGMAS, "opt", [DATA.error(sigma) for sigma in SIGMAS])
SHAPE = (16, 1, 1, 2)
Y = torch.zeros(16, dtype=torch.long)
FIXED = PosteriorConfig(learn_variance=False, clip=1e9)


def log_reward(images: Tensor, y: Tensor) -> Tensor:
    """An observation of 1.5 with a deviation of 0.7, in every element; group y observes 1.5 - y."""
    return -((images.flatten(1) - 1.5 + y[:, None]) ** 2).sum(dim=1) / (2 * 0.7**2)


class Tilt(nn.Module):
    """The exact prior denoiser plus an affine map of x for every level and group."""

    def __init__(self, groups: int = 1, scale: float = 0.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(scale * normals(len(SIGMAS), groups, seed=1))
        self.shift = nn.Parameter(scale * normals(len(SIGMAS), groups, seed=2))
        self.log_variance = nn.Parameter(0.3 * scale * normals(CHAIN.steps, seed=3))

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        level = int((torch.tensor(SIGMAS) - sigma[0]).abs().argmin())
        slope, shift = (part[level][y][:, None, None, None] for part in (self.slope, self.shift))
        return DATA.teacher(x, sigma) + slope * x / (1 + sigma[0]) + shift


def problem(tilt: Tilt, groups: int = 1) -> Problem:
    return Problem(lambda x, sigma, _: DATA.teacher(x, sigma), tilt, CHAIN, log_reward, tilt.log_variance, groups)


def trajectories(tilt: Tilt, seed: int = 0, count: int = 16):
    rng, like = draws(seed), torch.empty(count, *SHAPE[1:])
    mine = problem(tilt)
    return mine, walk(mine, torch.zeros(count, dtype=torch.long), mine.start(like, rng), own_steps(mine, rng))


def gradients(tilt: Tilt) -> Tensor:
    found = torch.cat([weight.grad.flatten() for weight in tilt.parameters() if weight.grad is not None])
    tilt.zero_grad(set_to_none=True)
    return found


def whole_ratio(mine: Problem, found) -> Tensor:
    """sum of l_i [B] in one retained graph."""
    terms = [
        mine.step_ratio(i, found.states[i], found.states[i + 1], found.prior[i], found.y)
        for i in range(mine.chain.steps)
    ]
    return torch.stack(terms).sum(dim=0)


def test_a_posterior_that_is_the_prior_has_the_mean_log_reward_as_its_bound():
    _, found = trajectories(Tilt())
    assert torch.equal(found.log_ratio, torch.zeros(16))
    torch.testing.assert_close(found.residual(0.5), -0.5 * found.log_reward)
    torch.testing.assert_close(monitors(found.residual(1.0), found.log_reward)["elbo"], found.log_reward.mean())


@pytest.mark.parametrize("log_z", [None, torch.tensor([-1.3])])
def test_the_gradient_step_by_step_is_that_of_the_loss_in_one_graph(log_z: Tensor | None):
    tilt = Tilt(scale=0.2)
    mine, found = trajectories(tilt)
    residual = found.residual(1.0)
    accumulate(mine, found, deviations(residual, found.y, log_z, FIXED), list(range(CHAIN.steps)))
    ours = gradients(tilt)
    residual = whole_ratio(mine, found) - found.log_reward
    loss = residual.var(correction=0) / 2 if log_z is None else (residual + log_z).square().mean() / 2
    loss.backward()
    torch.testing.assert_close(ours, gradients(tilt), rtol=1e-4, atol=1e-4)


def test_a_subset_of_steps_is_unbiased():
    tilt = Tilt(scale=0.2)
    mine, found = trajectories(tilt)
    away = deviations(found.residual(1.0), found.y, None, FIXED)
    accumulate(mine, found, away, list(range(CHAIN.steps)))
    whole = gradients(tilt)
    single = []
    for step in range(CHAIN.steps):
        accumulate(mine, found, away, [step])
        single.append(gradients(tilt))
    torch.testing.assert_close(torch.stack(single).mean(dim=0), whole, rtol=1e-4, atol=1e-5)
    method = TrajectoryBalance(mine, tilt, replace(FIXED, levels=3), torch.empty(SHAPE[1:]))
    rng, counts = draws(5), torch.zeros(CHAIN.steps)
    for _ in range(2000):
        drawn = method._steps(rng)
        assert len(set(drawn)) == 3
        counts[drawn] += 1
    assert float((counts / 2000 - 3 / CHAIN.steps).abs().max()) < 0.05


def test_on_policy_vargrad_is_the_policy_gradient_with_the_log_reward():
    """REINFORCE with the advantage beta log r - log-ratio, less its mean (Deleu et al. 2025), sample by sample."""
    tilt = Tilt(scale=0.2)
    mine, found = trajectories(tilt)
    beta = 0.7
    accumulate(mine, found, deviations(found.residual(beta), found.y, None, FIXED), list(range(CHAIN.steps)))
    ours = gradients(tilt)
    advantage = beta * found.log_reward - found.log_ratio
    # Trajectories are given, so the gradient of the log-ratio is that of the posterior's log-density.
    (-(advantage - advantage.mean()) * whole_ratio(mine, found)).mean().backward()
    torch.testing.assert_close(ours, gradients(tilt), rtol=1e-4, atol=1e-4)


def test_log_z_is_of_a_group():
    residual, y = torch.tensor([1.0, 3.0, -5.0, -7.0]), torch.tensor([0, 0, 2, 2])
    assert deviations(residual, y, None, FIXED).tolist() == [-1, 1, 1, -1]
    assert deviations(residual, y, torch.tensor([-1.0, 9.0, 5.0]), FIXED).tolist() == [0, 2, 0, -2]


def test_dead_zone_and_clip():
    residual, y = torch.tensor([0.2, -0.2, 4.0, -4.0]), torch.zeros(4, dtype=torch.long)
    config = replace(FIXED, dead_zone=0.1)
    assert deviations(residual, y, torch.zeros(1), config).tolist() == [0, 0, 4, -4]
    clipped = deviations(residual, y, torch.zeros(1), replace(FIXED, clip=1.0))
    rms = math.sqrt((2 * 0.04 + 2 * 16) / 4)
    assert clipped.tolist() == pytest.approx([0.2, -0.2, rms, -rms])


def test_two_phases_keep_one_call_in_memory():
    """What autograd saves at one time does not grow with the chain."""

    def most_saved(steps: int) -> int:
        sigmas = karras_sigmas(steps + 1, 0.05, 10.0)
        tilt = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 2))
        chain = ancestral_chain(sigmas, "small")
        run = lambda x, sigma, _: DATA.teacher(x, sigma) + tilt(x.flatten(1)).view_as(x)  # noqa: E731
        mine = Problem(lambda x, sigma, _: DATA.teacher(x, sigma), run, chain, log_reward, torch.zeros(steps))
        rng = draws()
        found = walk(mine, Y, mine.start(torch.empty(SHAPE), rng), own_steps(mine, rng))
        saved, most = 0, 0

        def pack(tensor: Tensor):
            nonlocal saved, most
            saved += tensor.numel()
            most = max(most, saved)
            return tensor

        def unpack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved -= tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            accumulate(mine, found, deviations(found.residual(1.0), Y, None, FIXED), list(range(steps)))
        return most

    assert 0 < most_saved(40) <= 1.1 * most_saved(4)


MIXES = {
    "on_policy": BehaviourMix(),
    "mixed": BehaviourMix(0.4, 0.2, 0.1, 0.1, 0.2),
    "noised_back": BehaviourMix(0, noised_back=1.0),
}


def exact() -> tuple[float, float, float]:
    """Mean and deviation of an element of the posterior, and log Z of two, of the law that the chain really has."""
    prior = DATA.through(CHAIN)
    precision = 1 / prior.std**2 + 1 / 0.7**2
    total = prior.std**2 + 0.7**2
    log_z = 2 * (-(1.5**2) / (2 * total) + 0.5 * math.log(0.7**2 / total))
    return 1.5 / 0.7**2 / precision, precision**-0.5, log_z


@pytest.mark.parametrize(("mix", "log_z"), [("on_policy", "vargrad"), ("mixed", "vargrad"), ("noised_back", "learned")])
def test_training_finds_the_gaussian_posterior_whatever_the_behaviour(mix: str, log_z):
    mean, std, evidence = exact()
    tilt = Tilt()
    adam = replace(PosteriorConfig().adam, lr=0.05)
    config = PosteriorConfig(mix=MIXES[mix], log_z=log_z, log_z_lr=0.1, adam=adam, replay_from=0.1)
    mine, rng = problem(tilt), draws(3)
    method = TrajectoryBalance(mine, tilt, config, torch.empty(SHAPE[1:]))
    y, scalars = torch.zeros(128, dtype=torch.long), {}
    for update in range(150):
        scalars = method.update(mean + std * rng.normal_like(torch.empty(128, *SHAPE[1:])), y, update / 150, rng)
    like, many = torch.empty(4000, *SHAPE[1:]), torch.zeros(4000, dtype=torch.long)
    found = evaluate(mine, like, many, 1.0, rng)
    assert found["elbo"] <= evidence + 0.03 and found["eubo"] >= evidence - 0.1
    assert found["log_z"] == pytest.approx(evidence, abs=0.05)
    assert found["log_z_prior"] == pytest.approx(evidence, abs=0.15)
    assert found["ess"] > 0.75
    again = [evaluate(mine, like[:400], many[:400], 1.0, rng) for _ in range(12)]
    for name in ("elbo", "prior_log_reward"):  # the spread of a mean over 400 is its standard error
        spread = torch.tensor([each[name] for each in again]).std()
        assert again[0][f"{name}_error"] == pytest.approx(float(spread), rel=0.75)
    images = walk(mine, many, mine.start(like, rng), own_steps(mine, rng)).images
    assert float(images.mean()) == pytest.approx(mean, abs=0.06)
    assert float(images.std()) == pytest.approx(std, rel=0.12)  # the prior has 1.7 times as much
    if log_z == "learned":
        assert float(method.log_z.value.detach()) == pytest.approx(evidence, abs=0.2)
    shares = {name: float(scalars.get(f"share_{name}", 0)) for name in BEHAVIOURS}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == pytest.approx({name: getattr(MIXES[mix], name) for name in BEHAVIOURS}, abs=0.15)


def test_every_group_gets_its_own_posterior():
    tilt = Tilt(groups=2)
    config = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=0.05))
    mine, rng = problem(tilt, groups=2), draws(4)
    method = TrajectoryBalance(mine, tilt, config, torch.empty(SHAPE[1:]))
    y = torch.arange(128) % 2
    for update in range(80):
        method.update(torch.empty(128, *SHAPE[1:]), y, update / 80, rng)
    like, many = torch.empty(2000, *SHAPE[1:]), torch.arange(2000) % 2
    images = walk(mine, many, mine.start(like, rng), own_steps(mine, rng)).images
    means = [float(images[many == group].mean()) for group in (0, 1)]
    assert means == pytest.approx([exact()[0], exact()[0] / 3], abs=0.08)  # observed: 1.5 and 0.5


def test_replayed_trajectories_keep_their_group():
    """A reward of y alone: log Z is known, and learned from replays whose y are others than the batch's."""
    tilt = Tilt(groups=2)
    mine = replace(problem(tilt, groups=2), log_reward=lambda images, y: -3.0 * y)
    config = PosteriorConfig(mix=BehaviourMix(0.5, replay=0.5), log_z="learned", log_z_lr=0.1, replay_from=0.0)
    method, rng = TrajectoryBalance(mine, tilt, config, torch.empty(SHAPE[1:])), draws(8)
    for update in range(80):
        method.update(torch.empty(SHAPE), torch.arange(16) % 2, update / 80, rng)
    assert method.log_z.value.tolist() == pytest.approx([0, -3], abs=0.15)
    assert float(method.replay.used[BEHAVIOURS.index("replay")]) > 20
    _, y = method.replay.draw(64, 0.0, rng)
    assert not torch.equal(y, torch.arange(64) % 2)


def test_the_student_chain_is_trained_alike():
    """Each step of a few-step student is Gaussian: its own chain has a posterior too."""
    chain = student_chain((2.0, 1.0, 0.4))
    student = lambda x, sigma, _: DATA.student(x, sigma)  # noqa: E731
    moved = nn.Parameter(torch.zeros(3, 2))
    run = lambda x, sigma, _: DATA.student(x, sigma) * (1 + moved[_at(sigma), 0]) + moved[_at(sigma), 1]  # noqa: E731
    _at = lambda sigma: (2.0, 1.0, 0.4).index(round(float(sigma[0]), 3))  # noqa: E731
    trained = nn.Module()
    trained.moved, trained.log_variance = moved, nn.Parameter(torch.zeros(2))
    mine = Problem(student, run, chain, log_reward, trained.log_variance)
    adam = replace(PosteriorConfig().adam, lr=0.03)
    method, rng = TrajectoryBalance(mine, trained, PosteriorConfig(adam=adam), torch.empty(SHAPE[1:])), draws(6)
    like, y = torch.empty(2000, *SHAPE[1:]), torch.zeros(2000, dtype=torch.long)
    before = evaluate(mine, like, y, 1.0, rng)
    for update in range(100):
        method.update(like[:128], y[:128], update / 100, rng)
    after = evaluate(mine, like, y, 1.0, rng)
    assert before["elbo"] + 0.5 < after["elbo"] < after["log_z_prior"] + 0.1
    assert after["log_reward"] > before["log_reward"] + 0.5


def test_mixes_and_tempering():
    mix = BehaviourMix(0.5, 0.0, 0.3, 0.0, 0.2)
    assert [choose(mix, number, True) for number in (0.0, 0.49, 0.6, 0.9, 1.0)] == [
        "on_policy", "on_policy", "replay", "prior", "on_policy",
    ]  # fmt: skip
    assert choose(mix, 0.6, replayable=False) == "on_policy"
    with pytest.raises(RangeError, match=r"must sum to 1, not 1\.5"):
        BehaviourMix(1.0, 0.5)
    config = PosteriorConfig(beta=2.0, beta_start=0.5, beta_until=0.5)
    assert [beta_at(config, progress) for progress in (0, 0.25, 0.5, 1)] == [0.5, 1.25, 2.0, 2.0]


def test_the_prior_behaviour_follows_the_prior():
    tilt = Tilt(scale=0.5)
    mine, rng = problem(tilt), draws(7)
    like, y = torch.empty(8000, *SHAPE[1:]), torch.zeros(8000, dtype=torch.long)
    images = walk(mine, y, mine.start(like, rng), prior_steps(mine, rng)).images
    law = DATA.through(CHAIN)
    assert float(images.mean()) == pytest.approx(law.mean, abs=0.03)
    assert float(images.std()) == pytest.approx(law.std, rel=0.03)
