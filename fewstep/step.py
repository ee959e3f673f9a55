"""One step of the student's sampler for a whole slot table at once, in numpy.

Every row may be at another level, step and seed, so levels, seeds and step indices are arrays [B]. Run to the end, the
rows equal `sample_dpdm` with the same seeds and levels; a test holds the two together.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from fewstep.noise import STREAM_LATENT, normals
from fewstep.precond import Array, edm_scalings

Rows = NDArray[np.float32]  # [B, C, H, W]
PerRow = NDArray[np.float32]  # [B]


class Levels(NamedTuple):
    """What a network call and the step behind it take of a row's level: `precond.Scalings`, and sigmas. [B] each."""

    c_skip: PerRow
    c_out: PerRow
    c_in: PerRow
    c_noise: PerRow
    sigma: PerRow
    sigma_next: PerRow  # 0 behind the last level


@lru_cache(maxsize=1024)  # a student has eight lists, and an edit takes the lower end of one
def levels_of(sigmas: tuple[float, ...], sigma_data: float) -> NDArray[np.float32]:
    """[len(sigmas), 6], read-only: the `Levels` of every call of an image with these sigmas, positive, descending."""
    sigma = np.array(sigmas, np.float32)
    table = np.stack([*edm_scalings(sigma, sigma_data), sigma, np.append(sigma[1:], np.float32(0))], axis=1)
    table.setflags(write=False)
    return table


def begin(
    seeds: NDArray[np.uint64],
    sigma: PerRow,
    shape: tuple[int, int, int],
    *,
    noise: Rows | None = None,  # the unit normals of step 0, if they are made already
    image: Rows | None = None,  # what to start from, zero where that is nothing
) -> Rows:
    """The noisy images before the first call: sigma times the initial noise of each seed, on the image if any."""
    if noise is None:
        noise = normals(seeds, np.zeros(len(seeds), np.int64), shape)
    noisy = noise * sigma[:, None, None, None]
    return noisy if image is None else image + noisy  # as `fewstep.editing.vary` does


def latent(seeds: NDArray[np.uint64], steps: NDArray[np.int64], shape: tuple[int, int, int]) -> Rows:
    """The latents of an NCVSD student for each row's next network call, whose index from 0 is steps [B]."""
    return normals(seeds, steps, shape, STREAM_LATENT)


def network_input(x: Rows, sigma: PerRow, sigma_data: float, latent: Rows | None = None) -> tuple[Rows, PerRow]:
    """What F is called with: c_in * x [B, C, H, W], behind it the latent [B, extra, H, W] if any, and c_noise [B]."""
    scalings = edm_scalings(sigma, sigma_data)
    extra = 0 if latent is None else latent.shape[1]
    scaled = np.empty((len(x), x.shape[1] + extra, *x.shape[2:]), dtype=np.float32)
    write_network_input(x, scalings.c_in, latent, out=scaled)
    return scaled, scalings.c_noise


def write_network_input(x: Rows, c_in: PerRow, latent: Rows | None, out: Rows) -> None:
    """The images of `network_input`, into out."""
    channels = x.shape[1]
    np.multiply(x, c_in[:, None, None, None], out=out[:, :channels])
    if latent is not None:
        out[:, channels:] = latent


def advance(
    x: Rows,
    output: Rows,  # F of network_input(x, sigma)
    sigma: PerRow,
    sigma_next: PerRow,  # 0 where this was the last step
    seeds: NDArray[np.uint64],
    steps: NDArray[np.int64],  # index of the step just done, from 0
    sigma_data: float,
    *,
    clamp: NDArray[np.bool_] | None = None,  # [B], True: the denoised image is clipped to [-1, 1]
    known: tuple[NDArray[np.bool_], Rows] | None = None,  # mask, broadcastable to x, True where a pixel is known; image
) -> Rows:
    """Denoise, then re-noise to sigma_next: the next x, or the finished image where sigma_next is 0."""
    scalings = edm_scalings(sigma, sigma_data)
    x = x.copy()
    denoise(x, output, scalings.c_skip, scalings.c_out)
    if clamp is not None:
        np.clip(x, -1.0, 1.0, out=x, where=clamp[:, None, None, None])
    if known is not None:  # as `fewstep.editing.inpaint` does
        mask, image = known
        np.copyto(x, image, where=mask)
    more = np.flatnonzero(sigma_next > 0)  # finished rows need no noise
    noisy = x[more]
    renoise(noisy, normals(seeds[more], steps[more] + 1, x.shape[1:]), sigma_next[more])
    x[more] = noisy
    return x


def denoise(x: Rows, output: Rows, c_skip: PerRow, c_out: PerRow, work: Rows | None = None) -> None:
    """x becomes the denoised image c_skip * x + c_out * output. work: memory to use, of the shape of x."""
    change = np.multiply(output, c_out[:, None, None, None], out=work)
    x *= c_skip[:, None, None, None]
    x += change


def step_log_weight(moved: Array, noise: Array, sigma: Array) -> Array:
    """log p_prior(x_next | x) - log p_posterior(x_next | x) of a step of `fewstep.ancestral.student_chain`, [B].

    moved: the posterior's denoised image of x less the prior's; noise, sigma [B]: x_next is the posterior's denoised
    image plus sigma * noise. It is -`fewstep.ancestral.log_ratio` where rows have levels of their own. In float64;
    numpy or torch.
    """
    xp = array_namespace(moved)
    away = xp.astype(moved, xp.float64) / sigma[:, None, None, None]
    return -xp.sum(xp.reshape((noise + away / 2) * away, (moved.shape[0], -1)), axis=1)


def renoise(x: Rows, noise: Rows, sigma: PerRow) -> None:
    """x becomes x + sigma * noise, what the next call begins at. Overwrites the noise."""
    noise *= sigma[:, None, None, None]
    x += noise
