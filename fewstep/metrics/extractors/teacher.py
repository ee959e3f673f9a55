"""Distances in the features of a frozen teacher, which every data set has and which no table of results uses.

A diffusion model's inner features describe images well at a moderate noise level, at which denoising depends on what
an image shows. The noise of every image is fixed by a seed, so that equal images have equal features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.card import CheckpointError
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.network import UNet
from fewstep.noise_torch import noise_for
from fewstep.pixels import Pixels, from_pixels
from fewstep.precond import Denoiser, edm_scalings, onehot
from fewstep.schedule import MAX_STEPS

SIGMA = 0.2  # where images are looked at
NOISE_STEP = MAX_STEPS  # of an image's own seed: samplers use the steps before it
REFERENCE_IMAGES = 10_000  # at most so many real images, evenly spread over the set
REFERENCE_SEED = 2**36  # of the first real image; nobody samples from there
CHUNK = 100


@dataclass(frozen=True)
class TeacherSpace:
    """Fréchet distances to a set of real images, in a teacher's features."""

    teacher: Denoiser  # around a UNet
    reference: Moments
    sigma: float = SIGMA

    @property
    def description(self) -> str:
        return f"spatial means of the teacher's innermost features at sigma {self.sigma}"

    @staticmethod
    def of(teacher: Denoiser, images: Pixels, labels: NDArray[np.integer], sigma: float = SIGMA) -> "TeacherSpace":
        """Of real images uint8 [N, H, W, C] with labels [N].

        Raises CheckpointError when the teacher is a network without inner features to read.
        """
        if not isinstance(teacher.network, UNet):
            raise CheckpointError("distances are taken in the features of a U-Net of fewstep; this teacher is none")
        rows = evenly(len(images), min(len(images), REFERENCE_IMAGES))
        seeds = range(REFERENCE_SEED, REFERENCE_SEED + len(rows))
        return TeacherSpace(teacher, Moments.of(features(teacher, images[rows], labels[rows], seeds, sigma)), sigma)

    def distance(self, pixels: Pixels, labels: NDArray[np.integer], seeds: Sequence[int]) -> float:
        """uint8 [N, H, W, C] made from these seeds [N] and labels [N] -> distance to the real images."""
        return frechet_distance(Moments.of(features(self.teacher, pixels, labels, seeds, self.sigma)), self.reference)


@torch.inference_mode()
def features(
    teacher: Denoiser, pixels: Pixels, labels: NDArray[np.integer], seeds: Sequence[int], sigma: float
) -> NDArray[np.float32]:
    """Spatial means [N, width] of the teacher's innermost feature map for images [N, H, W, C] noised to sigma.

    Each image is seen with its label (-1: none) and the noise of its seed.
    """
    assert isinstance(teacher.network, UNet)
    device = next(teacher.network.parameters()).device
    found: list[Tensor] = []
    for start in range(0, len(pixels), CHUNK):
        part = slice(start, start + CHUNK)
        images = torch.from_numpy(from_pixels(pixels[part])).to(device)
        x = images + sigma * noise_for(seeds[part], tuple(images.shape[1:]), device)(NOISE_STEP)
        scalings = edm_scalings(torch.full((len(x),), sigma, device=device), teacher.sigma_data)
        classes = onehot(torch.from_numpy(labels[part].astype(np.int64)).to(device), teacher.classes, x)
        inner = teacher.network.features(scalings.c_in[:, None, None, None] * x, scalings.c_noise, classes)[-1]
        found.append(inner.mean(dim=(2, 3)))
    return torch.cat(found).cpu().numpy()


def evenly(count: int, chosen: int) -> NDArray[np.int64]:
    """`chosen` indices spread evenly over `count` images, which may be sorted by class; repeated if too few."""
    return np.arange(chosen) * count // chosen
