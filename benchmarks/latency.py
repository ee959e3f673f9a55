"""Latency against quality: a student at k = 1..8 beside EDM's Heun and Euler on its teacher, on the same runtime.

    python benchmarks/latency.py                                  # five minutes on two cores
    python benchmarks/latency.py --rival dmd2=runs/dmd2/engine    # another method's student beside ours; repeat at will
    python benchmarks/latency.py --schedules schedules.json       # also the solvers at searched schedules
    python benchmarks/latency.py --student runs/photos/engine --teacher runs/teacher/engine --data photos.zip
    python benchmarks/latency.py --smoke                          # seconds; proves that it runs

Prints a table, writes JSON and a PNG. Every figure comes from one run: timings are interleaved over all methods, images
come from the same seeds and class labels, and the distance stands beside its noise floor at the same number of images.
"""

from fewstep import extras

extras.name_missing()

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import (
    ROOT,
    WORK,
    need,
    peak_memory_mb,
    percentile_ms,
    result_file,
    table,
    time_interleaved,
    write_result,
)
from benchmarks.methods import tuned_methods
from benchmarks.plots import STYLES, draw_quality_against_latency
from export.engine import Engine, load_engine
from fewstep.card import CheckpointError
from fewstep.latent import with_latent
from fewstep.metrics.cache import Cache
from fewstep.metrics.extractors.by_name import EFFL0, FASHION128, Outputs, load_feature_net
from fewstep.metrics.extractors.fashion128 import load_extractor
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.reference import make_reference, shuffled
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import to_pixels
from fewstep.ranges import whole
from fewstep.samplers import Sample, sample_dpdm, sample_euler, sample_heun
from fewstep.schedule import solver_sigmas
from fewstep.subcommands import Parser
from trainer.data.format import DataError
from trainer.data.named import read_data

