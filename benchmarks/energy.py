"""Joules used by the machine, if it counts them: RAPL counters of CPU packages, and the GPUs' own counts (NVML).

A counter is of a whole package or a whole GPU, with everything else that runs there.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
MICRO, MILLI = 1e-6, 1e-3


@dataclass(frozen=True)
class Meter:
    """A counter of joules."""

    name: str  # "cpu 0" or "gpu 0"
    read: Callable[[], float]  # joules since some moment
    wraps_j: float | None = None  # where the counter begins again at 0

    def since(self, before: float) -> float:
        """Joules since the counter said `before`, if it has wrapped once at most."""
        used = self.read() - before
        return used + self.wraps_j if used < 0 and self.wraps_j else used


def meters(powercap: Path = POWERCAP) -> list[Meter]:
    """Every counter that this process may read; none on most virtual machines."""
    return [*cpu_meters(powercap), *gpu_meters(_nvml())]


def cpu_meters(powercap: Path) -> list[Meter]:
    """Of the CPU packages; `intel-rapl:0:0` and the like are parts of a package, which would count twice."""
    found = []
    for folder in sorted(powercap.glob("*-rapl:[0-9]")):
        counter = folder / "energy_uj"
        with suppress(OSError, ValueError):
            _microjoules(counter)  # readable by root alone on many systems
            wraps_j = _microjoules(folder / "max_energy_range_uj") * MICRO
            found.append(Meter(f"cpu {folder.name[-1]}", lambda at=counter: _microjoules(at) * MICRO, wraps_j))
    return found


def gpu_meters(library: Any) -> list[Meter]:
    """Of the GPUs. library: libnvidia-ml, or None where there is none."""
    if library is None or library.nvmlInit_v2():
        return []
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    found = []
    for index in range(count.value):
        handle, used = ctypes.c_void_p(), ctypes.c_ulonglong()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
            continue
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)):
            continue  # GPUs before Volta do not count

        def read(handle: ctypes.c_void_p = handle) -> float:
            used = ctypes.c_ulonglong()
            if status := library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)):
                raise OSError(f"the GPU no longer tells its energy (NVML status {status})")
            return used.value * MILLI

        found.append(Meter(f"gpu {index}", read))
    return found


def readings(found: Sequence[Meter]) -> list[float]:
    return [meter.read() for meter in found]


def used_j(found: Sequence[Meter], before: Sequence[float]) -> float | None:
    """Joules of all counters together since those readings; None without counters."""
    return sum(meter.since(then) for meter, then in zip(found, before, strict=True)) if found else None


def _microjoules(file: Path) -> int:
    return int(file.read_text())


def _nvml() -> Any:
    try:
        return ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
