"""The device's noise is the project's: integers bit for bit, normals to 1e-6, and the statistics of unit normals."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from fewstep import noise
from kernels import philox
from kernels.philox import box_muller, normals_reference, normals_tile, words4, words_reference
from tests.core.test_noise import GOLDEN_LATENT, GOLDEN_LATENT_WORDS, GOLDEN_NORMALS
from tests.kernels.cases import DEVICE

EDGE_SEEDS = (0, 1, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1)
TILE = 16384 if knobs.runtime.interpret else 1024  # the interpreter's cost is per program, a GPU's registers are few
STREAMS = [noise.STREAM_NOISE, noise.STREAM_LATENT]


@triton.jit
def words_kernel(out_ptr, seed_ptr, step_ptr, stream: tl.constexpr, BLOCKS: tl.constexpr):
    row = tl.program_id(0)
    block = tl.arange(0, BLOCKS)
    at = out_ptr + (row * BLOCKS + block) * 4
    w0, w1, w2, w3 = words4(tl.load(seed_ptr + row), block, tl.load(step_ptr + row), stream)
    tl.store(at, w0.to(tl.int64))
    tl.store(at + 1, w1.to(tl.int64))
    tl.store(at + 2, w2.to(tl.int64))
    tl.store(at + 3, w3.to(tl.int64))


@triton.jit
def normals_kernel(
    out_ptr, seed_ptr, step_ptr, stream: tl.constexpr, AREA: tl.constexpr, CHANNELS: tl.constexpr,
    TILE_C: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    row, first_channel, first_position = tl.program_id(0), tl.program_id(1) * TILE_C, tl.program_id(2) * TILE_P
    channel = first_channel + tl.arange(0, TILE_C)[:, None]
    position = first_position + tl.arange(0, TILE_P)[None, :]
    seed, step = tl.load(seed_ptr + row), tl.load(step_ptr + row)
    z = normals_tile(seed, step, stream, first_channel, first_position, AREA, TILE_C, TILE_P)
    at = out_ptr + row * (CHANNELS * AREA) + channel * AREA + position
    tl.store(at, z, mask=(channel < CHANNELS) & (position < AREA))


@triton.jit
def box_muller_kernel(cosine_ptr, sine_ptr, radius_ptr, angle_ptr, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x, y = box_muller(tl.load(radius_ptr + at).to(tl.uint32), tl.load(angle_ptr + at).to(tl.uint32))
    tl.store(cosine_ptr + at, x)
    tl.store(sine_ptr + at, y)


def signed(seeds: tuple[int, ...] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(seeds, dtype=np.uint64).view(np.int64)).to(DEVICE)


def steps_of(steps: np.ndarray | list[int]) -> Tensor:
    return torch.tensor(np.asarray(steps), dtype=torch.int32, device=DEVICE)


def kernel_normals(seeds: Tensor, steps: Tensor, shape: tuple[int, int, int], stream: int, tile_c=1, tile_p=TILE):
    channels, area = shape[0], shape[1] * shape[2]
    out = torch.full((len(seeds), *shape), math.nan, device=DEVICE)
    grid = len(seeds), triton.cdiv(channels, tile_c), triton.cdiv(area, tile_p)
    kernel: Any = normals_kernel
    kernel[grid](out, seeds, steps, stream, area, channels, tile_c, tile_p, enable_fp_fusion=False)
    return out.cpu().numpy()


def test_the_constants_are_those_of_the_definition():
    assert (philox.NOISE_VERSION, philox.STREAM_NOISE, philox.STREAM_LATENT) == (
        noise.NOISE_VERSION, noise.STREAM_NOISE, noise.STREAM_LATENT,
    )  # fmt: skip


@pytest.mark.parametrize("stream", STREAMS)
def test_words_are_equal_bit_for_bit(stream: int):
    steps = [0, 1, 2, 7, 8, 1000, 2**30, 2**31 - 1]
    expected = noise.random_words(np.array(EDGE_SEEDS, np.uint64), np.array(steps), stream, blocks=16)
    seeds, steps = signed(EDGE_SEEDS), steps_of(steps)
    reference = words_reference(seeds, steps, stream, blocks=16)
    np.testing.assert_array_equal(reference.cpu().numpy(), expected.astype(np.int64))
    words = torch.zeros_like(reference)
    kernel: Any = words_kernel
    kernel[(len(seeds),)](words, seeds, steps, stream, 16)
    assert torch.equal(words, reference)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 64, 64), (3, 5, 7), (2, 1, 1), (4, 2, 3)], ids=str)
def test_normals_agree_to_a_millionth_in_any_shape(stream: int, shape: tuple[int, int, int]):
    seeds, steps = np.array(EDGE_SEEDS[4:7], np.uint64), np.array([0, 1, 8])
    expected = noise.normals(seeds, steps, shape, stream)
    reference = normals_reference(signed(seeds), steps_of(steps), stream, shape)
    np.testing.assert_allclose(reference.cpu().numpy(), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        kernel_normals(signed(seeds), steps_of(steps), shape, stream, tile_c=4, tile_p=1024),
        expected,
        rtol=0,
        atol=1e-6,
    )


def test_golden_values_of_noise_version_1_never_change():
    seeds, steps = signed((0, 2**63 + 7)), steps_of([0, 3])
    for stream, golden in ((philox.STREAM_NOISE, GOLDEN_NORMALS), (philox.STREAM_LATENT, GOLDEN_LATENT)):
        for values in (
            kernel_normals(seeds, steps, (1, 1, 5), stream, tile_p=8).reshape(2, 5),
            normals_reference(seeds, steps, stream, (5,)).cpu().numpy(),
        ):
            np.testing.assert_allclose(values, golden, rtol=0, atol=1e-6)
    assert words_reference(signed((5,)), steps_of([2]), philox.STREAM_LATENT, 1).tolist() == GOLDEN_LATENT_WORDS


def box_muller_error(radius: np.ndarray, angle: np.ndarray) -> float:
    """Largest distance of the kernel's pair from the formula in float64, for words [n], n a power of two."""
    cosine, sine = (torch.zeros(len(radius), device=DEVICE) for _ in range(2))
    words = [torch.from_numpy(word.astype(np.int64)).to(DEVICE) for word in np.broadcast_arrays(radius, angle)]
    kernel: Any = box_muller_kernel
    tile = len(radius) if knobs.runtime.interpret else min(len(radius), TILE)
    kernel[(len(radius) // tile,)](cosine, sine, *words, tile, enable_fp_fusion=False)
    r, a = np.sqrt(-2 * np.log(noise.uniforms(radius))), 2 * np.pi * noise.uniforms(angle)
    return max(np.abs(cosine.cpu().numpy() - r * np.cos(a)).max(), np.abs(sine.cpu().numpy() - r * np.sin(a)).max())


def test_the_polynomials_hold_at_every_angle_and_the_logarithm_at_every_radius():
    size = 2**17  # a tensor's limit in Triton is 2^20
    every = (np.arange(size, dtype=np.uint32) << np.uint32(15)) + np.uint32(2**14)
    assert box_muller_error(np.full(size, 2**31, np.uint32), every) < 2.5e-7, "radius 1.18"
    assert box_muller_error(np.zeros(size, np.uint32), every) < 1.2e-6, "radius 5.77, the largest there is"
    assert box_muller_error(every, np.full(size, 2**29, np.uint32)) < 1e-6
    ends = np.concatenate([np.arange(2**12), 2**23 - 1 - np.arange(2**12)]).astype(np.uint32) << np.uint32(9)
    assert box_muller_error(ends, np.full(len(ends), 2**32 - 1, np.uint32)) < 1e-6, "u next to 0 and 1"
    turns = np.sort(np.concatenate([quarter * 2**21 + np.arange(-8, 8) for quarter in range(1, 5)]) % 2**23)
    assert box_muller_error(np.full(64, 2**20, np.uint32), turns.astype(np.uint32) << np.uint32(9)) < 1e-6


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    """[seed, step, 1, 128, 128] for seeds 7, 8 and 7 + 2^32, steps 0 and 1, as the kernel makes it."""
    seeds = np.repeat(np.array([7, 8, 7 + 2**32], np.uint64), 2)
    return kernel_normals(signed(seeds), steps_of([0, 1] * 3), (1, 128, 128), 0).reshape(3, 2, 1, 128, 128)


def test_moments_and_distribution_are_those_of_a_unit_normal(sample: np.ndarray):
    x = np.sort(sample.astype(np.float64).ravel())
    error = 4 / math.sqrt(x.size)  # four standard errors of the mean, for fixed seeds
    assert abs(x.mean()) < error
    assert abs(x.var() - 1) < error * math.sqrt(2)
    assert abs((x**3).mean()) < error * math.sqrt(15)
    assert abs((x**4).mean() - 3) < error * math.sqrt(96)
    cdf = 0.5 * (1 + torch.erf(torch.from_numpy(x) / math.sqrt(2)).numpy())
    ranks = np.arange(x.size + 1) / x.size
    assert max((ranks[1:] - cdf).max(), (cdf - ranks[:-1]).max()) < 1.63 / math.sqrt(x.size)  # Kolmogorov-Smirnov, 1 %


def test_neighbouring_seeds_steps_and_elements_are_uncorrelated(sample: np.ndarray):
    limit = 4 / 128  # four standard errors over 128 * 128 pairs
    assert abs(correlation(sample[0, 0], sample[1, 0])) < limit, "low half of the seed"
    assert abs(correlation(sample[0, 0], sample[2, 0])) < limit, "high half of the seed"
    assert abs(correlation(sample[0, 0], sample[0, 1])) < limit, "step"
    flat = sample[0, 0].ravel()
    for lag in (1, 2, 3, 4, 128):
        assert abs(correlation(flat[:-lag], flat[lag:])) < limit, f"elements {lag} apart"
    latent = kernel_normals(signed((7,)), steps_of([0]), (1, 128, 128), philox.STREAM_LATENT)
    assert abs(correlation(flat, latent)) < limit, "stream"
