"""`fewstep generate`: images of many seeds into a folder, a sheet, or a file of a data set."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fewstep.cache_folder import cache_folder
from fewstep.card import CheckpointError
from fewstep.ranges import POSITIVE, number, whole
from fewstep.subcommands import REFUSED, Parser

SHIPPED = "fashion"
FORMATS = ("folder", "sheet", "npz", "zip", "webdataset", "parquet")
DESCRIPTION = """\
Makes one image for each seed: those that a server in exact mode answers, to the byte. Stop it at any time, by kill -9
if need be: the same command goes on where it stopped, and the output has the bytes of a run that was not stopped.
"""
OUTPUTS = """\
outputs, by the suffix of --out or by --format:
  DIR            a PNG for each seed, DIR/000042.png
  FILE.png       one sheet of at most 4,096 images
  FILE.npz       NumPy arrays: images uint8 [N, H, W, C], seeds, labels
  FILE.zip       EDM's data set, which `fewstep train` and the panel read
  DIR, with --format webdataset: shards of about 1 GB, with SEED.png, SEED.cls and SEED.json for each image
  FILE.parquet   image, seed, label and checkpoint, as Hugging Face's datasets reads it; needs [parquet]

A model that enlarges images needs --inputs: an image for each of its pictures, in the order of their names.
"""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 the output is complete, 2 refused or stopped with a sentence on stderr."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.seeds is None and args.inputs is None:
        parser.error("--seeds or --inputs is required")
    from server.bulk.inputs import InputsError
    from server.bulk.journal import BulkError
    from server.bulk.make import stopped
    from server.bulk.seeds import SeedsError
    from server.scheduler.refusal import Refusal
    from server.settings.settings import SettingsError

    try:
        return _generate(args)
    except (BulkError, CheckpointError, InputsError, Refusal, SeedsError, SettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {stopped(error, args.out)}", file=sys.stderr)
    return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fewstep generate", description=DESCRIPTION, epilog=OUTPUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", default=SHIPPED, metavar="NAME|DIR", help="a shipped model, or the folder of one or "
                        "of an engine (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seeds", metavar="LIST", help="0-63, or 0-9,40,100-199 (with --inputs: one for each of "
                        "its pictures; default then: 0 up)")  # fmt: skip
    parser.add_argument("--inputs", type=Path, metavar="FOLDER|ZIP", help="PNG, JPEG or WebP pictures that the model "
                        "enlarges; of another size than it takes, their middle squares are resized")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="a folder or a file; see below")
    parser.add_argument("--format", choices=FORMATS, help="default: what the suffix of --out means")
    parser.add_argument("--steps", type=int, metavar="K", help="network calls for an image (default: 4)")
    parser.add_argument(
        "--label", default="random", metavar="CLASS", help="the name or number of a class; balanced: seed modulo the "
        "number of classes; random: drawn from the seed, as the server does (default)",
    )  # fmt: skip
    parser.add_argument("--guidance", type=number(POSITIVE), metavar="W", help="weight of the class, for models that "
                        "take one: from 1, the class itself, to the model's most (default: 1)")  # fmt: skip
    parser.add_argument("--per-file", type=whole(1, 10**9), metavar="N", help="images of a shard, rounded down to "
                        "whole parts of at most 256 (default: about 1 GB)")  # fmt: skip
    parser.add_argument("--workers", type=whole(1, 64), default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--threads", type=whole(0, 1024), default=0, metavar="N", help="cores of a network call "
                        "(default: all, or an equal share for each process)")  # fmt: skip
    parser.add_argument("--capacity", type=whole(1, 4096), default=8, metavar="N", help="images of a network call; "
                        "that of the server whose bytes are wanted (default: 8, as the server's)")  # fmt: skip
    parser.add_argument("--backend", metavar="NAME", help="what runs the network (default: the engine's)")
    return parser


def _generate(args: argparse.Namespace) -> int:
    from server.bulk.inputs import seeds_and_inputs
    from server.bulk.journal import BulkError
    from server.bulk.order import Order, chosen_label, chunk_size, pictured
    from server.bulk.outputs.by_name import kind_for
    from server.bulk.outputs.webdataset import shard_images
    from server.bulk.run import is_complete, run
    from server.http.pictures import decode
    from server.scheduler.loading import LoadOptions
    from server.scheduler.validate import choose_conditions, choose_steps
    from server.settings.sources import named_engine
    from trainer.run.progress import Progress, format_seconds

    output = kind_for(args.out, args.format)
    engine, manifest = named_engine(args.model)
    if engine.resolve() in args.out.resolve().parents:
        raise BulkError(
            f"--out {args.out} lies in the folder of the engine, which holds nothing else; name another place"
        )
    if args.inputs:
        print(f"generate  reading {args.inputs}", file=sys.stderr, flush=True)
    seeds, inputs = seeds_and_inputs(args.seeds, args.inputs, manifest, decode)
    choose_conditions(manifest, args.guidance, pictured(manifest))
    options = LoadOptions(
        args.backend, "exact", args.capacity, args.threads, processes=args.workers, compiled=cache_folder("compiled")
    )
    per_file = (args.per_file or shard_images(manifest.image_shape)) if output == "webdataset" else 0
    if args.per_file and not per_file:
        raise BulkError(f"--per-file is of --format webdataset, and {args.out} is a {output}")
    order = Order(
        manifest, seeds, choose_steps(args.steps, manifest), chosen_label(args.label, manifest),
        args.backend or manifest.backend, args.capacity, output, per_file, chunk_size(seeds.count, args.capacity),
        args.guidance, inputs,
    )  # fmt: skip
    shown = Progress("generate", seeds.count)
    if is_complete(order, args.out):
        run(order, engine, args.out, options, lambda images: None)  # removes what it needed, should it be left
        print(f"{args.out} is complete: {seeds.count:,} images of {manifest.name}")
        return 0
    print(f"generate  loading {manifest.name}", file=sys.stderr, flush=True)
    began: list[float] = []

    def progress(images: int) -> None:
        if not began:
            began.append(time.monotonic())
            shown.begin(images / seeds.count, images)
        shown.update(images / seeds.count, images, dict)

    try:
        made = run(order, engine, args.out, options, progress)
    finally:
        shown.close()
    took = format_seconds(time.monotonic() - (began or [time.monotonic()])[0])
    now = f"; {made:,} of them made now, in {took}" if made < seeds.count else f" in {took}"
    print(f"{args.out}: {seeds.count:,} images of {manifest.name}{now}")
    return 0
