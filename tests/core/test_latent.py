"""The latent: every sampler hands call i its own, a marginal student is left alone, and exact draws are exact."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fewstep import noise, noise_torch
from fewstep.analytic import Gaussian, as_network
from fewstep.card import Card, Dataset
from fewstep.dpmpp import sample_dpmpp
from fewstep.ipndm import sample_ipndm
from fewstep.latent import latent_shape, with_latent
from fewstep.precond import Denoiser
from fewstep.sa_solver import sample_sa
from fewstep.samplers import sample_dpdm, sample_euler, sample_heun
from fewstep.schedule import solver_sigmas, student_levels
from fewstep.unipc import sample_unipc
from tests.ncvsd import ncvsd_network

PAIR = Gaussian(mean=0.2, std=0.5)
NCVSD = Denoiser(ncvsd_network(PAIR, 0.5), 0.5)
MARGINAL = Denoiser(as_network(PAIR.student, 0.5), 0.5)
SHAPE = (2, 4, 4)
CARD = Card("student", {"channels": 3, "resolution": 8}, 0.5, "", Dataset("none", "0" * 64, "MIT", 0))


def unit_normals(count: int, seed: int) -> Any:
    """A float64 noise or latent [1, 1, count, 1], the same for the same step."""
    return lambda step: np.random.default_rng((seed, step)).normal(size=(1, 1, count, 1))


@pytest.mark.parametrize(
    "sampler", [sample_dpdm, sample_euler, sample_heun, sample_dpmpp, sample_unipc, sample_sa, sample_ipndm]
)
def test_every_sampler_hands_its_ith_call_the_ith_latent(sampler):
    asked, seen = [], []

    def latent(step):
        asked.append(step)
        return np.full((3, 1, 4, 4), 10.0 * step)

    def network(x, c_noise, onehot):
        assert x.shape == (3, 3, 4, 4)
        seen.append(x[:, 2:])
        return x[:, :2]

    sigmas = student_levels(5) if sampler is sample_dpdm else solver_sigmas(5)
    made = sampler(with_latent(Denoiser(network, 0.5), latent), noise.noise_for(range(3), SHAPE), sigmas)
    assert asked == list(range(made.nfe))
    for step, z in enumerate(seen):
        np.testing.assert_array_equal(z, np.full((3, 1, 4, 4), 10.0 * step))


def test_labels_are_bound_beside_the_latent():
    def network(x, c_noise, onehot):
        return x[:, :1] * 0 + onehot.argmax(axis=1)[:, None, None, None]

    bound = with_latent(Denoiser(network, 0.5, classes=4), lambda step: np.ones((3, 1, 2, 2)), np.array([3, 0, 2]))
    denoised = bound(np.zeros((3, 1, 2, 2)), np.full(3, 1e6))
    np.testing.assert_allclose(denoised[:, 0, 0, 0], [1.5, 0, 1], rtol=1e-6)  # c_out is sigma_data here


def test_a_marginal_student_is_called_as_ever(monkeypatch):
    monkeypatch.setattr("fewstep.latent.with_inputs", lambda *args, **kwargs: pytest.fail("nothing is to be copied"))
    draw, none = noise.noise_for(range(6), SHAPE), noise.latent_for(range(6), (0, *SHAPE[1:]))
    bound = functools.partial(MARGINAL, labels=None)
    expected = sample_dpdm(bound, draw, student_levels(4)).images
    assert sample_dpdm(with_latent(MARGINAL, none), draw, student_levels(4)).images.tobytes() == expected.tobytes()


def test_torch_and_numpy_make_the_same_images():
    seeds, levels = [3, 2**63 + 1], student_levels(4)
    ours = sample_dpdm(with_latent(NCVSD, noise.latent_for(seeds, SHAPE)), noise.noise_for(seeds, SHAPE), levels).images
    theirs = sample_dpdm(
        with_latent(NCVSD, noise_torch.latent_for(seeds, SHAPE)), noise_torch.noise_for(seeds, SHAPE), levels
    ).images
    assert isinstance(theirs, torch.Tensor) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_exact_ncvsd_student_keeps_mean_and_spread_at_any_step_count(steps: int):
    bound = with_latent(NCVSD, unit_normals(100_000, seed=50 + steps))
    images = sample_dpdm(bound, unit_normals(100_000, seed=steps), student_levels(steps)).images
    assert images.mean() == pytest.approx(PAIR.mean, abs=0.01)
    assert images.std() == pytest.approx(PAIR.std, rel=0.01)


def test_the_shape_comes_from_the_card_and_is_empty_where_the_network_takes_none():
    assert latent_shape(CARD) == (0, 8, 8)
    assert latent_shape(replace(CARD, network={**CARD.network, "extra": 3})) == (3, 8, 8)
