"""What makes each rival itself: the papers' settings, and what they do to inputs, levels and updates."""

from dataclasses import replace

import pytest
import torch

from fewstep.schedule import SIGMA_MAX
from tests.trainer.tiny import copied, draws, equal, lively, normals
from trainer.levels.renoise import renoise_levels
from trainer.methods import dmd2 as dmd2_module
from trainer.methods.dmd2 import DMD2, dmd2
from trainer.methods.dpdm import Student
from trainer.methods.rivals import diff_instruct, tied
from trainer.run.compute import Compute
from trainer.settings import AdamConfig, AdversaryConfig, StudentConfig, served_lists

# A recipe with rates of its own and every extra on: what a preset does not mention must survive, or be switched off.
BASE = StudentConfig(adam=AdamConfig(3e-4), auxiliary_adam=AdamConfig(4e-4), ema_width=0.123, top=0.4)
FULL = replace(BASE, simulate=0.5, warm=0.1, adversary=AdversaryConfig(weight=0.1))
IMAGES, LABELS = normals(64, 1, 8, 8, seed=1), torch.arange(64) % 10


def student_of(config: StudentConfig) -> Student:
    return Student(lively(std=0.05), 0.5, config, Compute())


def renoised_levels(config: StudentConfig, fed) -> torch.Tensor:
    many = replace(fed.drawn, **{name: value.repeat(200) for name, value in vars(fed.drawn).items()})
    return renoise_levels(config.renoise, many, config.floor, draws(2))


@pytest.mark.parametrize("preset", [diff_instruct, dmd2, tied])
def test_a_preset_takes_the_recipes_optimisers(preset):
    config = preset(BASE)
    assert (config.adam, config.auxiliary_adam, config.ema_width) == (BASE.adam, BASE.auxiliary_adam, 0.123)
    assert config.adversary.adam == BASE.adversary.adam and config.loss == "kl" and config.objective == "marginal"


def test_diff_instruct_sees_noise_of_2_5_and_no_data():
    student = student_of(diff_instruct(BASE))
    fed = student.feed(torch.full_like(IMAGES, float("nan")), LABELS, 1.0, draws())
    assert (fed.drawn.sigma == 2.5).all() and fed.x.isfinite().all()
    assert fed.x.std().item() == pytest.approx(2.5, rel=0.05)
    ((served,),) = served_lists(student.config.steps, 0.01, student.config.sigma_max)
    assert served == pytest.approx(2.5)  # one step, from where it was trained


def test_diff_instruct_noises_outputs_as_edm_trains_with_the_plain_score_difference():
    config = diff_instruct(BASE)
    levels = renoised_levels(config, student_of(config).feed(IMAGES, LABELS, 1.0, draws()))
    assert levels.log().mean().item() == pytest.approx(-1.2, abs=0.05)
    assert levels.log().std().item() == pytest.approx(1.2, abs=0.05)
    assert (config.weight, config.auxiliary_updates) == ("one", 1)


def test_dmd2_noises_outputs_to_any_level():
    config = dmd2(BASE)
    fed = student_of(config).feed(IMAGES, LABELS, 1.0, draws())
    levels = renoised_levels(config, fed)
    assert levels.max() > 75 and levels.min() < 0.06 and config.weight == "l1"


def test_dmd2_fits_auxiliary_and_critic_to_fresh_outputs_in_every_update_and_the_student_in_every_fifth(monkeypatch):
    method, rng, seen = DMD2(lively(std=0.05), 0.5, dmd2(BASE), Compute()), draws(), []
    fit, loss = method.adversary.fit, dmd2_module.denoising_loss

    def fitted(real, outputs, *rest):
        seen.append(("critic", real.clone(), outputs.clone()))
        return fit(real, outputs, *rest)

    def denoised(denoiser, outputs, *rest):
        seen.append(("auxiliary", outputs.clone()))
        return loss(denoiser, outputs, *rest)

    monkeypatch.setattr(method.adversary, "fit", fitted)
    monkeypatch.setattr(dmd2_module, "denoising_loss", denoised)
    for update in range(10):
        before = copied(method.networks["student"])
        real = IMAGES[update * 4 : update * 4 + 4]
        scalars = method.update(real, LABELS[update * 4 : update * 4 + 4], 0.5, rng)
        assert equal(method.networks["student"], before) == (update % 5 != 4) == ("gradient" not in scalars)
    outputs = [entry[1] for entry in seen if entry[0] == "auxiliary"]
    critics = [entry for entry in seen if entry[0] == "critic"]
    assert len(outputs) == len(critics) == 10
    for update, (_, real, shown) in enumerate(critics):
        assert torch.equal(shown, outputs[update]) and torch.equal(real, IMAGES[update * 4 : update * 4 + 4])
    assert len({output.sum().item() for output in outputs}) == 10  # no batch is used twice
    counts = {n: {int(s["step"]) for s in o.state.values()} for n, o in method.optimizers.items()}
    assert counts == {"student": {2}, "auxiliary": {10}, "heads": {10}}
    assert method.config.adversary.weight == 3e-3


def test_dmd2_sees_nothing_but_its_own_trajectory(monkeypatch):
    method, rng, positions, fed_to = DMD2(lively(std=0.05), 0.5, dmd2(BASE), Compute()), draws(), set(), []
    simulate_input = dmd2_module.simulate_input

    def recorded(*arguments):
        fed_to.append(simulate_input(*arguments))
        return fed_to[-1]

    monkeypatch.setattr(dmd2_module, "simulate_input", recorded)
    for progress in (0.0, 0.1, 0.2, 0.5, 0.9, 0.95, 1.0, 1.0, 1.0, 1.0):
        method.update(IMAGES[:4], LABELS[:4], progress, rng)
    for fed in fed_to:
        assert fed.x.isfinite().all()
        positions |= set(fed.drawn.position.tolist())
    assert {0, 1} < positions


def test_dmd2s_shorter_lists_are_part_of_its_longest():
    config = dmd2(BASE)
    lists = dict(zip(config.steps, served_lists(config.steps, config.sigma_min, config.sigma_max), strict=True))
    assert sorted(lists) == [1, 2, 4] and lists[4][0] == SIGMA_MAX
    for levels in lists.values():
        for sigma in levels:
            assert any(abs(sigma / other - 1) < 1e-9 for other in lists[4])


def test_tied_noises_outputs_to_the_level_of_their_input_and_adds_nothing():
    config = tied(FULL)
    student = student_of(config)
    fed = student.feed(IMAGES, LABELS, 1.0, draws())
    assert torch.equal(renoise_levels(config.renoise, fed.drawn, config.floor, draws()), fed.drawn.sigma)
    assert (config.simulate, config.warm) == (0, 0)
    assert config == replace(
        FULL, renoise="tied", sigma_max=SIGMA_MAX, auxiliary_sees_level=False, simulate=0.0, warm=0.0,
    )  # fmt: skip
