"""Latency against quality: a student at k = 1..8 beside its teacher under seven solvers, on the same runtime.

    python benchmarks/latency.py                                  # five minutes
    python benchmarks/latency.py --minutes 1 --batch 1            # another time, which decides how often each is run
    python benchmarks/latency.py --rival dmd2=runs/dmd2           # another method's student beside ours; repeat at will
    python benchmarks/latency.py --backend onnxruntime-cpu openvino       # each of them on both
    python benchmarks/latency.py --schedules schedules.json       # also the solvers at searched schedules
    python benchmarks/latency.py --student runs/photos/engine --teacher runs/teacher/engine --data photos.zip
    python benchmarks/latency.py --smoke                          # seconds; proves that it runs

Prints tables, writes JSON and a PNG. Timings are interleaved over all methods, and the time is shared out evenly: quick
methods are run more often. Distances come from the results of quality.py and panel.py where they know the weights,
and are measured otherwise, from the same seeds and class labels; each stands beside its floor at as many images. On a
machine that does other work the table says so, and the picture is of CPU times.
"""

from fewstep import extras

extras.name_missing()

import argparse
import functools
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.busy import Busy, Watch
from benchmarks.energy import meters
from benchmarks.harness import ROOT, WORK, need, result_file, write_result
from benchmarks.known_distances import OF_A_TEACHER, Distance, committed, read_known
from benchmarks.latency_table import (
    distances_json,
    known_of,
    row_of,
    shown,
    spaces,
    spread,
    times_to_quality,
    with_ratios,
)
from benchmarks.latency_variants import OURS, Model, Run, Variant, variants
from benchmarks.measured_distance import Space, load_space
from benchmarks.methods import tuned_methods
from benchmarks.plots import draw_quality_against_latency
from benchmarks.turns import take_turns
from export.engine import load_engine
from export.manifest import BACKENDS, ENGINE_FILE
from fewstep.card import CheckpointError, read_card
from fewstep.metrics.extractors.by_name import EFFL0, FASHION128
from fewstep.ranges import POSITIVE, number, whole
from fewstep.subcommands import Parser
from trainer.data.format import DataError

MODELS = ROOT / "models" / "fashion"
CONSISTENCY = "consistency"  # a rival of this name, and the method in the card of one
FOR_DISTANCES = 0.45  # of the time, where distances are measured here
FOR_SINGLE = 0.6  # of the time for timing, of the first batch size
AROUND_S = 4.0  # of the time, for what is not measured: imports before `main`, tables and the picture behind it
MARGIN = 0.05  # of the time, left unused: the last turns end after it, and machines slow down
FEWEST_IMAGES, MOST_IMAGES = 50, 1000  # behind a measured distance, unless --images says how many


def main() -> None:
    began = time.monotonic()
    args = parse_arguments()
    need("matplotlib", "tqdm")
    print("latency: loading the engines", file=sys.stderr, flush=True)
    watch = Watch()
    try:
        tried, rows, busy = measure(args, began, watch)
    except (CheckpointError, DataError) as error:
        sys.exit(f"error: {error}")
    quality = times_to_quality(rows)
    print(shown(rows, quality, busy))
    write(args, tried, rows, quality, busy)
    written = [args.out]
    for space in spaces(rows)[:1]:
        written.append(args.out.with_suffix(".png"))
        draw_quality_against_latency(rows, space, written[-1], cpu_time=busy.warning() is not None)
    print(f"\nwrote {' and '.join(map(str, written))}")


def measure(args: argparse.Namespace, began: float, watch: Watch) -> tuple[list[Variant], list[dict[str, Any]], Busy]:
    """What was run, its rows, and what else the machine did. Raises CheckpointError or DataError."""
    students, teachers = load_models(args)
    check_shapes([*students, *teachers], args)
    shape = teachers[0].engine.manifest.image_shape
    tuned = tuned_methods(args.schedules, teachers[0].engine.manifest.checkpoint) if args.schedules else []
    tried = variants(students, teachers, tuned, args.smoke)
    ours = students[0].engine.manifest.checkpoint
    known = read_known(committed(ours) if args.quality is None else args.quality)
    found = {variant.name: known_of(variant, known) for variant in tried}
    measuring = args.images is not None or not any(found[v.name] for v in tried if v.method == OURS)
    space = load_space(args, shape) if measuring else None  # what cannot be compared is said before the timing

    whole_s = (1 - MARGIN) * args.minutes * 60 - AROUND_S
    left = lambda: max(whole_s - (time.monotonic() - began), 1.0)  # noqa: E731
    runs = timed(args, tried, left() * (1 - FOR_DISTANCES if measuring else 1))
    rows = with_ratios([row_of(variant, batch, runs[batch][variant.name]) for batch in args.batch for variant in tried])
    busy = watch.seen(spread(rows))
    compared = compare_images(args, space, tried, rows, left()) if space else {}
    named = {variant.name: variant for variant in tried}
    for row in rows:
        variant = named[f"{row['method']}-{row['nfe']} {row['backend']}"]
        here = compared.get(variant.name, {})
        row |= {"distance": None, "floor": None, "accuracy": None, **here}
        if space and here:
            distance = Distance(here["distance"], None, here["floor"], here["images"], "this run")
            found[variant.name] |= {f"{space.name}, N = {here['images']}, here": distance}
        row["distances"] = distances_json(found[variant.name])
    return tried, rows, busy


