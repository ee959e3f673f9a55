"""`fewstep train`: from pictures to a student that can be served."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.card import CheckpointError
from fewstep.ranges import RangeError
from fewstep.subcommands import REFUSED

if TYPE_CHECKING:
    from trainer.options import TrainCommand

# The rooms above the core are imported when the command runs, so that --help is quick.

PRESETS = {"quick": 600.0, "good": 2 * 3600.0, "overnight": 8 * 3600.0}
TIMED_IMAGES = 5  # behind each time of an engine

TRAIN = """\
From pictures to a student that makes more of their kind in one to eight steps: reads them, trains a teacher, distils
it, exports the student, and writes a report. What a budget buys on this machine is measured and said before the work.

PHOTOS is a folder of pictures (each subfolder a class), a zip of one, EDM's dataset zip, the data.zip of an earlier
run, an IDX file of images, an index of shards (fewstep trainer data shards), whose images stay where they are, or the
name of a recipe: digits, fashion, sprites, emoji, emoji64, earth, earth-x4.

Stop it at any time: the same command goes on where it stopped. OUT/stages.json says what is complete.
"""
SIZES = """\
sizes: the small network for 64 pixels (1.9 M parameters) takes 14 ms a call and trains at 53 images/s on one core. Of
six that were compared at equal minutes of a core it had the least loss. A teacher of 64 pixels is usable from about
140,000 training images on; 1,000,000 to be good is an estimate (docs/training.md).
300 pictures are memorised; 2,000 or more are better. Gray pictures become RGB.
"""


def main(arguments: Sequence[str], began: float) -> int:
    """Returns the exit status: 0 complete, 2 refused with a sentence on stderr. began: monotonic start of the program,
    from which the budget counts."""
    from fewstep.command_line import parse
    from trainer.options import TrainCommand

    return _train(parse(TrainCommand, arguments, "fewstep train", f"{TRAIN}\n{SIZES}"), began)


def _train(asked: "TrainCommand", began: float) -> int:
    from trainer.data.format import DataError
    from trainer.run.loop import DivergedError
    from trainer.settings import MachineError
    from trainer.stages.results import serve_command
    from trainer.stages.run import STUDENT
    from trainer.stages.train import train

    order = replace(asked.order, budget_s=PRESETS[asked.preset]) if asked.preset else asked.order
    try:
        code = train(order, PRESETS["good"], _export, began, asked.first, asked.dry_run)
    except (CheckpointError, DataError, MachineError, RangeError, DivergedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    if code == 0 and asked.serve and not asked.dry_run:
        print(serve_command(order.out), flush=True)
        engine = str(order.out / STUDENT / "engine")
        os.execv(sys.executable, [sys.executable, "-m", "fewstep", "serve", "--engine", engine])
    return code


def _export(model: Path, out: Path) -> dict[str, Any]:
    """Export a checkpoint with proof. Returns how many milliseconds the engine takes for one image, by step count."""
    from export.build import backends_here, export_checkpoint
    from export.engine import load_engine
    from fewstep.noise import noise_for
    from fewstep.samplers import sample_dpdm

    manifest = export_checkpoint(model, out, model.resolve().parent.name, backends=backends_here())
    engine = load_engine(out)
    shape = (manifest.channels, manifest.resolution, manifest.resolution)
    labels = [0] if manifest.classes else None
    taken = {}
    for steps in sorted({1, 2, 4, 8} & set(manifest.levels)):
        times = []
        for seed in range(TIMED_IMAGES):
            started = time.perf_counter()
            noise = noise_for([seed], shape)
            sample_dpdm(_bound(engine.denoiser.filled(noise(0)), labels), noise, manifest.levels[steps])
            times.append(time.perf_counter() - started)
        taken[str(steps)] = round(1000 * min(times), 2)
    return {"ms_per_image": taken, "backend": manifest.backend}


def _bound(denoiser: Any, labels: list[int] | None) -> Any:
    import numpy as np

    classes = None if labels is None else np.array(labels)
    return lambda x, sigma: denoiser(x, sigma, classes)
