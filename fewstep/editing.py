"""Edits: another version of an image, an image filled in, and a part of one made again. Numpy or torch.

All are `sample_dpdm` with little changed, so arguments and result are those of `fewstep.samplers`: noise(step)
unit normals [B, C, H, W], sigmas a student's levels, positive and descending, one network call each.
"""

import math
from collections.abc import Sequence

from array_api_compat import array_namespace

from fewstep.precond import Array
from fewstep.samplers import BoundDenoiser, Noise, Sample, sample_dpdm


def calls_for(strength: float, steps: int) -> int:
    """How many of a list's `steps` calls an edit makes, the last ones: ceil(strength * steps), at least one.

    strength in (0, 1]; 1 makes them all. Diffusers rounds down where this rounds up. Raises ValueError outside.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"the strength of an edit is above 0 and at most 1, not {strength}")
    return max(1, math.ceil(strength * steps - 1e-9))  # 0.28 * 25 is 7.000000000000001


def vary(denoiser: BoundDenoiser, image: Array, noise: Noise, sigmas: Sequence[float]) -> Sample:
    """Noise an image [B, C, H, W] in [-1, 1] to sigmas[0] and sample on from there (SDEdit, Meng et al. 2022).

    sigmas: the lower end of one of the student's lists, such as levels[4][1:]; the higher its first level, the less
    of the image remains. An NCVSD student's result at one level is a draw from p(x0 | x_t) of that noisy image.
    Raises ValueError when the image has another shape than the noise.
    """

    def start(step: int) -> Array:
        drawn = noise(step)
        if step > 0:
            return drawn
        _check_image(image, drawn)
        return drawn + image / sigmas[0]  # the sampler multiplies by sigmas[0]

    return sample_dpdm(denoiser, start, sigmas)


def inpaint(denoiser: BoundDenoiser, image: Array, mask: Array, noise: Noise, sigmas: Sequence[float]) -> Sample:
    """Draw the pixels that are not known around those that are (replacement; Song et al. 2021, appendix I.2).

    image [B, C, H, W] in [-1, 1]; mask [B, C, H, W] bool, or broadcastable to that, True where a pixel is known: it
    comes out as it went in. What `image` holds elsewhere does not matter. sigmas starts at the top level. The known
    pixels replace the denoised ones after every call. So the other pixels depend on the known ones from the second call
    on, and with one level the known pixels are only pasted; with few calls the others follow the known ones less than
    they should. Raises ValueError on a mask that is not bool or does not fit, or an image that does not.
    """
    return sample_dpdm(_replacing(denoiser, image, mask), noise, sigmas)


def repaint(denoiser: BoundDenoiser, image: Array, mask: Array, noise: Noise, sigmas: Sequence[float]) -> Sample:
    """`vary` for the pixels that are not known, while those that are known stay as in `inpaint`; same arguments.

    sigmas: the whole list of a step count, or its lower end. Even from the top level, a trace of the old pixels remains
    in those that are made again, unless sigmas[0] is far above the image; with `inpaint` none does.
    """
    return vary(_replacing(denoiser, image, mask), image, noise, sigmas)


def _replacing(denoiser: BoundDenoiser, image: Array, mask: Array) -> BoundDenoiser:
    """The denoiser whose known pixels are the image's."""
    xp = array_namespace(image, mask)
    if not xp.isdtype(mask.dtype, "bool"):
        raise ValueError(f"the mask must be bool, True where a pixel is known, not {mask.dtype}")
    if not _broadcasts(tuple(mask.shape), tuple(image.shape)):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit an image of shape {tuple(image.shape)}")

    def replaced(x: Array, sigma: Array) -> Array:
        _check_image(image, x)
        return xp.where(mask, image, denoiser(x, sigma))

    return replaced


def _check_image(image: Array, like: Array) -> None:
    if image.shape != like.shape:
        raise ValueError(f"the image has shape {tuple(image.shape)}; the student's images have {tuple(like.shape)}")


def _broadcasts(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    tail = onto[len(onto) - len(shape) :]
    return len(shape) <= len(onto) and all(size in (1, full) for size, full in zip(shape, tail, strict=True))
