"""What one asks of the export commands: frozen values, a flag for each (fewstep.command_line)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from export.manifest import BACKEND_TENSORRT, BACKEND_TENSORRT_RTX, BACKENDS, DTYPE_NAMES
from fewstep.command_line import Flat, Positional, Switch, arg, one_of, whole_numbers
from fewstep.ranges import Range, RangeError, check_ranges

DIR = arg(metavar="DIR")


@dataclass(frozen=True)
class ProofOptions:
    threads: Annotated[int, Range(0, 1024, whole=True)] = 0
    """Cores for the proof; 0: all. 1 is faster on a busy machine."""
    buckets: Annotated[tuple[int, ...] | None, whole_numbers(Range(1, 2**16, whole=True), "1,2,4,8")] = None
    """Batch sizes that backends of fixed shapes prepare."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class ExportCommand:
    model: Annotated[Path, DIR]
    """Folder with model.safetensors and card.json."""
    out: Annotated[Path, DIR]
    """Engine directory to write or to replace."""
    proof: Flat[ProofOptions]
    name: Annotated[str | None, arg(metavar="NAME")] = None
    """What the engine is called (default: the model folder's name)."""
    dtype: Annotated[str, one_of(DTYPE_NAMES)] = "float32"
    """What the network computes in."""
    backend: Annotated[
        tuple[Annotated[str, one_of(BACKENDS)], ...],
        arg(
            metavar="B [B ...]",
            help=f"Backends to prove, the one that is served first: {', '.join(BACKENDS)} (default: onnxruntime-cpu; "
            "where there is a GPU, torch before it).",
        ),
    ] = ()

    adapters: Switch[bool] = False
    """The network takes adapters by row (export adapter)."""
    resolution: Annotated[int | None, Range(1, 4096, whole=True)] = None
    """Side of the images, of a network of convolutions alone (default: that it was trained on)."""
    told: Annotated[int, Range(0, 10_000, whole=True)] = 0
    """Values of y that adapters may be told, of a model without classes."""


@dataclass(frozen=True)
class AdapterCommand:
    engine: Annotated[Positional[Path], DIR]
    """Engine directory of the backbone, exported with --adapters."""
    add: Annotated[Path | None, DIR] = None
    """Folder with adapter.safetensors and adapter.json: a posterior's student, or the posterior of a student."""
    remove: Annotated[str | None, arg(metavar="NAME")] = None
    """Take this adapter out instead."""
    name: Annotated[str | None, arg(metavar="NAME")] = None
    """What the added adapter is called (default: its folder's name)."""
    model: Annotated[Path | None, DIR] = None
    """Checkpoint folder of the backbone (default: the engine's parent folder)."""
    threads: Annotated[int, Range(0, 1024, whole=True)] = 0
    """Cores for the proof; 0: all."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if (self.add is None) == (self.remove is None):
            raise RangeError("give --add DIR, or --remove NAME")


@dataclass(frozen=True)
class DiffusersCommand:
    model: Annotated[Path, DIR]
    """Folder of a student, with model.safetensors and card.json."""
    out: Annotated[Path, DIR]
    """Folder to write, which holds no model yet."""


@dataclass(frozen=True)
class VerifyCommand:
    engine: Annotated[Positional[Path], DIR]
    """Engine directory."""
    proof: Flat[ProofOptions]
    model: Annotated[Path | None, DIR] = None
    """Checkpoint folder (default: the engine's parent folder)."""
    backend: Annotated[
        str | None, one_of(BACKENDS), arg(metavar="B", help=f"{', '.join(BACKENDS)} (default: the manifest's).")
    ] = None
    record: Switch[bool] = False
    """Write what was measured into engine.json."""


@dataclass(frozen=True)
class PlanCommand:
    engine: Annotated[Positional[Path], DIR]
    """Engine directory; the plan goes into its folder `plans`."""
    backend: Annotated[str, one_of((BACKEND_TENSORRT, BACKEND_TENSORRT_RTX))]
    """What runs the plan."""
    proof: Flat[ProofOptions]
    refit_from: Annotated[Path | None, DIR] = None
    """An engine of the same architecture whose plan takes the weights."""
