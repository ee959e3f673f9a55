"""What latency.py runs: an engine under a sampler at its noise levels, and where the time of a run goes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.energy import Meter, readings, used_j
from benchmarks.harness import device_memory_mb, forget_peak, peak_mb
from benchmarks.methods import SOLVERS, Method, dpdm_method
from export.engine import Engine
from fewstep.consistency import sample_consistency
from fewstep.latent import with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import to_pixels
from fewstep.precond import Denoiser, Network
from fewstep.samplers import Sample

OURS = "dpdm"  # the method of the student that is measured; another one's is the name of the rival
CALLS = (4, 8, 18, 35)  # of the teacher under a solver
HEUN_CALLS = (3, 5, 9, 19, 35)  # 2N - 1 for N levels
MOST_CALLS = 100  # of a searched schedule


@dataclass
class Clock:
    """A network F that adds up the seconds spent in it, and the CPU seconds of all threads meanwhile."""

    network: Network
    seconds: float = 0.0
    cpu_s: float = 0.0

    def __call__(self, x: NDArray, c_noise: NDArray, onehot: NDArray) -> NDArray:
        began, cpu_s = time.perf_counter(), time.process_time()
        output = self.network(x, c_noise, onehot)
        self.cpu_s += time.process_time() - cpu_s
        self.seconds += time.perf_counter() - began
        return output


class Run(NamedTuple):
    """One timed run of a variant."""

    wall_s: float
    network_s: float  # within the network; the rest is noise, the sampler's arithmetic and rounding to pixels
    cpu_s: float  # of all threads of this process
    network_cpu_s: float  # likewise, within the network
    joules: float | None  # of the whole machine; None where it does not tell
    peak_mb: float | None  # resident memory of this process, everything that it has loaded included
    device_mb: float | None  # taken of the GPU after the run; None on a CPU


@dataclass(frozen=True)
class Model:
    """An engine that is ready, its network under a clock."""

    method: str  # OURS, "teacher", or the name of a rival
    engine: Engine
    consistency: bool = False  # it was trained by consistency distillation
    clock: Clock = field(init=False)
    denoiser: Denoiser = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clock", Clock(self.engine.network))
        object.__setattr__(self, "denoiser", replace(self.engine.denoiser, network=self.clock))


@dataclass(frozen=True)
class Variant:
    """One way to make images: a model, a sampler and its sigmas."""

    method: str  # OURS, the name of a solver or of a rival
    model: Model
    sampler: Callable[..., Sample]
    sigmas: tuple[float, ...]
    calls: int  # network calls per image

    @property
    def name(self) -> str:
        return f"{self.method}-{self.calls} {self.backend}"

    @property
    def backend(self) -> str:
        return self.model.engine.backend

    def pixels(self, first_seed: int, count: int) -> tuple[NDArray[np.uint8], int]:
        """Images of seeds first_seed, first_seed + 1, ..., classes in turn: uint8 [count, H, W, C], and the NFE."""
        manifest = self.model.engine.manifest
        seeds = range(first_seed, first_seed + count)
        labels = np.array(seeds) % manifest.classes if manifest.classes else None
        denoiser = with_latent(self.model.denoiser, latent_for(seeds, manifest.latent_shape), labels)
        sample = self.sampler(denoiser, noise_for(seeds, manifest.image_shape), self.sigmas)
        return to_pixels(sample.images), sample.nfe

    def many(self, count: int, batch: int, tick: Callable[[int], object] = lambda calls: None) -> NDArray[np.uint8]:
        """Images of seeds 0 .. count - 1. tick: network calls of images made."""
        parts = []
        for first in range(0, count, batch):
            pixels, nfe = self.pixels(first, min(batch, count - first))
            parts.append(pixels)
            tick(nfe * len(pixels))
        return np.concatenate(parts)

    def run(self, batch: int, counters: Sequence[Meter] = ()) -> Run:
        """Make a batch of images, and say what that took."""
        clock = self.model.clock
        marked = forget_peak()
        joules, network_s, network_cpu_s = readings(counters), clock.seconds, clock.cpu_s
        cpu_s, began = time.process_time(), time.perf_counter()
        self.pixels(0, batch)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        return Run(
            wall_s, clock.seconds - network_s, cpu_s, clock.cpu_s - network_cpu_s, used_j(counters, joules),
            peak_mb() if marked else None, device_memory_mb() if self.model.engine.device == "cuda" else None,
        )  # fmt: skip


def variants(
    students: Sequence[Model], teachers: Sequence[Model], tuned: Sequence[Method] = (), smoke: bool = False
) -> list[Variant]:
    """Every student at each k that it serves, by the server's sampler, and every teacher under its solvers.

    tuned: solvers at searched schedules, which come last. smoke: two of each student, two of the teacher.
    """
    found = []
    for model in students:
        method = dpdm_method(model.engine.manifest.levels)
        if model.consistency:
            method = replace(method, sampler=sample_consistency)
        counts = sorted(k for k in model.engine.manifest.levels if k in (1, 4) or not smoke)
        found += [of(model, method, k, model.method) for k in counts]
    for teacher in teachers:
        for method in SOLVERS:
            calls = HEUN_CALLS if method.name == "heun" else CALLS
            if smoke:
                calls = {"heun": (3,), "euler": (2,)}.get(method.name, ())
            found += [of(teacher, method, count, method.name) for count in calls]
        for method in tuned:
            possible = (count for count in range(1, MOST_CALLS + 1) if method.sigmas(count) is not None)
            found += [of(teacher, method, count, method.name) for count in possible]
    return found


def of(model: Model, method: Method, calls: int, name: str) -> Variant:
    sigmas = method.sigmas(calls)
    assert sigmas is not None, f"{method.name} cannot make {calls} calls"
    return Variant(name, model, method.sampler, tuple(sigmas), calls)


def label_of(method: str) -> str:
    """What people call a method; a rival's name is its label."""
    return LABELS.get(method, method)


LABELS: Mapping[str, str] = {method.name: method.label for method in SOLVERS} | {OURS: "DPDM student"}
