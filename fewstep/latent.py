"""The latent of an NCVSD student: unit noise that is an input beside the image, new in every call. Numpy or torch.

A denoiser returns one image for a noisy image. A student trained with objective "ncvsd" (noise-conditional variational
score distillation, Peng et al. 2025) returns a draw from p(x0 | x_t): its network takes z, unit normals, behind the
scaled noisy image, and another z gives another draw. A marginal student or a teacher takes none. Here that is a latent
of no channels, so that sampling code is the same for both kinds:

    with_latent(denoiser, latent_for(seeds, latent_shape(card)), labels)    # latent_for: fewstep.noise, noise_torch
"""

import itertools
from dataclasses import replace

from fewstep.card import Card
from fewstep.precond import Array, Denoiser, with_inputs
from fewstep.samplers import BoundDenoiser, Noise


def latent_shape(card: Card) -> tuple[int, int, int]:
    """(extra, H, W) of what the card's network takes behind the image; extra is 0 unless it is an NCVSD student."""
    _, height, width = card.image_shape
    return card.network.get("extra", 0), height, width


def with_latent(denoiser: Denoiser, latent: Noise, labels: Array | None = None) -> BoundDenoiser:
    """D(x, sigma) for any sampler: the i-th call, counted from 0, gets latent(i) [B, extra, H, W], and labels [B].

    It counts for one run of one sampler: bind again for the next.
    """
    calls = itertools.count()

    def bound(x: Array, sigma: Array) -> Array:
        z = latent(next(calls))
        drawing = replace(denoiser, network=with_inputs(denoiser.network, image=z)) if z.shape[1] else denoiser
        return drawing(x, sigma, labels)

    return bound
