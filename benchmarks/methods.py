"""Every way to get from noise to an image that the benchmarks compare, in one table.

A method is a sampler and the schedule it is best with. It makes exactly the network calls it is asked for, or none:
where a method cannot make a count, its schedule is None and a table has an empty cell.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.card import CheckpointError, Levels
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
    # What else of the sampler decides the images of so many calls; only a searched method has any.
    settings: Callable[[int], Mapping[str, Any]] = lambda calls: {}


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


@dataclass(frozen=True)
class Family:
    """A solver, and what a search may choose of it beside the three numbers of its spacing."""

    name: str
    label: str
    sampler: Callable[..., Sample]  # (denoiser, noise, sigmas, **{option: value})
    published: Method  # where the search starts, and what it has to beat
    option: str | None = None  # the keyword of the sampler: "order" or "tau"
    choices: tuple[float, ...] = ()  # its values; of tau, which is continuous, where the search starts

    def levels(self, calls: int) -> int | None:
        """How many levels cost so many calls; None where no number does."""
        if self.name != "heun":
            return calls
        return (calls + 1) // 2 if calls % 2 else None


def _published(name: str) -> Method:
    return next(method for method in SOLVERS if method.name == name)


FAMILIES = (
    Family("euler", "Euler = DDIM", sample_euler, _published("euler")),
    Family("heun", "EDM Heun", sample_heun, _published("heun")),
    Family("dpmpp", "DPM-Solver++", sample_dpmpp, _published("dpmpp-2m"), "order", (2, 3)),
    Family("unipc", "UniPC", sample_unipc, _published("unipc-3"), "order", (3, 2, 1)),
    Family("sa", "SA-Solver", sample_sa, _published("sa"), "tau", (1.0, 0.5, 0.0)),
    Family("ipndm", "iPNDM", sample_ipndm, _published("ipndm-4"), "order", (4, 3, 2, 1)),
)
TUNED = "-tuned"  # behind a family's name: its method with searched schedules


def tuned_methods(path: Path, teacher: str) -> list[Method]:
    """The solvers at the schedules that benchmarks/solver_search.py found and wrote to `path`, one method a solver.

    teacher: the hash of the weights that are to be sampled. Raises CheckpointError for a file of another kind, or of
    another teacher.
    """
    try:
        found = json.loads(path.read_text())
        if found["benchmark"] != "solver_search":
            raise KeyError("solver_search")
        rows = {
            family.name: {row["calls"]: row for row in found["rows"] if row["solver"] == family.name}
            for family in FAMILIES
        }
        searched = found["checkpoints"]["teacher"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds no searched schedules ({error!r}); "
            "make them with: python benchmarks/solver_search.py --out FILE"
        ) from error
    if searched != teacher:
        raise CheckpointError(
            f"{path} was searched for the teacher {searched[:12]}..., and {teacher[:12]}... is sampled; "
            "search again with: python benchmarks/solver_search.py --teacher DIR --out FILE"
        )
    return [_tuned(family, rows[family.name]) for family in FAMILIES if rows[family.name]]


def best_tuned(path: Path, calls: int) -> str:
    """The family whose searched schedule of so many calls is nearest in the teacher's features, on seeds that no search
    has seen. Rows of one count are measured on equally many images; those of different counts may not be, and do not
    compare. `path`: a file that `tuned_methods` takes, with such a row.
    """
    rows = [row for row in json.loads(path.read_text())["rows"] if row["calls"] == calls]
    return min(rows, key=lambda row: sum(row["held_out_after" if row["accepted"] else "held_out_before"]))["solver"]


def family_names() -> tuple[str, ...]:
    """Names of the methods that a search may give."""
    return tuple(f"{family.name}{TUNED}" for family in FAMILIES)


def _tuned(family: Family, rows: Mapping[int, Mapping[str, Any]]) -> Method:
    """rows: by calls."""
    settings = {len(row["sigmas"]): row["settings"] for row in rows.values()}

    def sampler(denoiser: Any, noise: Any, sigmas: Sequence[float]) -> Sample:
        return family.sampler(denoiser, noise, sigmas, **settings[len(sigmas)])

    return Method(
        f"{family.name}{TUNED}", f"{family.label}, tuned", sampler,
        lambda calls: rows[calls]["sigmas"] if calls in rows else None, "searched",
        lambda calls: rows[calls]["settings"],
    )  # fmt: skip
