"""--method adversarial: a student is trained on against critics, on the inputs that its sampler makes."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.trainer.tiny import copied, draws, equal, lively, normals
from trainer.critics.classifier import ClassifierConfig, NoisyClassifier
from trainer.critics.on_classifiers import Critics, Head
from trainer.methods.gan import Adversarial, step_rows
from trainer.run.compute import Compute
from trainer.settings import AdamConfig, AdversarialConfig, seen_lists

LISTS = ((2.5,), (2.5, 0.4), (2.5, 0.9, 0.06))
LABELS = torch.arange(32) % 10
RATE = AdamConfig(1e-3, (0.5, 0.99), warmup=0.0)
CONFIG = AdversarialConfig(lists=LISTS, first=0.0, imitation_share=0.0, adam=RATE, critic_adam=replace(RATE, lr=5e-3))


def classifier(seed: int = 0) -> NoisyClassifier:
    torch.manual_seed(seed)
    return NoisyClassifier(ClassifierConfig(8, 1, 10, 0.5, width=8, features=16)).eval().requires_grad_(False)


def method(**changes) -> Adversarial:
    torch.manual_seed(0)  # of the heads
    return Adversarial(lively(std=0.1), [classifier()], 0.5, replace(CONFIG, **changes), Compute())


def bright(count: int = 32, seed: int = 1) -> torch.Tensor:
    return 0.5 + 0.2 * normals(count, 1, 8, 8, seed=seed)


def test_every_step_has_its_rows_and_every_list_that_has_the_step_its_share():
    assert step_rows(64, 0.5, 4) == (35, 17, 8, 4)
    assert step_rows(10, 1.0, 2) == (5, 5) and step_rows(7, 0.5, 1) == (7,)
    _, sigma, below = method().draw_inputs(bright(), LABELS, draws())
    pairs = list(zip(sigma.tolist(), below.tolist(), strict=True))
    counts = {(round(level, 3), round(after, 3)): pairs.count((level, after)) for level, after in pairs}
    assert counts == {(2.5, 0.0): 7, (2.5, 0.4): 6, (2.5, 0.9): 6, (0.4, 0.0): 5, (0.9, 0.06): 4, (0.06, 0.0): 4}


def test_the_first_step_is_fed_noise_and_the_others_the_trajectory_or_noised_images():
    images = bright()
    for share in (0.0, 1.0):
        of = method(simulate=share)
        x, sigma, _ = of.draw_inputs(images, LABELS, draws(3))
        rng = draws(3)
        first = 2.5 * rng.normal_like(images)
        torch.testing.assert_close(x[:19], first[:19])
        with torch.no_grad():
            recovered = of.student(first[19:], torch.full((13,), 2.5), LABELS[19:])
        noise = sigma[19:28, None, None, None] * rng.normal_like(images)[19:28]
        source = recovered[:9] if share else images[19:28]
        torch.testing.assert_close(x[19:28], source + noise)


@pytest.mark.parametrize("trained_steps", ["all", "rest"])
def test_rows_belong_to_the_global_batch_and_not_to_the_process(trained_steps):
    of = method(trained_steps=trained_steps)
    whole = of.draw_inputs(bright(), LABELS, draws(3))
    for ranks in (2, 4):
        rows = 32 // ranks
        parts = []
        for rank in range(ranks):
            own = slice(rank * rows, (rank + 1) * rows)
            rng = replace(draws(3), rank=rank, ranks=ranks)
            parts.append(of.draw_inputs(bright()[own], LABELS[own], rng))
        for one, several in zip(whole, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(several), one)


def test_outputs_are_noised_to_about_the_next_level_and_low_after_the_last():
    of = method()
    below = torch.tensor([0.0, 0.02, 0.4, 50.0]).repeat_interleave(500)
    last, hidden, middle, far = of.draw_critic_levels(below, draws()).chunk(4)
    for low in (last, hidden):
        assert 0.03 <= low.min() < 0.032 and 0.28 < low.max() <= 0.3
    assert middle.min() >= 0.03 and middle.max() <= 0.4 and middle.median() > 0.25
    assert far.max() <= 1.2  # what the classifiers know


def test_lists_that_end_where_no_critic_sees_are_left_alone():
    lists = [(2.5, 0.9, 0.06), (2.5,), (2.5, 0.9, 0.06, 0.003)]
    assert seen_lists(lists, 0.03) == ((2.5,), (2.5, 0.9, 0.06))


def test_critics_learn_to_tell_bright_from_dark_for_the_class_they_are_told():
    of, sigma = method(), torch.full((32,), 0.1)
    see = partial(of.critics.see, sigma=sigma)
    for step in range(60):
        of.fit(see(bright(seed=step)), see(-bright(seed=100 + step)), sigma, LABELS, 0.5)
    margin = of.critics(see(bright(seed=300)), sigma, LABELS) - of.critics(see(-bright(seed=301)), sigma, LABELS)
    assert (margin > 0).float().mean() > 0.95


def test_a_head_weighs_an_image_by_its_class_and_by_its_level():
    torch.manual_seed(0)
    head = Head(16, 10)
    x, level = normals(1, 16, 2, 2).repeat(2, 1, 1, 1), torch.zeros(2, 16)
    one, other = head(x, level, torch.tensor([1, 2]))
    assert one != other
    torch.nn.init.normal_(head.level_embedding.weight)
    quiet, loud = head(x, torch.stack([level[0], level[0] + 1]), torch.tensor([1, 1]))
    assert quiet != loud


def test_maps_of_one_pixel_have_gradients_in_every_layout():
    """torch's GroupNorm crashed here (2.11, channels-last, on a CPU)."""
    critics = Critics([classifier()], Compute())
    images = bright().contiguous(memory_format=torch.channels_last).requires_grad_(True)
    sigma = torch.full((32,), 0.1)
    critics(critics.see(images, sigma), sigma, LABELS).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_the_student_moves_towards_the_images():
    """Of bright images it makes bright ones, whatever it made before."""
    of, rng = method(simulate=0.0), draws(5)

    def brightness() -> float:
        with torch.no_grad():
            return of.student(2.5 * normals(32, 1, 8, 8, seed=9), torch.full((32,), 2.5), LABELS).mean().item()

    before = brightness()
    for step in range(120):
        of.update(bright(seed=step), LABELS, step / 120, rng)
    assert before < 0.25 and brightness() > before + 0.15


