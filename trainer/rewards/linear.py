"""Linear measurements of an image with Gaussian noise: inpainting, super-resolution, deblurring."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from trainer.methods.rtb import LogReward

Operator = Callable[[Tensor], Tensor]  # images [B, C, H, W] -> measurements [B, ...], linear


def measured(operator: Operator, y: Tensor, std: float) -> LogReward:
    """log N(y; A x, std^2 I) without its constant: -|A x - y|^2 / (2 std^2), at most 0. y: one measurement [1, ...]."""
    return lambda images, _: -((operator(images) - y).flatten(1).square().sum(dim=1)) / (2 * std**2)


def inpainting(mask: Tensor) -> Operator:
    """mask [1, 1, H, W]: 1 where the image is known, 0 where it is asked for."""
    return lambda images: images * mask


def super_resolution(factor: int) -> Operator:
    """Means of squares of factor x factor pixels."""
    return lambda images: functional.avg_pool2d(images, factor)


def blur(std: float) -> Operator:
    """Gaussian blur with a deviation of `std` pixels, edges mirrored."""
    reach = max(math.ceil(3 * std), 1)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = torch.exp(-(offsets**2) / (2 * std**2))
    line = line / line.sum()

    def run(images: Tensor) -> Tensor:
        channels, taps = images.shape[1], line.to(images)
        across = taps.expand(channels, 1, 1, -1)
        padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
        blurred = functional.conv2d(padded, across, groups=channels)
        return functional.conv2d(blurred, across.transpose(2, 3), groups=channels)

    return run
