"""Call times that were measured before, in a file per machine and engine."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fewstep
from export.manifest import Manifest
from fewstep import cores
from fewstep.card import write_atomically
from server.machine.choice import Layout

FORMAT = 1
MAX_BYTES = 2**20
BUSY = 0.5  # load average for each core beyond which measured times are doubtful
SIZES = range(1, 4097)  # of a batch, and seconds of a call: others stand in a damaged file only
MIN_CALL_S, MAX_CALL_S = 1e-6, 1e4
PROCESSOR = Path("/proc/cpuinfo")
LIBRARIES = ("onnxruntime", "openvino", "numpy")


@dataclass(frozen=True)
class Kept:
    """What was measured of one engine on one machine."""

    calls: Mapping[Layout, Mapping[int, float]] = field(default_factory=dict)  # batch size -> seconds
    refused: Mapping[Layout, str] = field(default_factory=dict)  # layouts that did not run, and the sentence why
    load: float = 0.0  # the system's load average for each core before they were measured; the highest of all turns


def identity(manifest: Manifest) -> dict[str, Any]:
    """What the times depend on: the processor, its cores and their quota, the libraries, the network."""
    return {
        "processor": processor(), "cores": len(cores.usable()), "quota": cores.quota(),
        "fewstep": fewstep.__version__, **{name: _version(name) for name in LIBRARIES},
        "network": manifest.network_sha256,
    }  # fmt: skip


def processor(path: Path = PROCESSOR) -> str:
    """The name of the first core's processor and a hash of what it can do; "unknown" where the system says neither."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.read(16_384).split("\n\n")[0]
    except OSError:
        return "unknown"
    lines = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    fields = {name.strip(): text.strip() for name, text in lines.items()}
    flags = hashlib.sha256(fields.get("flags", fields.get("Features", "")).encode()).hexdigest()[:8]
    return f"{fields.get('model name', 'unknown')}, {flags}"


def file_of(known: Mapping[str, Any], home: Path | None) -> Path | None:
    """The file of an identity; None where there is no folder for it."""
    return home and home / (hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16] + ".json")


def read(path: Path | None, known: Mapping[str, Any]) -> tuple[Kept, str]:
    """What a file holds, and a sentence where it cannot be used; nothing and no sentence where there is none."""
    if path is None:
        return Kept(), ""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MAX_BYTES))
        if data["format"] != FORMAT or data["identity"] != known:
            raise ValueError("it is of another format or another machine")
        calls = {_layout(entry): _times(entry["calls_s"]) for entry in data["measured"]}
        refused = {_layout(entry): str(entry["why"]) for entry in data["refused"]}
        if not (type(data["load"]) is float and 0 <= data["load"] < math.inf):
            raise ValueError("its load is no number")
        return Kept(calls, refused, data["load"]), ""
    except (FileNotFoundError, NotADirectoryError):
        return Kept(), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = (error.strerror or error) if isinstance(error, OSError) else error or type(error).__name__
        return Kept(), f"the call times in {path} cannot be used ({why}) and are measured again"


def unwritable(path: Path | None) -> str:
    """A sentence where a file with this name could not be written; else nothing. Nothing is made."""
    if path is None:
        return (
            "this user has no home folder to keep call times in, as choosing a backend needs; XDG_CACHE_HOME names one"
        )
    place = next(folder for folder in path.parents if folder.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return ""
    return (
        f"no call times can be kept in {path.parent}, as choosing a backend needs; XDG_CACHE_HOME names another folder"
    )


def write(path: Path | None, known: Mapping[str, Any], kept: Kept) -> str:
    """Write the file, whole or not at all. Returns a sentence where that fails, else nothing."""
    if path is None:
        return "this user has no home folder to keep call times in, so every start measures; XDG_CACHE_HOME names one"
    measured = [{**_entry(layout), "calls_s": dict(calls)} for layout, calls in kept.calls.items()]
    refused = [{**_entry(layout), "why": why} for layout, why in kept.refused.items()]
    content = {"format": FORMAT, "identity": known, "load": kept.load, "measured": measured, "refused": refused}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        return (
            f"the call times cannot be kept in {path}: {error.strerror or error}; the next start measures again. "
            "XDG_CACHE_HOME names another folder"
        )
    return ""


def _entry(layout: Layout) -> dict[str, Any]:
    return {"backend": layout.backend, "workers": layout.workers, "threads": layout.threads}


def _layout(entry: Mapping[str, Any]) -> Layout:
    backend, workers, threads = entry["backend"], entry["workers"], entry["threads"]
    if not (type(backend) is str and type(workers) is type(threads) is int and workers > 0 and threads >= 0):
        raise ValueError("a layout has values of another kind")
    return Layout(backend, workers, threads)


def _times(entry: Mapping[str, float]) -> dict[int, float]:
    times = dict(sorted((int(size), seconds) for size, seconds in entry.items()))
    if not times or not all(type(seconds) is float and size in SIZES for size, seconds in times.items()):
        raise ValueError("a call time is not one of a batch size")
    values = list(times.values())
    if values != sorted(values) or not MIN_CALL_S < values[0] <= values[-1] < MAX_CALL_S:  # nan fails, too
        raise ValueError("a call time is not a positive number of seconds, or larger batches take less")
    return times


def _version(package: str) -> str | None:
    """As the folder beside an installed package says. importlib.metadata would cost every start some 20 ms."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = sorted(path.stem for path in Path(spec.origin).parents[1].glob(f"{package}-*.dist-info"))
    return ", ".join(name.removeprefix(f"{package}-") for name in found) or "unknown"