def test_at_first_the_critics_learn_alone():
    of = method(first=0.5)
    student, critics = copied(of.networks["student"]), copied(of.networks["critics"])
    of.update(bright(), LABELS, 0.2, draws())
    assert equal(of.networks["student"], student) and not equal(of.networks["critics"], critics)
    of.update(bright(), LABELS, 0.6, draws())
    assert not equal(of.networks["student"], student)


def shaken(**changes) -> Adversarial:
    """With a student that is no longer what it was."""
    of = method(**changes)
    with torch.no_grad():
        for parameter in of.networks["student"].parameters():
            parameter.add_(0.02 * normals(*parameter.shape, seed=parameter.numel()))
    return of


def test_anchored_levels_are_the_lower_ones_of_every_list_but_the_longest_and_drift_less():
    of, rng = shaken(), draws(4)
    assert of.anchored_levels == (0.4,) and of.imitated_top == 2.5
    critics = copied(of.networks["critics"])
    drifts = [of.anchor_lower(bright(seed=step), LABELS, 0.5, rng)["anchor_error"].item() for step in range(60)]
    assert sum(drifts[-10:]) < 0.7 * sum(drifts[:10])
    assert equal(of.networks["critics"], critics)


def test_the_first_call_moves_to_what_start_makes_of_it_with_a_call_below():
    of, rng = method(adam=replace(RATE, lr=1e-4)), draws(4)
    x = 2.5 * rng.normal_like(bright())
    top, low = torch.full((32,), 2.5), torch.full((32,), 0.05)
    with torch.no_grad():
        before = of.student(x, top, LABELS)
        target = of.start(before + 0.05 * rng.normal_like(x), low, LABELS)
    error = of.self_distill(2.5, bright(), LABELS, 0.5, draws(4))["self_distillation_error"]
    with torch.no_grad():
        after = of.student(x, top, LABELS)
    assert error.item() == pytest.approx((before - target).abs().mean().item() / 0.04, rel=1e-5)
    assert (after - target).square().sum() < (before - target).square().sum()


