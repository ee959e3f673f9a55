"""The project's noise, in numpy: counter-based, so an image depends on its seed and on nothing else.

noise_version 1, written down:

    generator  Philox 4x32-10 (Salmon et al. 2011)
    key        the 64-bit seed: (low 32 bits, high 32 bits)
    counter    (element // 4, step, stream, noise_version): four 32-bit words out, for elements 4i .. 4i + 3
    uniform    u = ((word >> 9) + 0.5) / 2^23, exact in float32, strictly inside (0, 1)
    normal     Box-Muller: r = sqrt(-2 ln u0), a = 2 pi u1 -> (r cos a, r sin a); the same from u2, u3
    element    index into the image in C, H, W order
    stream     0: step 0 is the initial noise, step i the i-th re-noising
               1: random labels, step 0
               2: what a posterior student decides by; step i is for the i-th network call, counted from 0

Batch, slot, neighbours, worker, restart and device do not enter. `noise_torch` is the same on tensors.
Integers agree exactly everywhere; normals to 1e-6, because log and cos differ in the last bit.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

NOISE_VERSION = 1
STREAM_NOISE = 0
STREAM_LABEL = 1
STREAM_LATENT = 2

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_CHUNK = 6144  # blocks made at a time: the working set stays in one core's cache

Words = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]
Pair = NDArray[np.uint64]  # [2, ...]: two of the four words of every block, each below 2^32


def philox4x32(key: Sequence[NDArray], counter: Sequence[NDArray]) -> Words:
    """Philox 4x32-10. key: two, counter: four integer arrays that broadcast together; uses their low 32 bits."""
    k0, k1, c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word).astype(np.uint64) for word in (*key, *counter)))
    even, odd = np.stack([c0, c2]) & _LOW, np.stack([c1, c3]) & _LOW
    _rounds(even, odd, np.stack([k0, k1]) & _LOW)
    return tuple(word.astype(np.uint32) for word in (even[0], odd[0], even[1], odd[1]))  # pyright: ignore[reportReturnType]


def _rounds(even: Pair, odd: Pair, key: Pair) -> None:
    """All rounds, in place. even: words 0 and 2, which are multiplied; odd: words 1 and 3; key broadcasts to them."""
    column = (2,) + (1,) * (even.ndim - 1)
    multipliers, weyl = (np.array(pair, dtype=np.uint64).reshape(column) for pair in (MULTIPLIERS, WEYL))
    rounds = np.arange(ROUNDS, dtype=np.uint64).reshape(-1, *(1,) * key.ndim)
    product = np.empty_like(even)
    crossed = product[::-1]  # each product feeds the other half
    for round_key in (key + rounds * weyl) & _LOW:
        np.multiply(even, multipliers, out=product)
        np.right_shift(crossed, _HALF, out=even)
        even ^= odd
        even ^= round_key
        np.bitwise_and(crossed, _LOW, out=odd)


def _words(seeds: NDArray[np.uint64], steps: NDArray[np.uint64], stream: int, blocks: range) -> tuple[Pair, Pair]:
    """Words 0 and 2, and words 1 and 3, of some blocks of every row: each [2, B, len(blocks)]."""
    even, odd = (np.empty((2, len(seeds), len(blocks)), dtype=np.uint64) for _ in range(2))
    even[0], even[1] = np.arange(blocks.start, blocks.stop, dtype=np.uint64), stream
    odd[0], odd[1] = steps[:, None], NOISE_VERSION
    _rounds(even, odd, np.stack([seeds & _LOW, seeds >> _HALF])[:, :, None])
    return even, odd


def random_words(seeds: NDArray[np.uint64], steps: NDArray, stream: int, blocks: int) -> NDArray[np.uint32]:
    """Raw generator output [B, blocks, 4] for seeds [B] and steps [B]: block i covers elements 4i .. 4i + 3."""
    even, odd = _words(np.asarray(seeds, np.uint64), np.asarray(steps, np.uint64), stream, range(blocks))
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=-1).astype(np.uint32)


def uniforms(words: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
    """32-bit words -> uniforms strictly inside (0, 1), same shape; every value is exact in float32."""
    values = (words >> words.dtype.type(9)).astype(np.float64)
    values += 0.5
    values *= 2.0**-23
    return values


def normals(
    seeds: NDArray[np.uint64], steps: NDArray, shape: tuple[int, ...], stream: int = STREAM_NOISE
) -> NDArray[np.float32]:
    """Unit normals [B, *shape] for seeds [B] and step indices [B], which may differ from row to row."""
    seeds, steps = np.asarray(seeds, np.uint64), np.asarray(steps, np.uint64)
    count = math.prod(shape)
    blocks = -(-count // 4)
    out = np.empty((len(seeds), blocks, 2, 2), dtype=np.float32)
    rows_at_once = max(1, _CHUNK // max(blocks, 1))
    for row in range(0, len(seeds), rows_at_once):
        rows = slice(row, row + rows_at_once)
        for first in range(0, blocks, _CHUNK):
            span = range(first, min(first + _CHUNK, blocks))
            _box_muller(*_words(seeds[rows], steps[rows], stream, span), out[rows, first : span.stop])
    return out.reshape(len(seeds), 4 * blocks)[:, :count].reshape(len(seeds), *shape)


def _box_muller(even: Pair, odd: Pair, out: NDArray[np.float32]) -> None:
    """Words -> unit normals, into out [B, blocks, pair, cosine and sine].

    Cosine and sine are taken in float32, several times faster than in float64, and corrected to first order for what
    rounding took from the angle; without that, an error of 2e-7 in the angle would be 1.2e-6 in the largest normals.
    """
    radius = uniforms(even)
    np.log(radius, out=radius)
    radius *= -2.0
    radius = np.sqrt(radius, out=radius).astype(np.float32)
    angle = uniforms(odd)
    angle *= 2.0 * math.pi
    rounded = angle.astype(np.float32)
    angle -= rounded
    rest = angle.astype(np.float32)
    cosine, sine = np.cos(rounded), np.sin(rounded)
    pairs = out.transpose(2, 0, 1, 3)
    np.multiply(radius, cosine - rest * sine, out=pairs[..., 0])
    np.multiply(radius, sine + rest * cosine, out=pairs[..., 1])


def noise_for(
    seeds: Sequence[int], shape: tuple[int, ...], stream: int = STREAM_NOISE
) -> Callable[[int], NDArray[np.float32]]:
    """The `noise` argument of a sampler: step -> unit normals [B, *shape] of these seeds."""
    keys = np.array([seed % 2**64 for seed in seeds], dtype=np.uint64)
    return lambda step: normals(keys, np.full(len(keys), step), shape, stream)


def latent_for(seeds: Sequence[int], shape: tuple[int, ...]) -> Callable[[int], NDArray[np.float32]]:
    """The `latent` of `fewstep.latent.with_latent`: step -> unit normals [B, *shape] of these seeds, not the noise."""
    return noise_for(seeds, shape, STREAM_LATENT)


def random_labels(seeds: Sequence[int], classes: int) -> NDArray[np.int64]:
    """One class index per seed, uniform over the classes, from a stream of its own."""
    keys = np.array([seed % 2**64 for seed in seeds], dtype=np.uint64)
    words = random_words(keys, np.zeros(len(keys)), STREAM_LABEL, blocks=1)[:, 0, 0]
    return (words.astype(np.uint64) * np.uint64(classes) >> _HALF).astype(np.int64)
