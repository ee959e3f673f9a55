"""Our server on a fake network that costs t(B) = max(floor, a + b B) and no processor time.

    python benchmarks/load/fixed_cost.py --cost 12,1,0 -- --port 8000 --capacity 8

Where a server and its load generator share two cores, a real network measures how they disturb each other. This one
sleeps, as the host does while a GPU computes. The images are noise. Everything but the network is the server as it is:
this script puts a loader of its own in the place of export.engine.load_engine and then runs `python -m server`.
"""

from fewstep import extras

extras.name_missing()

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.manifest import BACKEND_ORT_CPU, Manifest, read_manifest
from fewstep.precond import Denoiser

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Cost:
    """Milliseconds of a network call over B rows: max(floor_ms, a_ms + b_ms * B)."""

    a_ms: float
    b_ms: float
    floor_ms: float = 0.0

    def seconds(self, batch: int) -> float:
        return max(self.floor_ms, self.a_ms + self.b_ms * batch) / 1000

    @classmethod
    def parse(cls, text: str) -> "Cost":
        """From "a,b" or "a,b,floor". Raises ValueError with a sentence."""
        try:
            values = [float(part) for part in text.split(",")]
        except ValueError as error:
            raise ValueError(f"a cost is a,b or a,b,floor in milliseconds, such as 12,1,0; not {text!r}") from error
        if len(values) not in (2, 3) or min(values) < 0:
            raise ValueError(f"a cost is two or three numbers of milliseconds from 0 up, not {text!r}")
        return cls(*values)

    def __str__(self) -> str:
        return f"{self.a_ms:g},{self.b_ms:g},{self.floor_ms:g}"


@dataclass(frozen=True)
class FixedCostEngine:
    """The face of export.engine.Engine that a server needs; `network` returns zeros after the time has passed."""

    manifest: Manifest
    cost: Cost
    facts: dict[str, str] = field(default_factory=lambda: {"backend": "fixed cost, for load tests"})
    device: str = "cpu"
    on_device: None = None
    deferred: bool = False
    outputs: dict[int, Floats] = field(default_factory=dict)  # by batch; made anew each time, they cost 2 us a row

    def network(self, x: Floats, c_noise: Floats, onehot: Floats) -> Floats:
        """x [B, C + extra, H, W] -> zeros [B, C, H, W], read-only."""
        due = time.perf_counter() + self.cost.seconds(batch := len(x))
        if batch not in self.outputs:
            self.outputs[batch] = np.zeros((batch, *self.manifest.image_shape), np.float32)
            self.outputs[batch].setflags(write=False)
        time.sleep(max(due - time.perf_counter(), 0))
        return self.outputs[batch]

    def prepare(self) -> None:
        """Nothing is deferred."""

    @property
    def denoiser(self) -> Denoiser:
        return Denoiser(self.network, self.manifest.sigma_data, self.manifest.classes)


def sleep_precisely() -> None:
    """In this thread, which is the one that makes the network calls, let sleeps end within microseconds.

    Linux may otherwise add 50 us (prctl(2), PR_SET_TIMERSLACK), a twentieth of a GPU's network call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)


def install(cost: Cost) -> None:
    """From now on, this process loads this engine in the place of every other, and keeps none of its call times."""
    import export.engine

    os.environ["XDG_CACHE_HOME"] = os.devnull  # below a file; they would be taken for the engine's

    def load(folder: str | Path, **_: Any) -> FixedCostEngine:
        sleep_precisely()
        return FixedCostEngine(read_manifest(Path(folder)), cost)

    export.engine.load_engine = load  # pyright: ignore[reportAttributeAccessIssue]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", type=Cost.parse, required=True, metavar="A,B[,FLOOR]", help="milliseconds")
    parser.add_argument("server", nargs="*", help="after --: the flags of python -m server")
    args = parser.parse_args(arguments)
    if any(flag.endswith("auto") for flag in args.server):
        parser.error("--workers auto would keep the times of a network that is not the engine's; give a number")
    install(args.cost)
    from server.__main__ import main as serve

    return serve([*args.server, *named_backend(args.server)])


def named_backend(flags: Sequence[str]) -> list[str]:
    """The flag without which a server measures backends, and keeps the times; nothing where a backend is named."""
    return [] if any(flag.startswith("--backend") for flag in flags) else ["--backend", BACKEND_ORT_CPU]


if __name__ == "__main__":
    sys.exit(main())
