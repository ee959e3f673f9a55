"""The project's noise on a device: Philox 4x32-10 with our counters, and Box-Muller. Reference, then device function.

`fewstep.noise` holds the definition (noise_version 1): key = seed; counter = (element // 4, step, stream, version).
Integers are equal bit for bit, normals to 1e-6. No launcher: kernels generate noise in registers.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

NOISE_VERSION = 1
STREAM_NOISE = 0
STREAM_LATENT = 2

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF

VERSION = tl.constexpr(NOISE_VERSION)


def words_reference(seed: Tensor, step: Tensor, stream: int, blocks: int) -> Tensor:
    """Generator output [B, blocks, 4] as int64 in [0, 2^32) for seed [B] int64, the bit pattern, and step [B]."""
    key = torch.stack([seed & _LOW, (seed >> 32) & _LOW], dim=-1)[:, None]  # [B, 1, 2]
    even = torch.zeros(len(seed), blocks, 2, dtype=torch.int64, device=seed.device)  # words 0 and 2
    odd = torch.zeros_like(even)  # words 1 and 3
    even[..., 0], even[..., 1] = torch.arange(blocks, device=seed.device), stream
    odd[..., 0], odd[..., 1] = step.long()[:, None], NOISE_VERSION
    factor, weyl = (torch.tensor(pair, device=seed.device) for pair in (_MULTIPLIERS, _WEYL))
    for _ in range(10):
        # The product in two halves of the word, as 64 signed bits do not hold it.
        low = factor * (even & 0xFFFF)
        high = factor * (even >> 16) + (low >> 16)
        even = (high >> 16).flip(-1) ^ odd ^ key
        odd = (((high & 0xFFFF) << 16) | (low & 0xFFFF)).flip(-1)
        key = (key + weyl) & _LOW
    return torch.stack([even, odd], dim=-1).flatten(-2)


def normals_reference(seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Unit normals [B, *shape] float32 for seed [B] int64 and step [B]."""
    count = math.prod(shape)
    u = ((words_reference(seed, step, stream, -(-count // 4)) >> 9).double() + 0.5) * 2.0**-23
    radius, angle = (-2.0 * u[..., 0::2].log()).sqrt(), 2.0 * math.pi * u[..., 1::2]
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pairs.flatten(1)[:, :count].reshape(len(seed), *shape).float()


@triton.jit
def box_muller(radius_word, angle_word):
    """Two words -> two unit normals, as float32 allows: the angle loses nothing before its sine and cosine.

    tl.sin and tl.cos would round 2 pi u and carry a slow path for large arguments. Here u = (v + 1/2) / 2^23 is split,
    in integers, into the nearest quarter turn and a rest of at most half of one, f in [-1/2, 1/2] quarters, exact in
    float32. Polynomials in f^2, fitted to sin(pi f / 2) / f and cos(pi f / 2), err by 9e-8.
    """
    u = ((radius_word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23; exact
    square = -2.0 * tl.log(u)  # in [1.2e-7, 33.3], so the root needs none of the care of tl.sqrt_rn
    inverse = tl.rsqrt(square)
    radius = square * inverse
    radius = tl.fma(0.5 * inverse, tl.fma(-radius, radius, square), radius)
    v = (angle_word >> 9).to(tl.int32)
    quarter = (v + (1 << 20)) >> 21
    f = ((v - (quarter << 21)).to(tl.float32) + 0.5) * 4.76837158203125e-07  # 2^-21; exact
    s = f * f
    sine = tl.fma(
        s, tl.fma(s, tl.fma(s, -0.004602163098752499, 0.07968021929264069), -0.6459634900093079), 1.5707963705
    )
    sine *= f
    cosine = tl.fma(s, 0.00090362987248227, -0.02086007036268711)
    cosine = tl.fma(s, tl.fma(s, tl.fma(s, cosine, 0.25366920232772827), -1.2337005138397217), 1.0)
    odd = (quarter & 1) != 0  # a quarter turn maps (cos, sin) to (-sin, cos)
    x = tl.where(odd, sine, cosine)
    y = tl.where(odd, cosine, sine)
    return radius * tl.where(((quarter + 1) & 2) != 0, -x, x), radius * tl.where((quarter & 2) != 0, -y, y)


@triton.jit
def words4(seed, block, step, stream: tl.constexpr):
    """The four words of each block. seed: 64-bit scalar, block: int32 tensor, step: int32 scalar."""
    return tl.philox(seed, block, step, stream, VERSION)


@triton.jit
def normals4(seed, block, step, stream: tl.constexpr):
    """Unit normals for the elements 4 block .. 4 block + 3."""
    w0, w1, w2, w3 = words4(seed, block, step, stream)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def normals_tile(
    seed, step, stream: tl.constexpr, first_channel, first_position,
    AREA: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Unit normals [CHANNELS, POSITIONS] of the image's elements from (first_channel, first_position) on.

    An element is channel * AREA + position. Where a block of four never crosses a channel, it is generated once and
    spread over four neighbours; in images of odd sizes every element generates its block and picks its own.
    """
    channel = first_channel + tl.arange(0, CHANNELS)[:, None]
    if AREA % 4 == 0 and POSITIONS % 4 == 0:
        block = channel * (AREA // 4) + first_position // 4 + tl.arange(0, POSITIONS // 4)[None, :]
        n0, n1, n2, n3 = normals4(seed, block, step, stream)
        return tl.reshape(side_by_side(n0, n1, n2, n3), CHANNELS, POSITIONS)
    else:
        element = channel * AREA + first_position + tl.arange(0, POSITIONS)[None, :]
        n0, n1, n2, n3 = normals4(seed, element // 4, step, stream)
        lane = element % 4
        return tl.where(lane < 2, tl.where(lane == 0, n0, n1), tl.where(lane == 2, n2, n3))


@triton.jit
def normals_rgb(seed, step, stream: tl.constexpr, quad, AREA: tl.constexpr):
    """Unit normals of a channels_last image of three channels, for the four pixels of each quad; 32 quads to a warp.

    As three tensors [quads, 4]: the thread at place p of its warp gets, of its warp's 384 elements in memory order,
    those from 4 p, 128 + 4 p and 256 + 4 p on. Every block of four is generated once: a thread makes the three of its
    own pixels, which are twelve neighbours in memory, and the warp exchanges vectors of four among its registers.
    """
    r0, r1, r2, r3 = normals4(seed, quad, step, stream)
    g0, g1, g2, g3 = normals4(seed, AREA // 4 + quad, step, stream)
    b0, b1, b2, b3 = normals4(seed, AREA // 2 + quad, step, stream)
    warps: tl.constexpr = quad.shape[0] // 32
    first = tl.reshape(side_by_side(r0, g0, b0, r1), warps, 32, 4)
    second = tl.reshape(side_by_side(g1, b1, r2, g2), warps, 32, 4)
    third = tl.reshape(side_by_side(b2, r3, g3, b3), warps, 32, 4)
    # Vector v of a warp's 96 lies with thread v // 3 and is its number v % 3. The thread at place p gets v = p, p + 32
    # and p + 64, whose remainders are p % 3, (p + 2) % 3 and (p + 1) % 3: one of each, so one exchange of each will do.
    place = tl.arange(0, 32)[None, :, None]
    a, b, c = exchanged(first, place, 0), exchanged(second, place, 1), exchanged(third, place, 2)
    return chosen(a, b, c, place % 3), chosen(a, b, c, (place + 2) % 3), chosen(a, b, c, (place + 1) % 3)


@triton.jit
def exchanged(vectors, place, remainder):
    """[warps, 32, 4]: to each place in a warp, of its three vectors the one with that remainder.

    Along the axis of a warp's threads, `tl.gather` is a shuffle.
    """
    vector = place + 32 * ((place + 2 * remainder) % 3)
    return tl.gather(vectors, tl.broadcast_to(vector // 3, vectors.shape), 1)


@triton.jit
def chosen(a, b, c, number):
    """Number 0, 1 or 2 of three tensors [warps, 32, 4], as [32 warps, 4]."""
    return tl.reshape(tl.where(number == 0, a, tl.where(number == 1, b, c)), a.shape[0] * 32, 4)


@triton.jit
def side_by_side(a, b, c, d):
    """Four tensors [...] -> [..., 2, 2]: in memory order a, b, c, d of the first element, then of the second."""
    return tl.join(tl.join(a, c), tl.join(b, d))
