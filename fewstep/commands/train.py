"""`fewstep train`: from pictures to a student that can be served."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.card import CheckpointError
from fewstep.ranges import RangeError, duration, whole

# The rooms above the core are imported when the command runs, so that --help is quick.

REFUSED = 2
PRESETS = {"quick": 600.0, "good": 2 * 3600.0, "overnight": 8 * 3600.0}
TIMED_IMAGES = 5  # behind each time of an engine

TRAIN = """\
From pictures to a student that makes more of their kind in one to eight steps: reads them, trains a teacher, distils
it, exports the student, and writes a report. What a budget buys on this machine is measured and said before the work.

PHOTOS is a folder of pictures (each subfolder a class), a zip of one, EDM's dataset zip, a data set made by
`python -m trainer data`, an IDX file of images, or the name of a recipe: digits, fashion, sprites, emoji,
emoji64, earth.

Stop it at any time: the same command goes on where it stopped. OUT/stages.json says what is complete.
"""
SIZES = """\
sizes: the small network for 64 pixels (1.9 M parameters) trained at 52 images/s on one core. A teacher of 64 pixels is
usable from about 140,000 training images on; 1,000,000 to be good is an estimate (docs/training.md).
300 pictures are memorised; 2,000 or more are better. Gray pictures become RGB.
"""


def main(arguments: Sequence[str], began: float) -> int:
    """Returns the exit status: 0 complete, 2 refused with a sentence on stderr. began: monotonic start of the program,
    from which the budget counts."""
    return _train(_parser().parse_args(arguments), began)


def _parser() -> argparse.ArgumentParser:
    train = argparse.ArgumentParser(
        prog="python -m fewstep train", description=TRAIN, epilog=SIZES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    train.add_argument("photos", metavar="PHOTOS", help="pictures, or a recipe's name")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything goes")
    length = train.add_mutually_exclusive_group()
    length.add_argument("--preset", choices=PRESETS, help="a budget: 10 minutes, 2 hours (the default) or 8 hours")
    length.add_argument("--budget", type=duration, metavar="TIME", help="for the whole command: 90s, 30m, 6h")
    train.add_argument(
        "--half", choices=("a", "b"), help="of a recipe's pictures; a leaves b to the judges of the panel"
    )
    train.add_argument("--size", type=int, choices=(32, 64), help="side of the images in pixels (default: 32)")
    train.add_argument("--network", choices=("small", "large"), help="default: small on a CPU, large on a GPU")
    train.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    train.add_argument("--seed", type=whole(0, 2**31), metavar="N", help="another one: another run (default: 0)")
    train.add_argument("--dry-run", action="store_true", help="measure, print the plan, and write nothing")
    train.add_argument(
        "--from", dest="first", metavar="STAGE",
        help="make this stage and what follows anew: data, teacher, dpdm (and a recipe's own), export, report",
    )  # fmt: skip
    train.add_argument("--serve", action="store_true", help="then serve the student")
    return train


def _train(args: argparse.Namespace, began: float) -> int:
    from trainer.data.format import DataError
    from trainer.run.loop import DivergedError
    from trainer.settings import MachineError
    from trainer.stages import STUDENT, Order, serve_command, train

    budget = PRESETS[args.preset] if args.preset else args.budget
    order = Order(args.photos, args.out, budget, args.size, args.network, args.device, args.seed, args.half)
    try:
        code = train(order, PRESETS["good"], _export, began, args.first, args.dry_run)
    except (CheckpointError, DataError, MachineError, RangeError, DivergedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    if code == 0 and args.serve and not args.dry_run:
        print(serve_command(args.out), flush=True)
        engine = str(args.out / STUDENT / "engine")
        os.execv(sys.executable, [sys.executable, "-m", "server", "--engine", engine])
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
            sample_dpdm(_bound(engine.denoiser, labels), noise_for([seed], shape), manifest.levels[steps])
            times.append(time.perf_counter() - started)
        taken[str(steps)] = round(1000 * min(times), 2)
    return {"ms_per_image": taken, "backend": manifest.backend}


def _bound(denoiser: Any, labels: list[int] | None) -> Any:
    import numpy as np

    classes = None if labels is None else np.array(labels)
    return lambda x, sigma: denoiser(x, sigma, classes)