HEUN_LEVELS = (1, 2, 3, 5, 10, 18)  # 2N - 1 calls: 1, 3, 5, 9, 19, 35
EULER_LEVELS = (1, 2, 4, 8, 18, 35)
MOST_CALLS = 100  # of a searched schedule
COLUMNS = {
    "method": "method", "nfe": "NFE", "p50_ms": "p50 ms", "p95_ms": "p95 ms", "ratio": "vs k=1",
    "images_per_s": "images/s", "peak_mb": "peak MB", "distance": "distance", "floor": "floor", "accuracy": "accuracy",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to make images: an engine, a sampler and its sigmas."""

    method: str  # "dpdm", "heun", "euler", or the name of a rival
    engine: Engine
    sampler: Callable[..., Sample]
    sigmas: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.method}-{len(self.sigmas) - (self.sigmas[-1] == 0)}"

    def pixels(self, first_seed: int, count: int) -> tuple[NDArray[np.uint8], int]:
        """Images of seeds first_seed, first_seed + 1, ..., classes in turn: uint8 [count, H, W, C], and the NFE."""
        manifest = self.engine.manifest
        seeds = range(first_seed, first_seed + count)
        labels = np.array(seeds) % manifest.classes if manifest.classes else None
        denoiser = with_latent(self.engine.denoiser, latent_for(seeds, manifest.latent_shape), labels)
        sample = self.sampler(denoiser, noise_for(seeds, manifest.image_shape), self.sigmas)
        return to_pixels(sample.images), sample.nfe


def variants(
    students: Mapping[str, Engine], teacher: Engine, smoke: bool, schedules: Path | None = None
) -> list[Variant]:
    """Every student at each k it serves, by the one sampler that the server has, and the teacher under its solvers.

    schedules: of benchmarks/solver_search.py; the solvers it holds come last.
    """
    tuned = tuned_methods(schedules, teacher.manifest.checkpoint) if schedules else []
    heun, euler = ((2,), (2,)) if smoke else (HEUN_LEVELS, EULER_LEVELS)
    return [
        *(
            Variant(name, student, sample_dpdm, sigmas)
            for name, student in students.items()
            for k, sigmas in sorted(student.manifest.levels.items())
            if k in (1, 4) or not smoke
        ),
        *(Variant("heun", teacher, sample_heun, solver_sigmas(n)) for n in heun),
        *(Variant("euler", teacher, sample_euler, solver_sigmas(n)) for n in euler),
        *(
            Variant(method.name, teacher, method.sampler, tuple(sigmas))
            for method in tuned
            for calls in range(1, MOST_CALLS + 1)
            if (sigmas := method.sigmas(calls)) is not None
        ),
    ]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    students = {name: load_engine(folder, threads=args.threads) for name, folder in folders(args).items()}
    teacher = students.pop("teacher")
    check_shapes({**students, "teacher": teacher}, args)
    space = load_space(args, teacher.manifest.image_shape)
    tried = variants(students, teacher, args.smoke, args.schedules)
    alone = time_interleaved({v.name: functools.partial(v.pixels, 0, 1) for v in tried}, args.rounds)
    together = time_interleaved(
        {v.name: functools.partial(v.pixels, 0, args.batch) for v in tried}, max(args.rounds // 10, 1)
    )
    rows = []
    from tqdm import tqdm

    for variant in tqdm(tried, desc="quality", unit="method"):
        pixels, nfe = sample_many(variant, args.images, args.batch)
        rows.append({
            "method": variant.method,
            "nfe": nfe,
            "sigmas": list(variant.sigmas),
            "p50_ms": percentile_ms(alone[variant.name], 50),
            "p95_ms": percentile_ms(alone[variant.name], 95),
            "images_per_s": args.batch / float(np.median(together[variant.name])),
            "peak_mb": peak_memory_mb(functools.partial(variant.pixels, 0, args.batch)),
            **quality(space, pixels, variant.engine.manifest.classes),
        })  # fmt: skip
    baseline = next(row["p50_ms"] for row in rows if row["method"] == "dpdm" and row["nfe"] == 1)
    return [{**row, "ratio": row["p50_ms"] / baseline} for row in rows]


def folders(args: argparse.Namespace) -> dict[str, Path]:
    """Every engine by its name: ours is "dpdm"."""
    return {"dpdm": args.student, **dict(args.rival), "teacher": args.teacher}


def named_engine(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder) or name in {*STYLES, "student", "teacher"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ENGINE with a name of its own, such as dmd2=runs/dmd2")
    return name, Path(folder)


def sample_many(variant: Variant, count: int, batch: int) -> tuple[NDArray[np.uint8], int]:
    parts = [variant.pixels(first, min(batch, count - first)) for first in range(0, count, batch)]
    return np.concatenate([pixels for pixels, _ in parts]), parts[0][1]


@dataclass(frozen=True)
class Space:
    """Where images are compared with the training images."""

    name: str
    features: Callable[[NDArray[np.uint8]], Outputs]
    reference: Moments
    floor: Callable[[int], float | None]  # distance of so many held-out images; None where there are fewer


def check_shapes(engines: Mapping[str, Engine], args: argparse.Namespace) -> None:
    """Raise CheckpointError unless all make images of one shape, the default extractor's or those of --data."""
    channels, height, width = engines["teacher"].manifest.image_shape
    for name, engine in engines.items():
        if engine.manifest.image_shape != (channels, height, width):
            raise CheckpointError(
                f"{name} makes images of (C, H, W) = {engine.manifest.image_shape}, and the teacher of "
                f"{(channels, height, width)}; give --teacher the engine of its own teacher"
            )
    if not args.data and (height, width, channels) != (32, 32, 1):
        raise CheckpointError(
            f"the networks make {height}x{width} {'gray' if channels == 1 else 'RGB'} images, and {FASHION128} knows "
            "Fashion-MNIST, 32x32 gray; name the images that they were trained on: --data ZIP"
        )


def load_space(args: argparse.Namespace, image_shape: tuple[int, ...]) -> Space:
    """The features of --extractor, with the training images of --data; without it, Fashion-MNIST's shipped statistics.

    Raises CheckpointError or DataError.
    """
    if not args.data:
        shipped = load_extractor(threads=args.threads)
        return Space(FASHION128, shipped, shipped.reference, shipped.floor)
    train = read_data(args.data, image_shape[1])
    height, width, channels = train.images.shape[1:]
    if (channels, height, width) != tuple(image_shape):
        raise DataError(f"{args.data} holds {height}x{width} images with {channels} channels, not {image_shape}")
    held_out = read_data(args.held_out, image_shape[1]) if args.held_out else None
    if held_out is None:
        order, tenth = shuffled(train), max(len(train.images) // 10, 2)
        held_out = replace(train, images=train.images[order[:tenth]], labels=train.labels[order[:tenth]])
        train = replace(train, images=train.images[order[tenth:]], labels=train.labels[order[tenth:]])
    net = load_feature_net(args.extractor, threads=args.threads)
    if net.image_shape and net.image_shape != train.images.shape[1:]:
        raise CheckpointError(f"{net.name} wants images of {net.image_shape}; take --extractor {EFFL0}")
    with tempfile.TemporaryDirectory() as folder:
        reference = make_reference(net, train, held_out, Cache(Path(folder)))
    floor = lambda count: next(iter(reference.floor(count)), None)  # noqa: E731
    return Space(net.name, reference.features, reference.moments, floor)


def quality(space: Space, pixels: NDArray[np.uint8], classes: int) -> dict[str, float | None]:
    """Distance to the training images, its floor, and how often a classifier sees the class that was asked for."""
    features, predicted = space.features(pixels)
    asked = np.arange(len(pixels)) % max(classes, 1)
    return {
        "distance": frechet_distance(Moments.of(features), space.reference),
        "floor": space.floor(len(pixels)),
        "accuracy": None if predicted is None else float((predicted == asked).mean()),
    }


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = ROOT / "models" / "fashion"
    parser.add_argument(
        "--student",
        type=Path,
        default=models / "engine",
        metavar="ENGINE",
        help="engine of the student (default %(default)s)",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        default=models / "teacher" / "engine",
        metavar="ENGINE",
        help="engine of the student's teacher (default %(default)s)",
    )
    parser.add_argument(
        "--rival", type=named_engine, action="append", default=[], metavar="NAME=ENGINE", help="another student"
    )
    parser.add_argument(
        "--images", type=whole(1), default=400, help="images per method behind the distance (default 400)"
    )
    parser.add_argument("--rounds", type=whole(1), default=30, help="timed single images per method (default 30)")
    parser.add_argument("--batch", type=whole(1), default=32, help="batch for images/s and memory (default 32)")
    parser.add_argument("--threads", type=whole(0), default=0, help="0: as many as there are cores")
    parser.add_argument(
        "--out", type=result_file, default=WORK / "build" / "latency.json", help="JSON; the PNG lies beside it"
    )
    parser.add_argument("--smoke", action="store_true", help="four methods, 100 images, 3 rounds")
    parser.add_argument(
        "--schedules", type=Path, metavar="JSON", help="also the solvers as solver_search.py found them"
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="the training images, where not Fashion-MNIST")
    parser.add_argument("--held-out", type=Path, metavar="PATH", help="real images for the floor (default: a tenth)")
    parser.add_argument(
        "--extractor", choices=(FASHION128, EFFL0), default=EFFL0, help=f"features for --data (default {EFFL0})"
    )
    args = parser.parse_args()
    need("matplotlib", "tqdm")
    if len(dict(args.rival)) < len(args.rival):
        parser.error("two rivals have one name; give each --rival a name of its own")
    if args.smoke:
        args.images, args.rounds = 100, 3
    try:
        rows = measure(args)
    except (CheckpointError, DataError) as error:
        sys.exit(f"error: {error}")
    print(table(rows, COLUMNS))
    settings = {
        "images": args.images,
        "rounds": args.rounds,
        "batch": args.batch,
        "threads": args.threads,
        "seeds": [0, args.images - 1],
    }
    engines = {name: load_engine(folder).manifest.checkpoint for name, folder in folders(args).items()}
    engines["student"] = engines.pop("dpdm")
    write_result(
        args.out, "latency", settings, rows, checkpoints=engines, extractor=args.extractor if args.data else FASHION128
    )
    draw_quality_against_latency(rows, args.out.with_suffix(".png"))
    print(f"\nwrote {args.out} and {args.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
