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

Words = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]


def philox4x32(key: Sequence[NDArray], counter: Sequence[NDArray]) -> Words:
    """Philox 4x32-10. key: two, counter: four integer arrays that broadcast together; uses their low 32 bits."""
    k0, k1 = (np.asarray(word).astype(np.uint64) & _LOW for word in key)
    c0, c1, c2, c3 = (np.asarray(word).astype(np.uint64) & _LOW for word in counter)
    for _ in range(ROUNDS):
        p0, p1 = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + np.uint64(WEYL[0])) & _LOW, (k1 + np.uint64(WEYL[1])) & _LOW
    shape = np.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)
    return tuple(np.broadcast_to(c, shape).astype(np.uint32) for c in (c0, c1, c2, c3))  # pyright: ignore[reportReturnType]


def random_words(seeds: NDArray[np.uint64], steps: NDArray, stream: int, blocks: int) -> NDArray[np.uint32]:
    """Raw generator output [B, blocks, 4] for seeds [B] and steps [B]: block i covers elements 4i .. 4i + 3."""
    seeds = np.asarray(seeds, dtype=np.uint64)[:, None]
    words = philox4x32(
        key=(seeds & _LOW, seeds >> _HALF),
        counter=(
            np.arange(blocks, dtype=np.uint64)[None, :],
            np.asarray(steps, dtype=np.uint64)[:, None],
            np.uint64(stream),  # pyright: ignore[reportArgumentType]
            np.uint64(NOISE_VERSION),  # pyright: ignore[reportArgumentType]
        ),
    )
    return np.stack(words, axis=-1)


def uniforms(words: NDArray[np.uint32]) -> NDArray[np.floating]:
    """Words -> uniforms strictly inside (0, 1), same shape; every value is exact in float32."""
    return ((words >> np.uint32(9)) + 0.5) * 2.0**-23


def normals(
    seeds: NDArray[np.uint64], steps: NDArray, shape: tuple[int, ...], stream: int = STREAM_NOISE
) -> NDArray[np.float32]:
    """Unit normals [B, *shape] for seeds [B] and step indices [B], which may differ from row to row."""
    count = int(np.prod(shape))
    blocks = -(-count // 4)
    u = uniforms(random_words(seeds, steps, stream, blocks))
    radius = np.sqrt(-2.0 * np.log(u[..., 0::2]))
    angle = 2.0 * np.pi * u[..., 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)  # [B, blocks, 2, 2]
    return pairs.reshape(len(pairs), 4 * blocks)[:, :count].reshape(len(pairs), *shape).astype(np.float32)


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
