"""The step of a slot table is the student's sampler, row by row, whatever the rows beside it are doing."""

from itertools import pairwise

import numpy as np
import pytest

from fewstep import noise
from fewstep.editing import inpaint, repaint, vary
from fewstep.latent import with_latent
from fewstep.precond import Denoiser, edm_scalings
from fewstep.samplers import sample_dpdm
from fewstep.schedule import student_levels
from fewstep.step import advance, begin, latent, levels_of, network_input

SHAPE, SIGMA_DATA = (2, 4, 4), 0.5


def network(x_in: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray) -> np.ndarray:
    """Any function that works row by row."""
    return (np.tanh(x_in) + 0.3 * c_noise[:, None, None, None]).astype(np.float32)


def deciding_network(x_in: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray) -> np.ndarray:
    """One that takes a latent of three channels behind the image's two."""
    return network(x_in[:, :2] + 0.5 * x_in[:, 2:4] - x_in[:, 4:], c_noise, onehot)


def run_slots(seeds: list[int], steps: list[int], network=network, extra: int = 0) -> dict[int, np.ndarray]:
    """Serve all seeds together, each with its own step count; a finished row leaves the table."""
    levels = [student_levels(count) for count in steps]
    keys = np.array(seeds, dtype=np.uint64)
    x = begin(keys, np.array([level[0] for level in levels], np.float32), SHAPE)
    active, done, finished = list(range(len(seeds))), 0, {}
    while active:
        sigma = np.array([levels[row][done] for row in active], np.float32)
        following = np.array([(*levels[row], 0.0)[done + 1] for row in active], np.float32)
        z = latent(keys[active], np.full(len(active), done), (extra, *SHAPE[1:])) if extra else None
        x_in, c_noise = network_input(x, sigma, SIGMA_DATA, z)
        output = network(x_in, c_noise, np.zeros((len(active), 0)))
        x = advance(x, output, sigma, following, keys[active], np.full(len(active), done), SIGMA_DATA)
        finished |= {seeds[row]: x[place] for place, row in enumerate(active) if following[place] == 0}
        x, active = x[following > 0], [row for place, row in enumerate(active) if following[place] > 0]
        done += 1
    return finished


