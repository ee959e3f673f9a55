"""Edits on the analytic Gaussian pair: what remains of an image, exact conditional draws, known pixels to the bit."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from fewstep import noise, noise_torch
from fewstep.analytic import Gaussian
from fewstep.editing import calls_for, inpaint, repaint, vary
from fewstep.latent import with_latent
from fewstep.precond import Denoiser
from fewstep.schedule import student_levels
from tests.ncvsd import conditional_std, ncvsd_network

PAIR = Gaussian(mean=0.2, std=0.5)
NCVSD = Denoiser(ncvsd_network(PAIR, 0.5), 0.5)
COUNT = 100_000
SHAPE = (2, 6, 6)


def unit_normals(seed: int, count: int = COUNT) -> Any:
    """A float64 noise or latent [1, 1, count, 1], the same for the same step."""
    return lambda step: np.random.default_rng((seed, step)).normal(size=(1, 1, count, 1))


@pytest.mark.parametrize("sigmas", [(0.4,), (2.0,), (2.0, 0.5), student_levels(4)[1:]])
def test_what_a_marginal_student_leaves_of_an_image(sigmas):
    image = np.full((1, 1, COUNT, 1), 0.9)
    mean, variance = 0.9, 0.0
    for sigma in sigmas:  # x = mean + shrink (x0 + sigma eps - mean), independently at every level
        shrink = PAIR.std / math.hypot(PAIR.std, sigma)
        mean, variance = PAIR.mean + shrink * (mean - PAIR.mean), shrink**2 * (variance + sigma**2)
    varied = vary(PAIR.student, image, unit_normals(0), sigmas)
    assert varied.nfe == len(sigmas)
    assert varied.images.mean() == pytest.approx(mean, abs=0.01)
    assert varied.images.std() == pytest.approx(math.sqrt(variance), rel=0.01)


@pytest.mark.parametrize("kind", ["marginal", "ncvsd"])
@pytest.mark.parametrize("sigmas", [(0.3,), (2.0, 0.5, 0.1)])
def test_versions_of_real_images_are_distributed_as_the_images(kind, sigmas):
    images = PAIR.mean + PAIR.std * unit_normals(9)(0)
    student = PAIR.student if kind == "marginal" else with_latent(NCVSD, unit_normals(8))
    varied = vary(student, images, unit_normals(0), sigmas).images
    assert varied.mean() == pytest.approx(PAIR.mean, abs=0.01)
    assert varied.std() == pytest.approx(PAIR.std, rel=0.01)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_at_one_level_an_ncvsd_student_draws_from_the_conditional_of_that_noisy_image(sigma):
    image, draw = np.full((1, 1, COUNT, 1), 0.9), 0.7
    noisy = 0.9 + sigma * draw  # the same for all; only the latent differs
    varied = vary(with_latent(NCVSD, unit_normals(3)), image, lambda step: np.full_like(image, draw), (sigma,))
    expected = PAIR.mean + PAIR.std**2 / (PAIR.std**2 + sigma**2) * (noisy - PAIR.mean)
    assert varied.images.mean() == pytest.approx(expected, abs=0.01)
    assert varied.images.std() == pytest.approx(conditional_std(PAIR, sigma), rel=0.01)
    # A marginal student has nothing to decide by: one noisy image, one output.
    assert np.ptp(vary(PAIR.student, image, lambda step: np.full_like(image, draw), (sigma,)).images) == 0


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_an_image_and_its_conditional_draw_are_exchangeable(sigma):
    # Given x_t, image and draw are independent with the same distribution: their covariance is var(E[x0 | x_t]).
    images = PAIR.mean + PAIR.std * unit_normals(9)(0)
    varied = vary(with_latent(NCVSD, unit_normals(8)), images, unit_normals(0), (sigma,)).images
    covariance = ((images - PAIR.mean) * (varied - PAIR.mean)).mean()
    assert covariance == pytest.approx(PAIR.std**4 / (PAIR.std**2 + sigma**2), abs=0.003)


@pytest.mark.parametrize("sigmas", [(2.5,), student_levels(4)[1:]])
def test_repainting_with_nothing_known_is_varying_and_with_everything_known_is_nothing(sigmas):
    image, draw = known(np)[0], noise.noise_for(range(4), SHAPE)
    nothing = np.zeros((1, 1, 1), bool)
    np.testing.assert_array_equal(
        repaint(PAIR.student, image, nothing, draw, sigmas).images, vary(PAIR.student, image, draw, sigmas).images
    )
    np.testing.assert_array_equal(repaint(PAIR.student, image, ~nothing, draw, sigmas).images, image)


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_repainting_keeps_what_is_known_and_varies_the_rest(xp):
    """A denoiser of the analytic pair works pixel by pixel, so the rest is what varying alone makes of it."""
    image, mask = known(xp)
    draw = (noise if xp is np else noise_torch).noise_for(range(4), SHAPE)
    levels = student_levels(4)[2:]
    filled = repaint(PAIR.student, image, mask, draw, levels)
    varied = vary(PAIR.student, image, draw, levels).images
    assert filled.nfe == 2
    np.testing.assert_array_equal(filled.images, xp.where(mask, image, varied))


@pytest.mark.parametrize("sigma", [2.5, 80.0])
def test_what_repainting_from_the_top_leaves_of_the_old_image(sigma):
    """One call: shrink^2 sigma^2 of variance is new, and (image - mean) shrink remains; `inpaint` leaves nothing."""
    image, nothing = np.full((1, 1, COUNT, 1), 0.9), np.zeros((1, 1, 1), bool)
    shrink = PAIR.std / math.hypot(PAIR.std, sigma)
    filled = repaint(PAIR.student, image, nothing, unit_normals(0), (sigma,)).images
    assert filled.mean() == pytest.approx(PAIR.mean + shrink * (0.9 - PAIR.mean), abs=0.01)
    afresh = inpaint(PAIR.student, image, nothing, unit_normals(0), (sigma,)).images
    assert afresh.mean() == pytest.approx(PAIR.mean * (1 - shrink), abs=0.01)


def test_strength_counts_the_last_calls_and_rounds_up():
    assert [calls_for(strength, 4) for strength in (1e-12, 0.25, 0.26, 0.5, 0.75, 1)] == [1, 1, 2, 2, 3, 4]
    assert [calls_for(calls / steps, steps) for steps in range(1, 101) for calls in range(1, steps + 1)] == [
        calls for steps in range(1, 101) for calls in range(1, steps + 1)
    ]
    assert calls_for(0.28, 25) == 7  # 0.28 * 25 is a little more than 7
    for strength in (0, -0.1, 1.01, math.nan):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            calls_for(strength, 4)


def known(xp: Any) -> tuple[Any, Any]:
    """Four images [4, 2, 6, 6] float32 and a mask [4, 1, 6, 6], half true."""
    rng = np.random.default_rng(0)
    image, mask = rng.normal(size=(4, *SHAPE)).astype(np.float32), rng.random((4, 1, 6, 6)) < 0.5
    return (image, mask) if xp is np else (torch.from_numpy(image), torch.from_numpy(mask))


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize(("xp", "source"), [(np, noise), (torch, noise_torch)], ids=["numpy", "torch"])
def test_known_pixels_come_out_to_the_bit_and_the_rest_follows_algorithm_2(xp, source, steps):
    image, mask = known(xp)
    draw, levels = source.noise_for(range(4), SHAPE), student_levels(steps)
    filled = inpaint(PAIR.student, image, mask, draw, levels)
    everywhere = np.broadcast_to(np.asarray(mask), image.shape)
    np.testing.assert_array_equal(np.asarray(filled.images)[everywhere], np.asarray(image)[everywhere])
    assert filled.nfe == steps

    denoised = xp.zeros_like(image)
    for step, level in enumerate(levels):
        sigma = xp.ones(4) * level
        denoised = xp.where(mask, image, PAIR.student(denoised + level * draw(step), sigma))
    np.testing.assert_allclose(np.asarray(filled.images), np.asarray(denoised), rtol=1e-5, atol=1e-6)


def test_what_the_image_holds_where_it_is_not_known_does_not_matter():
    image, mask = known(np)
    draw, levels = noise.noise_for(range(4), SHAPE), student_levels(4)
    filled = inpaint(PAIR.student, image, mask, draw, levels).images
    hollow = np.where(mask, image, np.float32(np.nan))
    np.testing.assert_array_equal(inpaint(PAIR.student, hollow, mask, draw, levels).images, filled)


def correlated_student(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The exact student of pairs of pixels [1, 1, count, 2] with standard deviation 0.5 and correlation 0.9."""
    values, vectors = np.linalg.eigh(0.25 * np.array([[1.0, 0.9], [0.9, 1.0]]))
    return x @ (vectors * np.sqrt(values / (values + sigma[0] ** 2)) @ vectors.T)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_unknown_pixels_learn_of_the_known_ones_from_the_second_call_on(steps):
    shape, levels = (1, 1, COUNT, 2), student_levels(steps)
    expected = 0.0  # of the unknown pixel, in the mean; the known one is 0.4
    for step, level in enumerate(levels):
        start = np.array([[[[0.4, expected]]]]) if step else np.zeros((1, 1, 1, 2))
        expected = correlated_student(start, np.array([level]))[0, 0, 0, 1]
    image, mask = np.full(shape, 0.4), np.array([True, False])
    draw = lambda step: np.random.default_rng((1, step)).normal(size=shape)  # noqa: E731
    filled = inpaint(correlated_student, image, mask, draw, levels).images[..., 1]
    assert filled.mean() == pytest.approx(expected, abs=0.01)
    assert (expected > 0) == (steps > 1)
    assert expected < 0.9 * 0.4, "replacement never reaches the conditional mean"


def test_bad_input_is_refused_in_words():
    image, mask = known(np)
    draw = noise.noise_for(range(4), SHAPE)
    with pytest.raises(ValueError, match=r"mask must be bool.*not float32"):
        inpaint(PAIR.student, image, mask.astype(np.float32), draw, (80.0,))
    with pytest.raises(ValueError, match="does not fit an image of shape"):
        inpaint(PAIR.student, image, mask[..., :5], draw, (80.0,))
    with pytest.raises(ValueError, match=r"image has shape \(4, 1, 6, 6\)"):
        inpaint(PAIR.student, image[:, :1], mask, draw, (80.0,))
    with pytest.raises(ValueError, match=r"image has shape \(2, 6, 6\)"):
        vary(PAIR.student, image[0], draw, (2.0,))
    for edit in (lambda s: vary(PAIR.student, image, draw, s), lambda s: inpaint(PAIR.student, image, mask, draw, s)):
        for sigmas in ((), (1.0, 2.0), (1.0, 0.0)):
            with pytest.raises(ValueError, match="levels must be positive and strictly descending"):
                edit(sigmas)