def test_the_only_call_may_be_trained_and_all_lower_levels_are_anchored():
    of = method(trained_steps="first", imitation_share=0.5)
    assert of.trained_lists == ((2.5,),) and of.anchored_levels == (0.4, 0.9, 0.06) and of.imitated_top is None
    x, sigma, below = of.draw_inputs(bright(), LABELS, draws(1))
    assert (sigma == 2.5).all() and (below == 0).all() and x.std() == pytest.approx(2.5, rel=0.05)
    kinds = {kind for seed in range(8) for kind in of.update(bright(), LABELS, 0.5, draws(seed))}
    assert {"margin", "anchor_error"} < kinds and not {"self_distillation_error", "anchor_top_error"} & kinds


def test_all_but_the_first_call_may_be_trained_and_the_first_is_anchored():
    of = method(trained_steps="rest", imitation_share=0.5)
    assert of.trained_lists == LISTS[1:] and of.anchored_levels == (0.4,) and of.imitated_top == 2.5
    x, sigma, below = of.draw_inputs(bright(), LABELS, draws(1))
    assert len(x) == 32 and sigma.unique().tolist() == pytest.approx([0.06, 0.4, 0.9])
    assert [level.item() for level in below.unique()] == pytest.approx([0, 0.06])
    kinds = {kind for seed in range(12) for kind in of.update(bright(), LABELS, 0.5, draws(seed))}
    assert {"margin", "anchor_error", "anchor_top_error"} < kinds and "self_distillation_error" not in kinds


def test_an_anchored_first_call_returns_to_what_it_was():
    of = method(trained_steps="rest", imitation_share=0.5, imitation_weight=1.0)
    x, top = 2.5 * normals(32, 1, 8, 8), torch.full((32,), 2.5)
    with torch.no_grad():
        before = of.student(x, top, LABELS)
        for parameter in of.network.parameters():
            parameter.add_(0.05 * normals(*parameter.shape, seed=parameter.numel()))
        lost = (of.student(x, top, LABELS) - before).abs().mean().item()
    for seed in range(100):
        of.anchor_top(2.5, bright(), LABELS, 0.0, draws(seed))
    with torch.no_grad():
        assert (of.student(x, top, LABELS) - before).abs().mean().item() < 0.5 * lost


class Watched(Critics):
    """Keeps what it was shown."""

    def see(self, noisy: torch.Tensor, sigma: torch.Tensor) -> list[torch.Tensor]:
        self.seen = noisy
        return super().see(noisy, sigma)


@pytest.mark.parametrize("clip", [False, True])
def test_critics_may_see_last_outputs_as_they_are_clipped(clip):
    """And only those: between two calls nothing is clipped. The last image they are shown is the student's."""
    of = method(clip=clip, first=0.9, spread=1.0)
    of.critics = Watched([classifier()], Compute())
    last = of.draw_inputs(bright(), LABELS, draws(3))[2] == 0
    with torch.no_grad():
        for parameter in of.network.parameters():
            parameter.mul_(3.0)
    of.update(bright(), LABELS, 0.1, draws(3))
    beyond = (of.critics.seen.abs() > 1.3).flatten(1).any(dim=1)  # noise of 0.03 does not carry so far
    assert beyond[~last].any() and beyond[last].any() != clip


@pytest.mark.parametrize(
    ("share", "kinds"),
    [
        (0.0, {"margin"}),
        (0.999, {"self_distillation_error", "anchor_error"}),
        (0.5, {"margin", "self_distillation_error", "anchor_error"}),
    ],
)
def test_updates_are_divided_among_critics_self_distillation_and_anchors(share, kinds):
    of, rng = method(imitation_share=share, adam=replace(RATE, lr=1e-6)), draws(1)
    seen = [
        kind
        for _ in range(24)
        for kind in of.update(bright(), LABELS, 0.5, rng)
        if kind in ("margin", "self_distillation_error", "anchor_error")
    ]
    assert set(seen) == kinds


def test_a_student_of_one_call_has_no_lower_level_to_anchor():
    of = method(lists=((2.5,),), imitation_share=0.999)
    assert "self_distillation_error" in of.update(bright(), LABELS, 0.5, draws(1))


def test_a_first_call_that_is_never_the_last_is_not_self_distilled():
    of, rng = method(lists=((2.5, 0.4), (2.5, 0.9, 0.06)), imitation_share=0.999), draws(1)
    assert all("anchor_error" in of.update(bright(), LABELS, 0.5, rng) for _ in range(6))
    assert "margin" in method(lists=((2.5, 0.4),), imitation_share=0.999).update(bright(), LABELS, 0.5, rng)
