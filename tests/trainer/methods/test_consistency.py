"""Consistency distillation: its targets on closed forms, what an update touches, what a short run achieves, resume."""

import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fewstep.analytic import Gaussian, as_network
from fewstep.card import WEIGHTS_FILE, read_card
from fewstep.consistency import consistency_levels
from fewstep.network import UNet
from fewstep.noise_torch import noise_for
from fewstep.precond import Denoiser
from fewstep.ranges import RangeError
from fewstep.samplers import sample_dpdm, sample_euler, sample_heun
from fewstep.schedule import solver_sigmas
from tests.trainer.methods.test_dpdm import energy_distance
from tests.trainer.tiny import TINY, copied, draws, equal, lively, normals, run_options
from trainer.commands import train_student
from trainer.data.format import ImageSet
from trainer.data.loader import batches
from trainer.methods.consistency import Consistency, pseudo_huber, solver_step, squared_distance
from trainer.options import Distillation
from trainer.run.compute import Compute
from trainer.run.ema import average_of, blend, power_decay
from trainer.run.loop import LoopConfig, train
from trainer.settings import ConsistencyConfig
from trainer.switches import SwitchError

PAIR = Gaussian(0.1, 0.5)


def exact(**settings: Any) -> Consistency:
    """A method whose teacher is the exact conditional mean of PAIR, and whose student the exact end of its ODE."""
    method = Consistency(UNet(TINY), 0.5, ConsistencyConfig(**settings), Compute())
    method.teacher = Denoiser(as_network(PAIR.teacher, 0.5), 0.5)
    method.student = method.target = Denoiser(as_network(PAIR.student, 0.5), 0.5)
    return method


