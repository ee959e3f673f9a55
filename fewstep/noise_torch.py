"""`fewstep.noise` on torch tensors, on any device: the same integers, the same normals to 1e-6."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.noise import MULTIPLIERS, NOISE_VERSION, ROUNDS, STREAM_LATENT, STREAM_NOISE, WEYL

_LOW = 0xFFFFFFFF


def _multiply(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of factor * word. In two halves: the product would overflow a signed 64-bit integer."""
    low = factor * (word & 0xFFFF)
    high = factor * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def random_words(seeds: Tensor, steps: Tensor, stream: int, blocks: int) -> Tensor:
    """Raw generator output [B, blocks, 4] as int64 in [0, 2^32) for seeds [B] int64 (bit pattern) and steps [B]."""
    k0, k1 = (seeds & _LOW)[:, None], ((seeds >> 32) & _LOW)[:, None]
    c0 = torch.arange(blocks, device=seeds.device).expand(len(seeds), -1)
    c1 = steps.long()[:, None].expand_as(c0)
    c2, c3 = torch.full_like(c0, stream), torch.full_like(c0, NOISE_VERSION)
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & _LOW, (k1 + WEYL[1]) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=-1)


def normals(seeds: Tensor, steps: Tensor, shape: tuple[int, ...], stream: int = STREAM_NOISE) -> Tensor:
    """Unit normals [B, *shape] float32 for seeds [B] int64 and step indices [B]."""
    count = math.prod(shape)
    words = random_words(seeds, steps, stream, -(-count // 4))
    u = ((words >> 9).double() + 0.5) * 2.0**-23
    radius, angle = (-2.0 * u[..., 0::2].log()).sqrt(), 2.0 * math.pi * u[..., 1::2]
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pairs.flatten(1)[:, :count].reshape(len(pairs), *shape).float()


def noise_for(
    seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu", stream: int = STREAM_NOISE
) -> Callable[[int], Tensor]:
    """The `noise` argument of a sampler: step -> unit normals [B, *shape] of these seeds."""
    signed = [(seed + 2**63) % 2**64 - 2**63 for seed in seeds]  # the same 64 bits as int64
    keys = torch.tensor(signed, dtype=torch.int64, device=device)
    return lambda step: normals(keys, torch.full_like(keys, step), shape, stream)


def latent_for(
    seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Callable[[int], Tensor]:
    """The `latent` of `fewstep.latent.with_latent`: step -> unit normals [B, *shape] of these seeds, not the noise."""
    return noise_for(seeds, shape, device, STREAM_LATENT)
