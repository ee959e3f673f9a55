"""A student's images from fixed seeds as a function of its levels, without repeating equal calls."""

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.card import Card
from fewstep.latent import latent_shape, with_latent
from fewstep.metrics.extractors.teacher import CHUNK
from fewstep.noise_torch import latent_for, noise_for
from fewstep.pixels import Pixels, to_pixels
from fewstep.precond import Denoiser
from fewstep.samplers import sample_dpdm
from trainer.levels.search import Levels, Objective


class Space(Protocol):
    """A feature space in which images are compared with real ones, such as `TeacherSpace` of fewstep.metrics."""

    def distance(self, pixels: Pixels, labels: NDArray[np.integer], seeds: Sequence[int]) -> float:
        """uint8 [N, H, W, C] made from these seeds [N] and labels [N] -> distance to the real images."""
        ...


class Trajectories:
    """A student's images from fixed seeds and labels, for any levels.

    Results of calls are cached by the levels up to them, so that lists with equal first levels share calls.
    """

    def __init__(self, student: Denoiser, card: Card, seeds: Sequence[int], labels: NDArray[np.integer], device: str):
        self.student = student
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(device) if student.classes else None
        self.noise = functools.cache(noise_for(seeds, card.image_shape, device))
        self.latent = latent_for(seeds, latent_shape(card), device)
        self.kept: dict[Levels, Tensor] = {}

    @torch.inference_mode()
    def pixels(self, levels: Levels) -> Pixels:
        """uint8 [N, H, W, C]."""
        calls = 0

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if levels[:calls] not in self.kept:
                call = with_latent(self.student, lambda _: self.latent(calls - 1), self.labels)
                self.kept[levels[:calls]] = call(x, sigma)
            return self.kept[levels[:calls]]

        images = sample_dpdm(denoiser, self.noise, levels).images
        prefixes = {levels[: i + 1] for i in range(len(levels))}
        self.kept = {path: denoised for path, denoised in self.kept.items() if path in prefixes}
        return to_pixels(images.cpu().numpy())


def objective(
    student: Denoiser, card: Card, space: Space, labels: NDArray[np.integer], seeds: range, device: str
) -> Objective:
    """The distance of the student's images from these seeds, as a function of the levels."""
    chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    parts = [
        Trajectories(student, card, chunk, labels[chunk.start - seeds.start : chunk.stop - seeds.start], device)
        for chunk in chunks
    ]
    return lambda levels: space.distance(np.concatenate([part.pixels(levels) for part in parts]), labels, seeds)
