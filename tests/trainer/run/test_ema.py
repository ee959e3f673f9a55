"""Averages after the fact: profiles in closed form, and any width from the two that are stored."""

import math

import numpy as np
import pytest
import torch

from trainer.run.ema import WIDTHS, Averages, Profile, blend, coefficients, gamma_of, power_decay, stored_before


def one_weight(value: float = 0.0) -> torch.nn.Linear:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, value)
    return network


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_has_the_papers_values_and_the_width_it_was_made_for(width, gamma):
    assert gamma_of(width) == pytest.approx(gamma, abs=5e-3)
    g = gamma_of(width)
    assert math.sqrt(g + 1) / ((g + 2) * math.sqrt(g + 3)) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3, math.nan])
def test_a_width_that_no_power_function_has_is_refused(width):
    with pytest.raises(ValueError, match="width must be above 0 and at most"):
        gamma_of(width)


@pytest.mark.parametrize("width", WIDTHS)
def test_an_average_weighs_the_past_by_a_power_of_when_it_was(width):
    """Weights that rise linearly, theta(s) = s: their average at t is (gamma + 1) / (gamma + 2) t."""
    network, gamma = one_weight(), gamma_of(width)
    averages = Averages(network)
    for update in range(1, 2001):
        torch.nn.init.constant_(network.weight, update / 2000)
        averages.update(64, 64 * update)
    kept = averages.kept[f"average-{width}"]
    assert next(kept.parameters()).item() == pytest.approx((gamma + 1) / (gamma + 2), abs=1e-3)
    assert not next(kept.parameters()).requires_grad


@pytest.mark.parametrize("width", [0.06, 0.1, 0.2])
def test_any_width_is_made_from_what_was_stored(width, tmp_path):
    """On a random walk, against the average of that width kept from the start."""
    network, steps = torch.nn.Linear(16, 16, bias=False), torch.Generator().manual_seed(0)
    averages, direct = Averages(network), torch.nn.Linear(16, 16, bias=False)
    for update in range(1, 801):
        with torch.no_grad():
            step = torch.randn(16, 16, generator=steps)
            network.weight += step / math.sqrt(800)
        averages.update(8, 8 * update)
        blend(direct, network, power_decay(width, 8, 8 * update))
        if update % 100 == 0:
            averages.store(tmp_path, 8 * update)
    made = averages.of_width(width, tmp_path, 6400)
    walked = (network.weight - direct.weight).norm()
    assert len(stored_before(tmp_path, 6400)) == 14  # the last is as of now
    assert (made.weight - direct.weight).norm() < 0.1 * walked  # pyright: ignore[reportOperatorIssue]
    assert (averages.kept["average-0.05"].weight - direct.weight).norm() > 0.1 * walked  # pyright: ignore[reportOperatorIssue]


def test_factors_sum_to_one_and_a_stored_profile_is_itself():
    stored = [Profile(gamma_of(width), time) for time in (1.0, 2.0, 3.0) for width in WIDTHS]
    factors = coefficients(stored, Profile(gamma_of(0.2), 3.0))
    assert factors.sum() == pytest.approx(1, abs=1e-9)
    assert np.allclose(coefficients(stored, stored[-1]), [0, 0, 0, 0, 0, 1], atol=1e-6)
    twice = coefficients([stored[-1], stored[-1]], stored[-1])
    assert twice.sum() == pytest.approx(1)


def test_a_start_that_was_never_trained_is_forgotten_at_the_first_update(tmp_path):
    network = one_weight(-1.0)
    averages = Averages(network)
    before = averages.of_width(0.1, tmp_path, 0)
    assert next(before.parameters()).item() == -1.0, "a checkpoint before the first step is the network"
    torch.nn.init.ones_(network.weight)
    averages.update(64, 64)
    assert [next(average.parameters()).item() for average in averages.kept.values()] == [1.0, 1.0]
