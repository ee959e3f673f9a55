"""A reward of somebody else's module."""

from torch import Tensor


def zero(images: Tensor) -> Tensor:
    return images.new_zeros(len(images))
