"""Every way to get from noise to an image that the benchmarks compare, in one table.

A method is a sampler and the schedule it is best with. It makes exactly the network calls it is asked for, or none:
where a method cannot make a count, its schedule is None and a table has an empty cell.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fewstep.card import Levels
from fewstep.dpmpp import sample_dpmpp
from fewstep.ipndm import sample_ipndm
from fewstep.sa_solver import sample_sa
from fewstep.samplers import Sample, sample_dpdm, sample_euler, sample_heun
from fewstep.schedule import logsnr_sigmas, solver_sigmas
from fewstep.unipc import sample_unipc

NFE = (1, 2, 3, 4, 5, 6, 8, 10, 18, 35)

Schedule = Callable[[int], Sequence[float] | None]  # network calls -> sigmas, or None where that count is impossible


@dataclass(frozen=True)
class Method:
    name: str  # "heun"
    label: str  # for people
    sampler: Callable[..., Sample]  # (denoiser, noise, sigmas)
    sigmas: Schedule
    schedule: str  # the schedule's name, for the record


def _heun_sigmas(calls: int) -> Sequence[float] | None:
    """N levels cost 2N - 1 calls."""
    return solver_sigmas((calls + 1) // 2) if calls % 2 else None


KARRAS, LOGSNR = "Karras, rho 7", "uniform in log SNR"
# The solvers a teacher is sampled with.
SOLVERS = (
    Method("euler", "Euler = DDIM", sample_euler, solver_sigmas, KARRAS),
    Method("heun", "EDM Heun", sample_heun, _heun_sigmas, KARRAS),
    Method("dpmpp-2m", "DPM-Solver++ 2M", functools.partial(sample_dpmpp, order=2), logsnr_sigmas, LOGSNR),
    Method("dpmpp-3m", "DPM-Solver++ 3M", functools.partial(sample_dpmpp, order=3), logsnr_sigmas, LOGSNR),
    Method("unipc-3", "UniPC-3", functools.partial(sample_unipc, order=3), logsnr_sigmas, LOGSNR),
    Method("sa", "SA-Solver", sample_sa, logsnr_sigmas, LOGSNR),
    Method("ipndm-4", "iPNDM-4", functools.partial(sample_ipndm, order=4), solver_sigmas, KARRAS),
)


def dpdm_method(levels: Levels) -> Method:
    """DPDM's sampler at a student's own levels, one list per step count; other counts are impossible."""
    return Method("dpdm", "DPDM", sample_dpdm, levels.get, "the student's levels")
