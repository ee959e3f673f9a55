"""One step of the student's sampler for a whole slot table at once, in numpy.

Every row may be at another level, step and seed, so sigmas, seeds and step indices are arrays [B]. Run to the end,
the rows equal `sample_dpdm` with the same seeds and levels; a test holds the two together.
"""

import numpy as np
from numpy.typing import NDArray

from fewstep.noise import STREAM_LATENT, normals
from fewstep.precond import edm_scalings

Rows = NDArray[np.float32]  # [B, C, H, W]
PerRow = NDArray[np.float32]  # [B]


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
    """What a posterior student decides by at each row's next network call, whose index from 0 is steps [B]."""
    return normals(seeds, steps, shape, STREAM_LATENT)


def network_input(x: Rows, sigma: PerRow, sigma_data: float, latent: Rows | None = None) -> tuple[Rows, PerRow]:
    """What F is called with: c_in * x [B, C, H, W], behind it the latent [B, extra, H, W] if any, and c_noise [B]."""
    scalings = edm_scalings(sigma, sigma_data)
    extra = 0 if latent is None else latent.shape[1]
    scaled = np.empty((len(x), x.shape[1] + extra, *x.shape[2:]), dtype=np.float32)
    np.multiply(x, scalings.c_in[:, None, None, None], out=scaled[:, : x.shape[1]])
    if latent is not None:
        scaled[:, x.shape[1] :] = latent
    return scaled, scalings.c_noise


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
    noise: Rows | None = None,  # the unit normals of the rows that have another step, if they are made already
    known: tuple[NDArray[np.bool_], Rows] | None = None,  # mask, broadcastable to x, True where a pixel is known; image
) -> Rows:
    """Denoise, then re-noise to sigma_next: the next x, or the finished image where sigma_next is 0."""
    scalings = edm_scalings(sigma, sigma_data)
    x = scalings.c_skip[:, None, None, None] * x
    x += scalings.c_out[:, None, None, None] * output
    if clamp is not None:
        np.clip(x, -1.0, 1.0, out=x, where=clamp[:, None, None, None])
    if known is not None:  # as `fewstep.editing.inpaint` does
        mask, image = known
        np.copyto(x, image, where=mask)
    more = np.flatnonzero(sigma_next > 0)  # finished rows need no noise
    if len(more):
        if noise is None:
            noise = normals(seeds[more], steps[more] + 1, x.shape[1:])
        x[more] += noise * sigma_next[more, None, None, None]
    return x
