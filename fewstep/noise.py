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
               2: the latent of an NCVSD student; step i is for the i-th network call, counted from 0

Batch, slot, neighbours, worker, restart and device do not enter. `noise_torch` is the same on tensors.
Integers agree exactly everywhere; normals to 1e-6, because log and cos differ in the last bit.
"""

import math
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NOISE_VERSION = 1
STREAM_NOISE = 0
STREAM_LABEL = 1
STREAM_LATENT = 2

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
# Arrays of no dimension: numpy takes them faster than its scalars.
_LOW, _HALF, _M0, _M1 = (np.array(value, np.uint64) for value in (0xFFFFFFFF, 32, *MULTIPLIERS))
_WEYL = np.multiply.outer(np.arange(ROUNDS, dtype=np.uint64), np.array(WEYL, np.uint64))  # added to the key by round
_FEW = 12  # seeds for which Python's integers are faster than numpy's fixed cost
CHUNK = 16384  # blocks made at a time: the working set stays in one core's cache
# Where the two halves of a 64-bit word stand in memory, as slices of its 32-bit words.
_LOW_HALVES, _HIGH_HALVES = (slice(at, None, 2) for at in ((0, 1) if sys.byteorder == "little" else (1, 0)))

Words = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]
Pair = NDArray[np.uint64]  # [2, ...]: two of the four words of every block, each below 2^32


def philox4x32(key: Sequence[NDArray], counter: Sequence[NDArray]) -> Words:
    """Philox 4x32-10. key: two, counter: four integer arrays that broadcast together; uses their low 32 bits."""
    k0, k1, c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word).astype(np.uint64) for word in (*key, *counter)))
    even, odd = np.stack([c0, c2]) & _LOW, np.stack([c1, c3]) & _LOW
    odd = _rounds(even, odd, _round_keys(np.stack([k0, k1])), np.empty_like(even))
    return tuple(word.astype(np.uint32) for word in (even[0], odd[0], even[1], odd[1]))  # pyright: ignore[reportReturnType]


def _round_keys(key: Pair) -> NDArray[np.uint64]:
    """The key of every round: [rounds, 2, ...]."""
    return (key + _WEYL.reshape(ROUNDS, 2, *(1,) * (key.ndim - 1))) & _LOW


def _rounds(even: Pair, odd: Pair, keys: NDArray[np.uint64], crossed: Pair) -> Pair:
    """A round for each of the keys, which broadcast to words 0 and 2, in even, and 1 and 3, in odd; returns those two.

    even is overwritten with words 0 and 2. Words 1 and 3 are the low halves of what is returned, which is odd or
    crossed. The high halves of a round's products meet the low halves of the last one's: no mask or shift is computed.
    """
    (even0, even1, mixed, _), new, old = map(_parts, (even, crossed, odd))
    for key in keys:
        product0, product1, _, high = new
        _, _, low, _ = old
        np.multiply(even0, _M0, out=product1)  # each product feeds the other half
        np.multiply(even1, _M1, out=product0)
        np.bitwise_xor(high, low, out=mixed)
        np.bitwise_xor(even, key, out=even)
        new, old = old, new
    return crossed if len(keys) % 2 else odd


def _parts(pair: Pair) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
    """Views of its two words, and of the low and the high halves of both."""
    halves = pair.view(np.uint32)
    return pair[0, ...], pair[1, ...], halves[..., _LOW_HALVES], halves[..., _HIGH_HALVES]


class _Work(threading.local):
    """Memory of a thread for its draws. Allocated anew for each, it takes the time of a page fault every 4 KiB."""

    memory = np.empty(0, np.uint64)

    def pairs(self, rows: int, blocks: int) -> NDArray[np.uint64]:
        """[4, 2, rows, blocks], of any content."""
        size = 8 * rows * blocks
        if len(self.memory) < size:
            self.memory = np.empty(size, np.uint64)
        return self.memory[:size].reshape(4, 2, rows, blocks)


_work = _Work()


def _words(
    seeds: NDArray[np.uint64], steps: NDArray[np.uint64], stream: int, blocks: range, work: NDArray[np.uint64]
) -> tuple[Pair, Pair]:
    """Words 0 and 2, and words 1 and 3, of some blocks of every row: each [2, B, len(blocks)], the first two of work.

    What enters the first two rounds is one number for a row, or for a block, or for all; only what is made of both
    a row and a block is computed for each of their pairs.
    """
    even, odd, crossed = work[:3]
    keys = _round_keys(np.array([seeds & _LOW, seeds >> _HALF])[:, :, None])  # [rounds, 2, B, 1]
    block_high, block_low = _of_blocks(blocks)
    of_stream = stream * MULTIPLIERS[1]
    of_row = ((steps[:, None] & _LOW) ^ keys[0, 0] ^ (of_stream >> 32)) * _M0
    np.bitwise_xor(block_high, keys[0, 1], out=even[1])
    np.multiply(even[1], _M1, out=crossed[0])
    np.right_shift(crossed[0], _HALF, out=even[0])
    even[0] ^= keys[1, 0] ^ (of_stream & 0xFFFFFFFF)
    np.bitwise_xor(block_low, (of_row >> _HALF) ^ keys[1, 1], out=even[1])
    np.copyto(odd[0], crossed[0])
    odd[1] = of_row
    return even, _rounds(even, odd, keys[2:], crossed)


@lru_cache(maxsize=16)
def _of_blocks(blocks: range) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """What the first two rounds make of the block numbers: word 3 before the key enters, and word 1. [len(blocks)]."""
    product = np.arange(blocks.start, blocks.stop, dtype=np.uint64) * _M0
    return product >> _HALF ^ np.uint64(NOISE_VERSION), product & _LOW


def random_words(seeds: NDArray[np.uint64], steps: NDArray, stream: int, blocks: int) -> NDArray[np.uint32]:
    """Raw generator output [B, blocks, 4] for seeds [B] and steps [B]: block i covers elements 4i .. 4i + 3."""
    work = np.empty((3, 2, len(seeds), blocks), np.uint64)
    even, odd = _words(np.asarray(seeds, np.uint64), np.asarray(steps, np.uint64), stream, range(blocks), work)
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=-1).astype(np.uint32)


def uniforms(words: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
    """32-bit words -> uniforms strictly inside (0, 1), same shape; every value is exact in float32."""
    out = np.empty(words.shape)
    _uniforms(words, 1.0, np.empty(words.shape, np.uint32), out)
    return out


def _uniforms(
    words: NDArray[np.unsignedinteger], scale: float, integers: NDArray[np.uint32], out: NDArray[np.float64]
) -> None:
    """`uniforms(words)` times scale, into out; overwrites integers. All of one shape.

    ((word >> 9) + 0.5) / 2^23 is ((word >> 8) | 1) / 2^24, and a product with a power of two is exact.
    """
    np.copyto(integers, words, casting="unsafe")
    integers >>= np.uint32(8)
    integers |= np.uint32(1)
    np.multiply(integers.view(np.int32), scale * 2.0**-24, out=out)


def normals(
    seeds: NDArray[np.uint64], steps: NDArray, shape: tuple[int, ...], stream: int = STREAM_NOISE
) -> NDArray[np.float32]:
    """Unit normals [B, *shape] for seeds [B] and step indices [B], which may differ from row to row."""
    seeds, steps = np.asarray(seeds, np.uint64), np.asarray(steps, np.uint64)
    count = math.prod(shape)
    blocks = -(-count // 4)
    out = np.empty((len(seeds), blocks, 2, 2), dtype=np.float32)
    rows_at_once = max(1, CHUNK // max(blocks, 1))
    for row in range(0, len(seeds), rows_at_once):
        rows = slice(row, row + rows_at_once)
        for first in range(0, blocks, CHUNK):
            span = range(first, min(first + CHUNK, blocks))
            work = _work.pairs(len(seeds[rows]), len(span))
            _words(seeds[rows], steps[rows], stream, span, work)
            _box_muller(work, out[rows, first : span.stop])
    return out.reshape(len(seeds), 4 * blocks)[:, :count].reshape(len(seeds), *shape)


def _box_muller(work: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
    """The words in the first two pairs of work -> unit normals, into out [B, blocks, pair, cosine and sine].

    Cosine and sine are taken in float32, several times faster than in float64, and corrected to first order for what
    rounding took from the angle; without that, an error of 2e-7 in the angle would be 1.2e-6 in the largest normals.
    """
    even, odd = work[:2]
    # A pair of 64-bit words has the memory of two of 32 bits. Nothing is written before its words have been read.
    (radius, cosine), (rounded, rest), _, (integers, sine) = work.view(np.float32).reshape(4, 2, *even.shape)
    wide = work[2].view(np.float64)  # first of the radius, then of the angle
    _uniforms(even, 1.0, integers.view(np.uint32), wide)
    np.log(wide, out=wide)
    wide *= -2.0
    np.sqrt(wide, out=wide)
    np.copyto(radius, wide, casting="same_kind")
    _uniforms(odd, 2.0 * math.pi, integers.view(np.uint32), wide)
    np.copyto(rounded, wide, casting="same_kind")
    wide -= rounded
    np.copyto(rest, wide, casting="same_kind")
    np.cos(rounded, out=cosine)
    np.sin(rounded, out=sine)
    pairs = out.transpose(2, 0, 1, 3)
    np.multiply(rest, sine, out=rounded)
    np.subtract(cosine, rounded, out=rounded)
    np.multiply(radius, rounded, out=pairs[..., 0])
    rest *= cosine
    rest += sine
    np.multiply(radius, rest, out=pairs[..., 1])


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
    if len(seeds) <= _FEW:
        return np.array([_first_word(seed, STREAM_LABEL) * classes >> 32 for seed in seeds], np.int64)
    keys = np.array([seed % 2**64 for seed in seeds], dtype=np.uint64)
    words = random_words(keys, np.zeros(len(keys)), STREAM_LABEL, blocks=1)[:, 0, 0]
    return (words.astype(np.uint64) * np.uint64(classes) >> _HALF).astype(np.int64)


def _first_word(seed: int, stream: int) -> int:
    """`random_words(seed, step 0, stream)[0, 0]` in Python's integers: one block in a tenth of numpy's time."""
    (m0, m1), (weyl0, weyl1), low = MULTIPLIERS, WEYL, 0xFFFFFFFF
    k0, k1 = seed & low, seed >> 32 & low
    c0, c1, c2, c3 = 0, 0, stream, NOISE_VERSION
    for _ in range(ROUNDS):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & low, p0 >> 32 ^ c3 ^ k1, p0 & low
        k0, k1 = k0 + weyl0 & low, k1 + weyl1 & low
    return c0
