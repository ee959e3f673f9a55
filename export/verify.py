"""Parity: how far the images of an engine lie from those of eager PyTorch, on the same seeds and noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.card import Card, CheckpointError
from fewstep.conditions import Conditions
from fewstep.latent import latent_shape, with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import to_pixels
from fewstep.precond import Denoiser
from fewstep.samplers import Noise, Sample, sample_dpdm, sample_heun
from fewstep.schedule import solver_sigmas

Images = NDArray[np.float32]  # [B, C, H, W], nominally in [-1, 1]
Sampler = Callable[[Callable, Noise, Sequence[float]], Sample]

# In pixel units, 1/255 of the range from black to white, by the precision an engine computes in. A step feeds the
# next, so that a rounding error can move an edge: the mean tells whether it is the same image, the maximum whether any
# pixel is another one. On the shipped student and teacher the worst step count gave, mean and maximum: float32 2e-4
# and 0.015; float16 0.04 and 14; bfloat16, whose factors have 8 bits, 0.8 and 107. A wrong weight tensor gives tens.
BOUNDS_OF = {
    "float32": {"mean": 1.0, "max": 3.0},
    "float16": {"mean": 1.0, "max": 16.0},
    "bfloat16": {"mean": 2.0, "max": 128.0},
}
BOUNDS = BOUNDS_OF["float32"]

SEEDS = tuple(range(16))
BATCHES = (1, 7, 8)  # how the engine gets these images: the proof covers batch sizes other than eager's 16
SOLVER = "solver"
SOLVER_LEVELS = 5


@dataclass(frozen=True)
class Gap:
    """Distance between two sets of images. Pixel units: 1.0 is 1/255 of the range from black to white."""

    mean: float  # before rounding and clipping
    max: float
    differing: float  # share of uint8 pixels that are not the same byte
    images: int
    seeds: tuple[int, ...]
    nfe: int  # network calls per image

    def within(self, bounds: Mapping[str, float]) -> bool:
        """False also for a gap that is not a number."""
        return self.mean <= bounds["mean"] and self.max <= bounds["max"]


def measure(eager: Denoiser, engine: Denoiser, card: Card) -> dict[str, Gap]:
    """Gap per step count of a student ("1", "2", ...), or of a 5-level Heun solver for a teacher ("solver").

    eager works on torch tensors, engine on numpy arrays. Both get noise and latent of SEEDS, and classes in turn.
    """
    if card.role == "student" and not card.levels:
        raise CheckpointError("the card is a student's but lists no levels: there is nothing to serve")
    if card.role == "student":
        return {str(k): _gap(eager, engine, card, sample_dpdm, card.levels[k]) for k in sorted(card.levels)}
    return {SOLVER: _gap(eager, engine, card, sample_heun, solver_sigmas(SOLVER_LEVELS))}


def refuse_beyond(gaps: Mapping[str, Gap], bounds: Mapping[str, float]) -> None:
    """Raise CheckpointError that names the first entry out of bounds."""
    for steps, gap in gaps.items():
        if not gap.within(bounds):
            raise CheckpointError(
                f"the engine's images differ from eager PyTorch's by {gap.mean:.3g}/255 on average and "
                f"{gap.max:.3g}/255 at most ({steps if steps == SOLVER else 'steps ' + steps}); allowed are "
                f"{bounds['mean']:g}/255 and {bounds['max']:g}/255. Nothing was written"
            )


def proof_labels(classes: int, images: int) -> NDArray[np.int64] | None:
    """One label per image: every class in turn, or `images` of them evenly spread. None without classes."""
    if not classes:
        return None
    index = np.arange(images)
    return index % classes if classes <= images else index * classes // images


def proof_values(conditions: Conditions, images: int) -> dict[str, NDArray[np.float32]]:
    """Values of each condition [images, *shape], evenly distributed over its range, the same in every run."""
    random = np.random.default_rng(0)
    return {
        each.name: random.uniform(each.low, each.high, (images, *each.shape)).astype(np.float32) for each in conditions
    }


def compare(eager: Images, engine: Images, nfe: int) -> Gap:
    """The gap between two float arrays [B, C, H, W] of the same seeds, SEEDS."""
    distance = np.abs(eager.astype(np.float64) - engine.astype(np.float64)) * 127.5
    with np.errstate(invalid="ignore"):  # a NaN becomes some byte; mean and max still tell
        differing = np.mean(to_pixels(eager) != to_pixels(engine))
    return Gap(float(distance.mean()), float(distance.max()), float(differing), len(eager), SEEDS, nfe)


def _gap(eager: Denoiser, engine: Denoiser, card: Card, sampler: Sampler, sigmas: Sequence[float]) -> Gap:
    labels, values = proof_labels(eager.classes, len(SEEDS)), proof_values(card.conditions, len(SEEDS))
    told = eager.given(**{name: torch.from_numpy(value) for name, value in values.items()})
    reference = _sample_eager(told, card, sampler, sigmas, labels)
    rows, start = [], 0
    for count in BATCHES:
        part = slice(start, start + count)
        latent = latent_for(SEEDS[part], latent_shape(card))
        given = engine.given(**{name: value[part] for name, value in values.items()})
        denoiser = with_latent(given, latent, None if labels is None else labels[part])
        rows.append(sampler(denoiser, noise_for(SEEDS[part], card.image_shape), sigmas).images)
        start += count
    return compare(reference.images, np.concatenate(rows), reference.nfe)


@torch.no_grad()
def _sample_eager(
    eager: Denoiser, card: Card, sampler: Sampler, sigmas: Sequence[float], labels: NDArray[np.int64] | None
) -> Sample:
    """Numpy's noise on purpose: what is compared is the network, not two implementations of the logarithm."""
    noise, latent = noise_for(SEEDS, card.image_shape), latent_for(SEEDS, latent_shape(card))
    bound = None if labels is None else torch.from_numpy(labels)
    denoiser = with_latent(eager, lambda step: torch.from_numpy(latent(step)), bound)
    sample = sampler(denoiser, lambda step: torch.from_numpy(noise(step)), sigmas)
    return Sample(sample.images.numpy(), sample.nfe)
