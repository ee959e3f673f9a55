"""The noise: published vectors, numpy against torch, distribution, and independence of everything but the seed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep import noise, noise_torch

EDGE_SEEDS = (0, 1, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1)
SHAPE = (3, 4, 5)
GOLDEN_NORMALS = [
    [1.6511778, 0.8456461, -0.1020986, -0.1156361, -0.1749922],
    [1.3068554, -0.7159024, -0.1718713, -0.6278979, -1.6200758],
]
GOLDEN_LATENT = [
    [0.0455524, 1.0179632, -0.5043754, 1.3499967, -0.1992193],
    [0.2113992, -0.2874433, -0.5664071, -0.7905255, -0.8699425],
]
GOLDEN_LATENT_WORDS = [[[2907654008, 138069745, 255457593, 609147041]]]
GOLDEN_LABELS = [8, 3, 8, 4, 8, 1, 1, 5]


def signed(seeds: tuple[int, ...]) -> torch.Tensor:
    """The same 64 bits as int64."""
    return torch.from_numpy(np.array(seeds, dtype=np.uint64).view(np.int64))


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ("00000000 00000000", "00000000 00000000 00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff", "ffffffff ffffffff ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("a4093822 299f31d0", "243f6a88 85a308d3 13198a2e 03707344", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_vectors_of_random123(key: str, counter: str, expected: str):
    key_words, counter_words, words = (
        [np.array(int(word, 16), dtype=np.uint64) for word in text.split()] for text in (key, counter, expected)
    )
    assert [int(word) for word in noise.philox4x32(key_words, counter_words)] == [int(word) for word in words]


def test_counter_and_key_are_laid_out_as_documented():
    seed, step, stream = 2**40 + 3, 5, 1
    words = noise.random_words(np.array([seed], np.uint64), np.array([step]), stream, blocks=3)
    for block in range(3):
        counter = [np.array(word, np.uint64) for word in (block, step, stream, noise.NOISE_VERSION)]
        key = [np.array(word, np.uint64) for word in (seed % 2**32, seed >> 32)]
        assert [int(word) for word in noise.philox4x32(key, counter)] == words[0, block].tolist()


def test_rounds_shortened_by_what_is_constant_give_the_words_of_ten_whole_rounds():
    seeds, steps = (values.ravel() for values in np.meshgrid(np.array(EDGE_SEEDS, np.uint64), [0, 1, 9, 2**32 - 1]))
    column = [value.astype(np.uint64)[:, None] for value in (seeds & 0xFFFFFFFF, seeds >> 32, steps)]
    for stream in (noise.STREAM_NOISE, noise.STREAM_LABEL, noise.STREAM_LATENT):
        whole = noise.philox4x32(column[:2], (np.arange(70)[None], column[2], np.array(stream), np.array(1)))
        np.testing.assert_array_equal(noise.random_words(seeds, steps, stream, 70), np.stack(whole, axis=-1))


def test_torch_gives_exactly_the_same_words_for_edge_seeds_and_steps():
    steps = np.array([0, 1, 2, 7, 8, 1000, 2**31, 2**32 - 1], dtype=np.int64)
    for stream in (noise.STREAM_NOISE, noise.STREAM_LABEL, noise.STREAM_LATENT):
        ours = noise.random_words(np.array(EDGE_SEEDS, np.uint64), steps, stream, blocks=9)
        theirs = noise_torch.random_words(signed(EDGE_SEEDS), torch.from_numpy(steps), stream, blocks=9)
        np.testing.assert_array_equal(ours.astype(np.int64), theirs.numpy())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**32 - 1), size=st.integers(1, 70))
def test_torch_and_numpy_agree_for_any_seed(seed: int, step: int, size: int):
    words = noise.random_words(np.array([seed], np.uint64), np.array([step]), 0, blocks=3)
    same = noise_torch.random_words(signed((seed,)), torch.tensor([step]), 0, blocks=3)
    np.testing.assert_array_equal(words.astype(np.int64), same.numpy())
    values = noise.normals(np.array([seed], np.uint64), np.array([step]), (size,))
    others = noise_torch.normals(signed((seed,)), torch.tensor([step]), (size,))
    np.testing.assert_allclose(values, others.numpy(), rtol=0, atol=1e-6)


def test_normals_agree_to_a_millionth_over_many_values():
    ours = noise.noise_for(EDGE_SEEDS, (3, 64, 64))
    theirs = noise_torch.noise_for(EDGE_SEEDS, (3, 64, 64))
    z, other = noise.latent_for(EDGE_SEEDS, (3, 64, 64)), noise_torch.latent_for(EDGE_SEEDS, (3, 64, 64))
    for step in (0, 8):
        np.testing.assert_allclose(ours(step), theirs(step).numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(z(step), other(step).numpy(), rtol=0, atol=1e-6)


def test_golden_values_of_noise_version_1_never_change():
    # noise.normals(seeds 0 and 2^63 + 7, steps 0 and 3, shape (5,)); changing these needs a new NOISE_VERSION.
    assert noise.NOISE_VERSION == 1
    values = noise.normals(np.array([0, 2**63 + 7], np.uint64), np.array([0, 3]), (5,))
    np.testing.assert_allclose(values, GOLDEN_NORMALS, rtol=0, atol=1e-6)
    assert noise.random_labels(range(8), 10).tolist() == GOLDEN_LABELS


def test_golden_values_of_the_latent_never_change():
    # Of the same seeds and steps as above: a stream of its own.
    assert noise.STREAM_LATENT == 2
    values = noise.normals(np.array([0, 2**63 + 7], np.uint64), np.array([0, 3]), (5,), noise.STREAM_LATENT)
    np.testing.assert_allclose(values, GOLDEN_LATENT, rtol=0, atol=1e-6)
    words = noise.random_words(np.array([5], np.uint64), np.array([2]), noise.STREAM_LATENT, blocks=1)
    assert words.tolist() == GOLDEN_LATENT_WORDS
    np.testing.assert_array_equal(noise.latent_for([2**63 + 7], (5,))(3)[0], values[1])


def test_uniforms_stay_inside_the_open_interval_and_are_exact_in_float32():
    words = np.array([0, 1, 511, 512, 2**31, 2**32 - 1], dtype=np.uint32)
    values = noise.uniforms(words)
    assert values.min() > 0
    assert values.max() < 1
    np.testing.assert_array_equal(values, values.astype(np.float32).astype(np.float64))


def test_the_largest_normal_the_generator_can_make_is_finite():
    assert math.sqrt(-2 * math.log(noise.uniforms(np.array([0], np.uint32))[0])) < 6


def test_normals_are_those_of_the_formula_at_every_angle_and_every_radius():
    ends = np.concatenate([np.arange(2**10), 2**23 - 1 - np.arange(2**10)])  # of 23 bits: largest and smallest radius
    every = np.concatenate([np.arange(0, 2**23, 61), ends]).astype(np.uint64) << np.uint64(9)
    for even, odd in ((np.zeros_like(every), every), (every, np.full_like(every, 2**29)), (every, every[::-1])):
        out, work = np.empty((1, len(every), 2, 2), np.float32), np.empty((4, 2, 1, len(every)), np.uint64)
        work[0], work[1] = even, odd
        noise._box_muller(work, out)
        radius, angle = np.sqrt(-2 * np.log(noise.uniforms(even))), 2 * np.pi * noise.uniforms(odd)
        expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        assert np.abs(out[0] - expected[:, None]).max() < 1e-6


def test_many_rows_and_large_images_come_in_pieces_that_fit_together():
    seeds, steps = np.arange(80, dtype=np.uint64), np.arange(80) % 8
    many = noise.normals(seeds, steps, (1, 32, 33))
    large = noise.normals(seeds[:2], steps[:2], (1, 260, 261))
    assert many[0].size * len(many) > 4 * noise.CHUNK < large[0].size
    for row in (0, 63, 79):
        np.testing.assert_array_equal(
            many[row], noise.normals(seeds[row : row + 1], steps[row : row + 1], (1, 32, 33))[0]
        )
    theirs = noise_torch.normals(signed((0, 1)), torch.from_numpy(steps[:2]), (1, 260, 261)).numpy()
    np.testing.assert_allclose(large, theirs, rtol=0, atol=1e-6)


def test_moments_are_those_of_a_unit_normal():
    x = noise.normals(np.arange(8, dtype=np.uint64), np.zeros(8), (128, 128)).astype(np.float64).ravel()
    error = 4 / math.sqrt(x.size)  # four standard errors of the mean, for fixed seeds
    assert abs(x.mean()) < error
    assert abs(x.var() - 1) < error * math.sqrt(2)
    assert abs((x**3).mean()) < error * math.sqrt(15)
    assert abs((x**4).mean() - 3) < error * math.sqrt(96)


def test_the_distribution_passes_kolmogorov_smirnov():
    x = np.sort(noise.normals(np.arange(4, dtype=np.uint64), np.ones(4), (64, 64)).astype(np.float64).ravel())
    cdf = 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in x]))
    ranks = np.arange(x.size + 1) / x.size
    distance = max((ranks[1:] - cdf).max(), (cdf - ranks[:-1]).max())
    assert distance < 1.63 / math.sqrt(x.size)  # 1 % level


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_neighbouring_seeds_steps_and_elements_are_uncorrelated():
    keys = np.array([7, 8, 7 + 2**32], dtype=np.uint64)
    first = noise.normals(keys, np.zeros(3), (1, 128, 128))
    second = noise.normals(keys, np.ones(3), (1, 128, 128))
    limit = 4 / 128  # four standard errors over 128 * 128 pairs
    assert abs(correlation(first[0], first[1])) < limit, "low half of the seed"
    assert abs(correlation(first[0], first[2])) < limit, "high half of the seed"
    assert abs(correlation(first[0], second[0])) < limit, "step"
    flat = first[0].ravel()
    for lag in (1, 2, 3, 4, 128):
        assert abs(correlation(flat[:-lag], flat[lag:])) < limit, f"elements {lag} apart"
    pairs = flat.reshape(-1, 2)  # both come from one Box-Muller radius: their squares must not correlate either
    assert abs(correlation(pairs[:, 0] ** 2, pairs[:, 1] ** 2)) < 2 * limit


def test_a_row_does_not_depend_on_the_rest_of_the_batch():
    seeds, steps = np.array(EDGE_SEEDS, dtype=np.uint64), np.arange(len(EDGE_SEEDS))
    together = noise.normals(seeds, steps, SHAPE)
    for row in range(len(seeds)):
        alone = noise.normals(seeds[row : row + 1], steps[row : row + 1], SHAPE)
        np.testing.assert_array_equal(together[row], alone[0])
    shuffled = noise.normals(seeds[::-1], steps[::-1], SHAPE)
    np.testing.assert_array_equal(shuffled[::-1], together)


def test_a_smaller_image_is_the_beginning_of_a_larger_one():
    key, step = np.array([3], np.uint64), np.array([0])
    np.testing.assert_array_equal(noise.normals(key, step, (7,)), noise.normals(key, step, (23,))[:, :7])


def test_seeds_wrap_at_64_bits_and_negative_ones_are_their_bit_pattern():
    np.testing.assert_array_equal(noise.noise_for([-1, 2**64 + 5], SHAPE)(0), noise.noise_for([2**64 - 1, 5], SHAPE)(0))
    theirs = noise_torch.noise_for([-1, 2**64 + 5], SHAPE)(0)
    np.testing.assert_array_equal(theirs.numpy(), noise_torch.noise_for([2**64 - 1, 5], SHAPE)(0).numpy())


def test_an_empty_batch_gives_an_empty_array():
    assert noise.noise_for([], SHAPE)(0).shape == (0, *SHAPE)
    assert noise_torch.noise_for([], SHAPE)(0).shape == (0, *SHAPE)


def test_an_image_of_no_channels_gives_an_empty_array():
    assert noise.latent_for([1, 2], (0, 4, 5))(0).shape == (2, 0, 4, 5)
    assert noise_torch.latent_for([1, 2], (0, 4, 5))(0).shape == (2, 0, 4, 5)


@pytest.mark.parametrize("classes", [1, 3, 10, 1000, 2**31])
def test_the_label_of_a_seed_is_the_same_alone_and_among_thousands(classes: int):
    seeds = [*EDGE_SEEDS, -1, 2**64 + 5, *np.random.default_rng(0).integers(0, 2**63, 2000).tolist()]
    together = noise.random_labels(seeds, classes).tolist()
    assert [noise.random_labels([seed], classes).item() for seed in seeds] == together


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_random_labels_are_in_range_and_uniform(classes: int):
    labels = noise.random_labels(range(20_000), classes)
    assert labels.min() >= 0
    assert labels.max() < classes
    counts = np.bincount(labels, minlength=classes)
    chi2 = ((counts - 20_000 / classes) ** 2 / (20_000 / classes)).sum()
    assert chi2 <= classes - 1 + 4 * math.sqrt(2 * classes)  # four standard deviations of chi squared


def test_the_latent_and_the_noise_are_uncorrelated_at_any_pair_of_steps():
    streams = [source([7], (1, 128, 128)) for source in (noise.noise_for, noise.latent_for)]
    for step in range(3):
        for other in range(3):
            assert abs(correlation(streams[0](step), streams[1](other))) < 4 / 128
    assert abs(correlation(streams[1](0), streams[1](1))) < 4 / 128


def test_labels_come_from_another_stream_than_the_noise():
    seeds, zero = np.array([11], np.uint64), np.array([0])
    label_words = noise.random_words(seeds, zero, noise.STREAM_LABEL, 1)
    noise_words = noise.random_words(seeds, zero, noise.STREAM_NOISE, 1)
    assert (label_words != noise_words).all()