@pytest.mark.parametrize("steps", [[1], [4], [1, 2, 4, 8], [8, 1, 1, 3]], ids=str)
def test_mixed_step_counts_give_what_the_sampler_gives_each_seed_alone(steps: list[int]):
    seeds = [2**63 + row for row in range(len(steps))]
    finished = run_slots(seeds, steps)
    denoiser = Denoiser(network, SIGMA_DATA)
    for seed, count in zip(seeds, steps, strict=True):
        expected = sample_dpdm(denoiser, noise.noise_for([seed], SHAPE), student_levels(count))
        assert expected.nfe == count
        np.testing.assert_allclose(finished[seed], expected.images[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [[1], [1, 2, 4, 8]], ids=str)
def test_a_row_of_an_ncvsd_student_is_handed_the_latents_of_its_seed_in_the_order_of_its_calls(steps: list[int]):
    seeds = [2**63 + row for row in range(len(steps))]
    finished = run_slots(seeds, steps, deciding_network, extra=3)
    for seed, count in zip(seeds, steps, strict=True):
        bound = with_latent(Denoiser(deciding_network, SIGMA_DATA), noise.latent_for([seed], (3, *SHAPE[1:])))
        expected = sample_dpdm(bound, noise.noise_for([seed], SHAPE), student_levels(count))
        np.testing.assert_allclose(finished[seed], expected.images[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("called", "extra"), [(network, 0), (deciding_network, 3)], ids=["marginal", "ncvsd"])
def test_a_row_is_bit_for_bit_the_same_alone_and_in_a_full_table(called, extra: int):
    seeds, steps = list(range(10, 18)), [4, 1, 8, 2, 4, 3, 6, 5]
    together = run_slots(seeds, steps, called, extra)
    for seed, count in zip(seeds, steps, strict=True):
        np.testing.assert_array_equal(together[seed], run_slots([seed], [count], called, extra)[seed])


def test_without_a_latent_the_network_sees_the_scaled_image_and_with_one_the_latent_lies_behind():
    sigma = np.array([80.0, 0.3], np.float32)
    x = begin(np.array([1, 2], np.uint64), sigma, SHAPE)
    expected = x * edm_scalings(sigma, SIGMA_DATA).c_in[:, None, None, None]
    assert network_input(x, sigma, SIGMA_DATA)[0].tobytes() == expected.tobytes()
    z = latent(np.array([1, 2], np.uint64), np.array([0, 5]), (1, 4, 4))
    both, _ = network_input(x, sigma, SIGMA_DATA, z)
    assert both.dtype == np.float32
    np.testing.assert_array_equal(both[:, :2], expected)
    np.testing.assert_array_equal(both[:, 2:], z)


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_levels_of_a_list_are_the_preconditioning_of_each_of_its_levels(steps: int):
    sigmas = student_levels(steps)
    for here, row in enumerate(levels_of(sigmas, SIGMA_DATA)):
        alone = np.array([sigmas[here]], np.float32)
        following = np.float32((*sigmas, 0.0)[here + 1])
        expected = [*(factor[0] for factor in edm_scalings(alone, SIGMA_DATA)), alone[0], following]
        assert row.tolist() == [float(value) for value in expected]
    with pytest.raises(ValueError, match="read-only"):
        levels_of(sigmas, SIGMA_DATA)[0] = 1


def test_the_state_passed_in_is_not_changed():
    keys, sigma = np.array([1, 2], np.uint64), np.array([80.0, 3.0], np.float32)
    x = begin(keys, sigma, SHAPE)
    before = x.copy()
    advance(x, np.ones_like(x), sigma, np.array([5.0, 0.0], np.float32), keys, np.zeros(2, np.int64), SIGMA_DATA)
    np.testing.assert_array_equal(x, before)


def test_clamped_rows_stay_in_range_and_known_pixels_are_what_they_are_known_to_be():
    keys, sigma, last = np.array([1, 2], np.uint64), np.array([80.0, 80.0], np.float32), np.zeros(2, np.float32)
    x = begin(keys, sigma, SHAPE)
    output = 4 * np.ones_like(x)  # denoised: about 2
    done = (x, output, sigma, last, keys, np.zeros(2, np.int64), SIGMA_DATA)
    free = advance(*done)
    assert (free > 1).all()
    clamped = advance(*done, clamp=np.array([True, False]))
    assert (clamped[0] == 1).all()
    np.testing.assert_array_equal(clamped[1], free[1])
    mask = np.zeros((2, 1, *SHAPE[1:]), dtype=bool)
    mask[1, :, 2] = True
    image = np.full_like(x, 0.25)
    filled = advance(*done, known=(mask, image))
    assert (filled[1, :, 2] == 0.25).all()
    np.testing.assert_array_equal(filled[~np.broadcast_to(mask, x.shape)], free[~np.broadcast_to(mask, x.shape)])


def test_inpainting_with_the_step_is_inpainting_with_the_sampler():
    seeds, levels = [3, 4], student_levels(4)
    keys, image = np.array(seeds, np.uint64), np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, *SHAPE)
    mask = image > 0.2
    x = begin(keys, np.full(2, levels[0], np.float32), SHAPE)
    for done, (here, following) in enumerate(pairwise((*levels, 0.0))):
        sigma, sigma_next = np.full(2, here, np.float32), np.full(2, following, np.float32)
        output = network(*network_input(x, sigma, SIGMA_DATA), np.zeros((2, 0)))
        x = advance(x, output, sigma, sigma_next, keys, np.full(2, done), SIGMA_DATA, known=(mask, image))
    expected = inpaint(Denoiser(network, SIGMA_DATA), image, mask, noise.noise_for(seeds, SHAPE), levels)
    np.testing.assert_allclose(x, expected.images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_varying_and_repainting_with_the_step_is_what_the_samplers_do(first: int):
    """Row 0 begins at its image, row 1 keeps a part of its own, row 2 begins at nothing; all in the same calls."""
    seeds, levels = [3, 4, 5], student_levels(4)[first:]
    keys, image = np.array(seeds, np.uint64), np.linspace(-1, 1, 96, dtype=np.float32).reshape(3, *SHAPE)
    image[2] = 0
    mask = (image > 0.2) & np.array([False, True, False])[:, None, None, None]
    x = begin(keys, np.full(3, levels[0], np.float32), SHAPE, image=image)
    for done, (here, following) in enumerate(pairwise((*levels, 0.0))):
        sigma, sigma_next = np.full(3, here, np.float32), np.full(3, following, np.float32)
        output = network(*network_input(x, sigma, SIGMA_DATA), np.zeros((3, 0)))
        x = advance(x, output, sigma, sigma_next, keys, np.full(3, done), SIGMA_DATA, known=(mask, image))
    denoiser = Denoiser(network, SIGMA_DATA)
    expected = [
        vary(denoiser, image[:1], noise.noise_for([3], SHAPE), levels),
        repaint(denoiser, image[1:2], mask[1:2], noise.noise_for([4], SHAPE), levels),
        sample_dpdm(denoiser, noise.noise_for([5], SHAPE), levels),
    ]
    np.testing.assert_allclose(x, np.concatenate([each.images for each in expected]), rtol=1e-5, atol=2e-5)
