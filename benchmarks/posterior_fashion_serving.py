"""How `benchmarks/posterior_fashion.py` serves its student: an adapter of the shipped backbone, over HTTP."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import ROOT
from benchmarks.inputs import MODELS
from export.adapters import add_adapter
from export.build import export_checkpoint
from fewstep.client import Client
from fewstep.pixels import from_pixels

ASKED = 32  # images of a request


def engine_with(work: Path, adapter: Path) -> Path:
    """The shipped student exported for adapters, with this one."""
    model = work / "fashion"
    engine = model / "engine"
    if not (engine / "engine.json").exists():
        model.mkdir(exist_ok=True)
        for name in ("model.safetensors", "card.json"):
            shutil.copyfile(MODELS / name, model / name)
        export_checkpoint(model, engine, "fashion", adapters=True, backends=("onnxruntime-cpu",), threads=1)
    if not (engine / "adapters" / f"{adapter.name}.safetensors").exists():
        add_adapter(engine, adapter, threads=1)
    return engine


@contextmanager
def served(engine: Path) -> Iterator[Client]:
    """A server of its own process, which holds the backbone and its adapter."""
    command = [sys.executable, "-m", "server", "--engine", f"fashion={engine}", "--port", "0", "--drain-s", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            with Client(server.stdout.readline().split()[-1]) as client:
                yield client
        finally:
            server.terminate()
            server.wait()


def served_images(client: Client, model: str, y: Tensor, calls: int) -> Tensor:
    """Images [N, 1, 32, 32] of seeds from 0 on, one per label."""
    made = []
    for first in range(0, len(y), ASKED):
        part = y[first : first + ASKED].tolist()
        seeds = list(range(first, first + len(part)))
        made.append(client.generate(model=model, seeds=seeds, labels=part, steps=calls).pixels)
    return torch.from_numpy(from_pixels(np.concatenate(made)))
