"""The coarse part of a student's output, which its input shows: there the teacher says what is right.

Noise of level sigma moves the mean of an image under a Gaussian window of s pixels by sigma / (2 sqrt(pi) s). So its
input tells a student the brightness and the colours of an image up to some level, and a sample of p(x0 | x) has them
within that distance of the posterior mean, which is the teacher's output. A student that was trained by divergences and
critics drifts from it: on photographs every call raised the contrast by a seventh (docs/log.md, the coarse part).
Details are the student's: the posterior mean has none that the noise hides.
"""

import math

import torch
from torch import Tensor

SMALLEST = 1.0  # pixels; a window without width would make all details the teacher's


def highest_level(side: int, within: float) -> float:
    """The highest noise level at which an image of `side` pixels has a coarse part: noise of it moves the mean of all
    pixels by `within`, in units of pixel values."""
    return within * side


def coarse_part(images: Tensor, sigma: Tensor, within: float) -> Tensor:
    """The means of images [B, C, H, W] under the narrowest windows of at least SMALLEST over which noise of sigma [B]
    deviates by at most `within`; 0 above `highest_level`.

    The image goes on beyond its edges as its mirror image, so the window is a product in the cosine transform.
    """
    height, width = images.shape[-2:]
    scale = (sigma / (2 * math.sqrt(math.pi) * within)).clamp(min=SMALLEST)
    visible = sigma <= highest_level(min(height, width), within)
    rows, columns = (_cosines(side, images) for side in (height, width))
    down, across = (
        torch.exp(-0.5 * (scale[:, None] * math.pi / side * torch.arange(side, device=images.device)) ** 2)
        for side in (height, width)
    )
    kept = (visible[:, None] * down)[:, None, :, None] * across[:, None, None, :]
    return rows.T @ (kept * (rows @ images @ columns.T)) @ columns


def _cosines(side: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of `side` values: a matrix whose rows are the frequencies."""
    place = torch.arange(side, device=like.device, dtype=like.dtype)
    matrix = torch.cos(math.pi / side * (place + 0.5) * place[:, None]) * math.sqrt(2 / side)
    return torch.cat([matrix[:1] / math.sqrt(2), matrix[1:]])