def timed(args: argparse.Namespace, tried: Sequence[Variant], budget_s: float) -> dict[int, dict[str, list[Run]]]:
    """The runs of every variant by batch size."""
    from tqdm import tqdm

    counters, runs = meters(), {}
    for place, batch in enumerate(args.batch):
        share = FOR_SINGLE if place == 0 else (1 - FOR_SINGLE) / (len(args.batch) - 1)
        seconds = budget_s * (share if len(args.batch) > 1 else 1)
        calls = {variant.name: functools.partial(variant.run, batch, counters) for variant in tried}
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of at most {total:.0f} s"
        with tqdm(total=seconds, desc=f"{len(tried)} variants, batch {batch}", bar_format=form) as bar:
            # A bar beyond its end has no total any more.
            runs[batch] = take_turns(
                calls, seconds, args.rounds, lambda s, bar=bar: bar.update(min(s, bar.total - bar.n))
            )
    return runs


def compare_images(
    args: argparse.Namespace, space: Space, tried: Sequence[Variant], rows: Sequence[Mapping[str, Any]], left_s: float
) -> dict[str, dict[str, Any]]:
    """Distances by variant, of --images images each or of as many as the time allows; empty where it allows too few."""
    from tqdm import tqdm

    largest = max(args.batch)
    costs_s = [row["p50_ms"] / 1000 / largest for row in rows if row["batch"] == largest]
    count = args.images or affordable(left_s, sum(costs_s))
    if not count:
        print(
            f"no distances: the time does not allow {FEWEST_IMAGES} images of each variant; give more --minutes, or "
            "--images",
            file=sys.stderr,
        )
        return {}
    found = {}
    with tqdm(total=count * sum(v.calls for v in tried), desc="distances", unit="call", unit_scale=True) as bar:
        for variant in tried:
            bar.set_postfix_str(variant.name)
            pixels = variant.many(count, largest, bar.update)
            found[variant.name] = {
                **space.compare(pixels, variant.model.engine.manifest.classes), "images": count,
            }  # fmt: skip
    return found


def affordable(left_s: float, cost_s: float) -> int:
    """How many images of every variant the time allows, MOST_IMAGES at most; 0 where it does not allow FEWEST_IMAGES.

    cost_s: of an image of every variant.
    """
    count = min(int(max(left_s, 0) / cost_s), MOST_IMAGES)
    return count if count >= FEWEST_IMAGES else 0


def load_models(args: argparse.Namespace) -> tuple[list[Model], list[Model]]:
    """Students, ours first, and teachers: each on every backend."""
    rivals = dict(args.rival)
    shipped = args.student == MODELS / "engine" and CONSISTENCY not in rivals and not args.smoke
    if shipped and (folder := MODELS / "rivals" / CONSISTENCY).is_dir():
        if find_spec("torch") and find_spec("onnx"):
            rivals[CONSISTENCY] = folder
        else:
            print(f"without {CONSISTENCY}: exporting its weights needs the extra [train]", file=sys.stderr)
    named = {OURS: (args.student, False), **{name: engine_folder(path) for name, path in rivals.items()}}
    loaded = [
        Model(name, load_engine(folder, backend=backend, threads=args.threads), consistency)
        for name, (folder, consistency) in named.items()
        for backend in args.backend
    ]
    teachers = [
        Model("teacher", load_engine(args.teacher, backend=backend, threads=args.threads)) for backend in args.backend
    ]
    return loaded, teachers


