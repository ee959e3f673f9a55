"""UniPC, a multistep predictor-corrector (Zhao et al. 2023). Numpy or torch; the interface is that of `samplers`."""

from collections.abc import Sequence
from typing import Literal

from fewstep.multistep import Method, bh1_moments, bh2_moments, walk
from fewstep.samplers import BoundDenoiser, Noise, Sample


def sample_unipc(
    denoiser: BoundDenoiser,
    noise: Noise,
    sigmas: Sequence[float],
    order: int = 3,
    variant: Literal["bh1", "bh2"] = "bh2",
) -> Sample:
    """UniP-p with UniC-p (Zhao et al. 2023), data prediction, multistep. N levels and a final 0 cost N calls.

    sigmas: best from `logsnr_sigmas`. order: p, 1 to 3; thanks to the corrector the error falls with the power p + 1.
    variant: B(h) = h or exp(h) - 1. The paper gets its coefficients from a linear system whose solution is the
    polynomial through the points, and B(h) drops out; it stays where there are two points, and the paper puts 1/2 for
    the solution. The last steps have orders 3, 2 and 1 (lower_order_final). The last level is not corrected: that
    would change x, and what is returned is the denoised image.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"UniPC has order 1, 2 or 3, not {order}")
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"UniPC's variant is 'bh1' or 'bh2', not {variant!r}")
    moments = bh1_moments if variant == "bh1" else bh2_moments
    return walk(Method(moments, predictor=order, corrector=order + 1), denoiser, noise, sigmas)