def every_level(method: Consistency, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy images [rows x intervals, 1, 8, 8] of PAIR's data at every level but 0, those levels and the next ones."""
    sigma, sigma_next = (part.repeat(rows) for part in (method.sigmas[:-1], method.sigmas[1:]))
    spread = (PAIR.std**2 + sigma**2).sqrt()[:, None, None, None]
    return PAIR.mean + spread * normals(len(sigma), 1, 8, 8), sigma, sigma_next


def worst_gap(**settings: Any) -> float:
    """How far targets lie from the exact end of the ODE, at the worst level: root mean square over pixels."""
    method = exact(**settings)
    x, sigma, sigma_next = every_level(method)
    gap = method.targets(x, sigma, sigma_next, None) - PAIR.student(x, sigma)
    return gap.reshape(-1, method.config.intervals, 64).square().mean(dim=(0, 2)).sqrt().max().item()


# Steps are half as wide when N doubles, and the error of one step is of an order more than the solver's.
@pytest.mark.parametrize(("solver", "bounds"), [("heun", (6.0, 10.0)), ("euler", (3.0, 5.0))])
def test_targets_near_the_exact_end_of_the_ode_as_intervals_narrow(solver, bounds):
    coarse, fine = (worst_gap(solver=solver, intervals=n, sigma_min=0.01) for n in (36, 72))
    assert bounds[0] < coarse / fine < bounds[1]


def test_with_the_papers_intervals_heun_misses_by_a_fortieth_of_the_datas_spread_and_euler_by_twice_that():
    assert worst_gap(solver="heun") < PAIR.std / 40 < 0.5 * worst_gap(solver="euler")


@pytest.mark.parametrize("metric", ["pseudo-huber", "l2"])
def test_the_exact_consistency_function_has_almost_no_loss_and_a_conditional_mean_has_much(metric):
    method = exact(metric=metric, intervals=72)
    images = PAIR.mean + PAIR.std * normals(512, 1, 8, 8)
    none = method.loss(images, None, draws(1)).mean()
    method.student = method.target = method.teacher
    assert none < 0.02 * method.loss(images, None, draws(1)).mean()


def test_the_last_target_is_the_teachers_denoised_image():
    method = exact()
    x, sigma, sigma_next = every_level(method)
    last = sigma_next == 0
    expected = PAIR.teacher(x[last], sigma[last])
    torch.testing.assert_close(method.targets(x, sigma, sigma_next, None)[last], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("solver", "sampler"), [("heun", sample_heun), ("euler", sample_euler)])
def test_a_solver_step_is_the_samplers_with_a_level_for_each_row(solver, sampler):
    noise = normals(3, 1, 8, 8)
    denoiser = lambda x, sigma: torch.tanh(x) / (1 + sigma)[:, None, None, None]  # noqa: E731
    starts, ends = torch.tensor([40.0, 2.0, 0.1]), torch.tensor([30.0, 1.0, 0.0])
    x = starts[:, None, None, None] * noise
    stepped = solver_step(denoiser, x, starts, ends, solver)
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        own = noise[row : row + 1]
        if end == 0:
            expected = sampler(denoiser, lambda _, own=own: own, (start, 0.0)).images
        else:  # two intervals less the last one: a sampler walks on to zero, where it lands on the denoised image
            seen: list[torch.Tensor] = []

            def spied(x, sigma, seen=seen):
                seen.append(x)
                return denoiser(x, sigma)

            sampler(spied, lambda _, own=own: own, (start, end, 0.0))
            expected = seen[-1]  # what the last call was made on
        torch.testing.assert_close(stepped[row : row + 1], expected, rtol=1e-5, atol=1e-6)


def test_distances():
    a, b = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    b[1, 0, 0, :2] = torch.tensor([3.0, 4.0])
    assert squared_distance(a, b).tolist() == [0.0, 25.0]
    bend = 0.00054 * 8  # Song & Dhariwal 2024, Section 3.3: c = 0.00054 sqrt(d)
    assert pseudo_huber(a, b).tolist() == pytest.approx([0.0, (25 + bend**2) ** 0.5 - bend])


def test_inverse_weights_divide_by_the_width_of_the_interval():
    images = normals(64, 1, 8, 8)
    plain, weighted = (exact(weight=weight) for weight in ("constant", "inverse"))
    index = draws(3).integers(18, 64)
    width = plain.sigmas[index] - plain.sigmas[index + 1]
    torch.testing.assert_close(weighted.loss(images, None, draws(3)) * width, plain.loss(images, None, draws(3)))


@pytest.fixture(scope="module")
def pixels(thumbnails: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(thumbnails.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.from_numpy(thumbnails.labels).long()


def weights(network: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


@pytest.mark.parametrize("halflife", [0.0, 500.0])
def test_no_gradient_reaches_teacher_or_target(halflife, small_teacher, pixels):
    method = Consistency(small_teacher, 0.66, ConsistencyConfig(target_halflife=halflife), Compute())
    x, labels = pixels[0][:8], pixels[1][:8]
    sigma, sigma_next = method.sigmas[:8], method.sigmas[1:9]
    assert not method.targets(x, sigma, sigma_next, labels).requires_grad
    method.loss(x, labels, draws(0)).sum().backward()
    assert all(p.grad is not None for p in method.networks["student"].parameters())
    others = [small_teacher, *(net for name, net in method.networks.items() if name != "student")]
    assert all(p.grad is None for net in others for p in net.parameters())


def test_an_update_moves_the_student_and_nothing_else_when_it_is_its_own_target(small_teacher, pixels):
    before = copied(small_teacher)
    method = Consistency(small_teacher, 0.66, ConsistencyConfig(), Compute())
    scalars = method.update(pixels[0][:32], pixels[1][:32], 0.5, draws())
    assert list(method.networks) == ["student"] and all(torch.isfinite(value) for value in scalars.values())
    assert equal(small_teacher, before) and not equal(method.network, before)


def test_a_separate_target_follows_the_student_by_its_halflife(small_teacher, pixels):
    before = weights(small_teacher)
    method = Consistency(small_teacher, 0.66, ConsistencyConfig(target_halflife=64.0), Compute())
    method.update(pixels[0][:32], pixels[1][:32], 0.5, draws())
    student, target = (weights(method.networks[name]) for name in ("student", "target"))
    decay = 0.5 ** (32 / 64)
    torch.testing.assert_close(target, decay * before + (1 - decay) * student)
    assert not torch.equal(target, before)


def test_a_student_to_start_from_is_taken(small_teacher):
    start = lively(replace(TINY, width=8))
    method = Consistency(small_teacher, 0.66, ConsistencyConfig(), Compute(), start)
    assert method.network is not start and equal(method.network, start.state_dict())


def test_what_cannot_be_trained_is_refused(small_teacher):
    with pytest.raises(ValueError, match="other images"):
        Consistency(small_teacher, 0.66, ConsistencyConfig(), Compute(), UNet(replace(TINY, extra=1)))
    wrong: list[dict[str, Any]] = [{"intervals": 0}, {"sigma_min": 0.0}, {"sigma_min": 90.0}]
    for settings in wrong:
        with pytest.raises(RangeError):
            ConsistencyConfig(**settings)


@torch.no_grad()
def drawn(network: nn.Module, sampler, sigmas: tuple[float, ...], count: int = 300) -> torch.Tensor:
    """Images of `count` fixed seeds, classes in turn, flattened."""
    denoiser = partial(Denoiser(network, 0.66, TINY.classes), labels=torch.arange(count) % 10)
    return sampler(denoiser, noise_for(range(count), (1, 8, 8)), sigmas).images.flatten(1)


def test_a_short_distillation_nears_the_end_of_the_teachers_ode_and_the_data(small_teacher, pixels):
    method = Consistency(small_teacher, 0.66, ConsistencyConfig(), Compute())
    average = average_of(method.networks["student"])
    ends = drawn(small_teacher, sample_heun, solver_sigmas(18))
    data = pixels[0][::6].flatten(1)

    def measured(network: nn.Module) -> dict[str, float]:
        one = drawn(network, sample_dpdm, consistency_levels(1))
        two = drawn(network, sample_dpdm, consistency_levels(2, 0.66))
        gap = (one - ends).norm(dim=1).mean().item()
        return {"gap": gap, "one": energy_distance(one, data), "two": energy_distance(two, data)}

    before, rng = measured(small_teacher), draws(0)
    for i in range(150):
        index = rng.integers(2000, 32)
        method.update(pixels[0][index], pixels[1][index], i / 150, rng)
        blend(average, method.networks["student"], power_decay(0.06, 32, 32 * (i + 1)))
    after = measured(average)
    print("teacher as a student, and the student:", before, after, "the ODE:", energy_distance(ends, data))
    assert after["gap"] < 0.7 * before["gap"] and after["one"] < 0.7 * before["one"] and after["two"] < before["two"]


@pytest.mark.parametrize("halflife", [0.0, 100.0])
def test_an_interrupted_run_resumes_to_identical_weights(halflife, small_teacher, thumbnails, tmp_path, monkeypatch):
    kept: dict[Path, dict[str, torch.Tensor]] = {}

    def run(out: Path, resume: bool = False) -> bool:
        config = ConsistencyConfig(target_halflife=halflife)
        method = Consistency(small_teacher, 0.66, config, Compute())

        def save(average: nn.Module, clock, folder: Path) -> None:
            kept[out] = {"average": weights(average)} | {name: weights(net) for name, net in method.networks.items()}
            save_file(average.state_dict(), folder / WEIGHTS_FILE)  # a state counts once its weights are there

        limits = LoopConfig(batch=8, images=64)
        source = partial(batches, thumbnails, limits)
        return train(method, source, limits, out, save, resume=resume, identity={"of": "test"})

    assert run(tmp_path / "straight")
    with monkeypatch.context() as patch:
        update, seen = Consistency.update, []

        def interrupted(self, *args):
            seen.append(1)
            if len(seen) == 3:
                signal.raise_signal(signal.SIGINT)
            return update(self, *args)

        patch.setattr(Consistency, "update", interrupted)
        assert not run(tmp_path / "parts")
    assert run(tmp_path / "parts", resume=True)
    straight, parts = kept[tmp_path / "straight"], kept[tmp_path / "parts"]
    assert straight.keys() == parts.keys() and len(straight) == (3 if halflife else 2)
    for name, value in straight.items():
        np.testing.assert_array_equal(parts[name].numpy(), value.numpy())


def test_the_command_line_sets_what_the_paper_varies(thumbnails, tiny_teacher, tiny_recipe, tmp_path):
    switches = {
        "lr": 2e-4,
        "sigma_max": 20.0,
        "intervals": 9,
        "solver": "euler",
        "metric": "l2",
        "target_halflife": 8.0,
    }
    request = Distillation(tiny_teacher, "consistency", switches)
    assert train_student(run_options(tmp_path / "run", images=8), thumbnails, request)
    card = read_card(tmp_path / "run")
    assert card.training["adam"]["lr"] == 2e-4 and card.levels[1] == (20.0,)
    assert all(card.training[name] == value for name, value in switches.items() if name != "lr")
    with pytest.raises(SwitchError, match="--intervals belongs to --method consistency"):
        train_student(run_options(tmp_path / "x"), thumbnails, Distillation(tiny_teacher, "dpdm", {"intervals": 9}))