def engine_folder(folder: Path) -> tuple[Path, bool]:
    """The engine of a rival, exported now if its folder has none, and whether it is a consistency model."""
    card_folder = folder if (folder / "card.json").is_file() else folder.parent
    card = read_card(card_folder) if (card_folder / "card.json").is_file() else None
    consistency = card is not None and card.training.get("method") == CONSISTENCY
    if (folder / ENGINE_FILE).is_file() or card_folder != folder or card is None:
        return folder, consistency  # load_engine says what is wrong with a folder of neither kind
    if (folder / "engine" / ENGINE_FILE).is_file():
        return folder / "engine", consistency
    out = WORK / "build" / "engines" / card.weights[:16]
    if not (out / ENGINE_FILE).is_file():
        print(f"latency: exporting {folder} to {out}", file=sys.stderr, flush=True)
        # In a process of its own: this one would keep PyTorch in its memory.
        command = [sys.executable, "-m", "export", "--model", str(folder), "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CheckpointError(f"{folder} could not be exported: {done.stderr.strip().splitlines()[-1]}")
    return out, consistency


def check_shapes(models: Sequence[Model], args: argparse.Namespace) -> None:
    """Raise CheckpointError unless all make images of one shape, the default extractor's or those of --data."""
    channels, height, width = models[-1].engine.manifest.image_shape
    for model in models:
        if model.engine.manifest.image_shape != (channels, height, width):
            raise CheckpointError(
                f"{model.method} makes images of (C, H, W) = {model.engine.manifest.image_shape}, and the teacher of "
                f"{(channels, height, width)}; give --teacher the engine of its own teacher"
            )
    if not args.data and (height, width, channels) != (32, 32, 1):
        raise CheckpointError(
            f"the networks make {height}x{width} {'gray' if channels == 1 else 'RGB'} images, and {FASHION128} knows "
            "Fashion-MNIST, 32x32 gray; name the images that they were trained on: --data ZIP"
        )


def write(
    args: argparse.Namespace, tried: Sequence[Variant], rows: list[dict[str, Any]], quality: Any, busy: Busy
) -> None:
    counted = [row["images"] for row in rows if "images" in row]
    settings = {
        "minutes": args.minutes,
        "rounds": args.rounds,
        "batch": args.batch,
        "backend": sorted({variant.backend for variant in tried}),
        "threads": args.threads,
        "images": counted[0] if counted else None,
        "seeds": [0, counted[0] - 1] if counted else None,
    }
    checkpoints = {variant.model.method: variant.model.engine.manifest.checkpoint for variant in tried}
    checkpoints["student"] = checkpoints.pop(OURS)
    write_result(
        args.out, "latency", settings, rows, checkpoints=checkpoints,
        extractor=args.extractor if args.data else FASHION128, time_to_quality=quality,
        busy={**vars(busy), "warning": busy.warning()},
        facts={variant.backend: variant.model.engine.facts for variant in tried},
    )  # fmt: skip


def named_folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder) or name in {OURS, "student", "teacher", *OF_A_TEACHER}:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR with a name of its own, such as dmd2=runs/dmd2")
    return name, Path(folder)


def known_file(text: str) -> Path:
    path = Path(text)
    try:
        read_known([path])
    except CheckpointError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--student", type=Path, default=MODELS / "engine", metavar="ENGINE",
        help="engine of the student (default %(default)s)")  # fmt: skip
    add("--teacher", type=Path, default=MODELS / "teacher" / "engine", metavar="ENGINE",
        help="engine of the student's teacher (default %(default)s)")  # fmt: skip
    add("--rival", type=named_folder, action="append", default=[], metavar="NAME=DIR",
        help="another student, an engine or a checkpoint, which is exported; repeat it")  # fmt: skip
    add("--backend", nargs="+", choices=BACKENDS, default=[None], metavar="B",
        help="what runs the networks: each named one in turn (default: what the engine says)")  # fmt: skip
    add("--minutes", type=number(POSITIVE), default=5.0, help="of the whole run, but for --images (default 5)")
    add("--batch", type=whole(1), nargs="+", default=[1, 8], metavar="N", help="images at once (default 1 8)")
    add("--rounds", type=whole(1), default=200, help="timed runs of a variant and batch size at most (default 200)")
    add(
        "--quality",
        type=known_file,
        nargs="*",
        metavar="JSON",
        help="results of quality.py and panel.py with distances (default: the committed ones that know the student)",
    )
    add("--images", type=whole(2),
        help="images of each variant behind a distance measured here, whatever that takes (default: none where "
        f"--quality knows the student, else {FEWEST_IMAGES} to {MOST_IMAGES}, as the time allows)")  # fmt: skip
    add("--threads", type=whole(0), default=0, help="0: as many as there are cores")
    add("--out", type=result_file, default=WORK / "build" / "latency.json", help="JSON; the PNG lies beside it")
    add("--smoke", action="store_true", help="four methods, 50 images, 3 rounds")
    add("--schedules", type=Path, metavar="JSON", help="also the solvers as solver_search.py found them")
    add("--data", type=Path, metavar="PATH", help="the training images, where not Fashion-MNIST")
    add("--held-out", type=Path, metavar="PATH", help="real images for the floor (default: a tenth)")
    add("--extractor", choices=(FASHION128, EFFL0), default=EFFL0, help=f"features for --data (default {EFFL0})")
    args = parser.parse_args()
    if len(dict(args.rival)) < len(args.rival):
        parser.error("two rivals have one name; give each --rival a name of its own")
    if args.smoke:
        args.images, args.rounds = 50, 3
    args.batch = sorted(set(args.batch))
    return args


if __name__ == "__main__":
    main()
