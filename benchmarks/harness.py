"""What every benchmark shares: timing, percentiles, memory, the machine, tables, JSON."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fewstep import application
from fewstep.card import CheckpointError, write_atomically
from fewstep.outputs import check_file, check_folder

ROOT = application.ROOT
WORK = Path() if application.INSTALLED else ROOT  # results, data and caches are below, unless an option says otherwise
FORMAT = 1


def need(*modules: str) -> None:
    """Raise ModuleNotFoundError now for a module that is missing, and not when it is used after the measurement.

    Benchmarks whose --help is quick import these modules where they use them.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def result_file(text: str) -> Path:
    """argparse's type of a JSON file to write: refused before the work, not after it, when it cannot be written."""
    return _checked(Path(text), lambda path: check_file(path, ".json"))


def picture_file(text: str) -> Path:
    """Likewise of a PNG file."""
    return _checked(Path(text), lambda path: check_file(path, ".png"))


def new_folder(text: str) -> Path:
    """Likewise of a folder that holds no model."""
    return _checked(Path(text), check_folder)


def _checked(path: Path, check: Callable[[Path], None]) -> Path:
    try:
        check(path)
    except CheckpointError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def time_interleaved(calls: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every call, `rounds` times, one of each per round in a fresh order.

    Machines drift, and interleaving makes the drift the same for everyone: read the figures as ratios.
    """
    order = np.random.default_rng(0)
    names = list(calls)
    for name in names:
        for _ in range(warmup):
            calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for index in order.permutation(len(names)):
            start = time.perf_counter()
            calls[names[index]]()
            seconds[names[index]].append(time.perf_counter() - start)
    return seconds


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    return float(np.percentile(seconds, percent)) * 1000


def peak_memory_mb(call: Callable[[], Any]) -> float | None:
    """Peak resident memory of this process during the call, or None where the kernel cannot reset the mark."""
    if not forget_peak():
        return None
    call()
    return peak_mb()


def forget_peak() -> bool:
    """Sets the mark of this process's peak memory to what it has now; False where the kernel cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_mb() -> float:
    """Peak resident memory of this process since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def device_memory_mb() -> float | None:
    """What all processes have taken of the GPU; PyTorch's and ONNX Runtime's pools keep what they needed most."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def machine() -> dict[str, Any]:
    """Where and with what the numbers were made."""
    packages = ("numpy", "onnxruntime", "torch")
    cpu = next((row.split(":")[1].strip() for row in _lines("/proc/cpuinfo") if row.startswith("model name")), "")
    flags = next((row.split(":")[1].split() for row in _lines("/proc/cpuinfo") if row.startswith("flags")), [])
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "cpu_features": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_average": os.getloadavg()[0],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: found for name in packages if (found := _version(name))},
    }


def commit() -> dict[str, Any]:
    """The commit measured, and whether the tree had changes; None for both where git cannot tell."""
    run = lambda *args: subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: E731
    if shutil.which("git") is None or not run("rev-parse", "HEAD"):
        return {"commit": None, "dirty": None}
    return {"commit": run("rev-parse", "HEAD"), "dirty": bool(run("status", "--porcelain", "-uno"))}


def write_result(path: Path, name: str, settings: dict[str, Any], rows: list[dict[str, Any]], **more: Any) -> None:
    """One JSON file per run: what was asked, where it ran, what came out."""
    result = {
        "benchmark": name,
        "format": FORMAT,
        "settings": settings,
        "machine": machine(),
        **commit(),
        **more,
        "rows": rows,
    }
    write_atomically(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A text table of some columns, {key: heading}; numbers to three significant digits."""
    cells = [list(columns.values())] + [[cell_text(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    text = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([text[0], "  ".join("-" * width for width in widths), *text[1:]])


def cell_text(value: Any) -> str:
    """A table's text for a value: numbers to three significant digits, thousands whole, None as a dash."""
    if value is None:
        return "-"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
