"""DPM-Solver++ multistep, 2M and 3M (Lu et al. 2022). Numpy or torch; the interface is that of `fewstep.samplers`."""

from collections.abc import Sequence

from fewstep.multistep import Method, bh2_moments, walk
from fewstep.samplers import BoundDenoiser, Noise, Sample


def sample_dpmpp(
    denoiser: BoundDenoiser,
    noise: Noise,
    sigmas: Sequence[float],
    order: int = 2,
    corrected: bool = False,
    lower_order_final: bool = True,
) -> Sample:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) or (3M), data prediction. N levels and a final 0 cost N calls.

    sigmas: best from `logsnr_sigmas`. order: 2 or 3. corrected: 3M with the factor 2 that its published form lacks;
    only then is it of third order (docs/adr/0008). lower_order_final: the step before the last has order 2 at most;
    diffusers does that below 15 levels only. The last step, to 0, returns the denoised image either way.
    """
    if order not in (2, 3):
        raise ValueError(f"DPM-Solver++ multistep has order 2 or 3, not {order}")
    if corrected and order != 3:
        raise ValueError("only order 3 has a corrected form: pass order=3, or leave `corrected` out")
    moments = _published_moments if order == 3 and not corrected else bh2_moments
    return walk(Method(moments, order, lower_order_final=lower_order_final), denoiser, noise, sigmas)


def _published_moments(z: float, points: int) -> tuple[float, ...]:
    """3M as published multiplies a second divided difference, which is half of D'', by the coefficient of D''."""
    moments = bh2_moments(z, points)
    return (*moments[:2], moments[2] / 2) if points == 3 else moments
