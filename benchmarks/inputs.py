"""What quality.py and recovery.py take in: networks, real images, feature nets, and the options that name them."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.generators import BACKENDS, Generator, load_generator
from benchmarks.harness import ROOT, WORK
from fewstep.card import CheckpointError
from fewstep.metrics.cache import Cache
from fewstep.metrics.extractors.by_name import EFFL0, FASHION128, INCEPTION, load_feature_net
from fewstep.metrics.reference import Reference, make_reference, shuffled
from fewstep.ranges import whole
from trainer.data.format import DataError, ImageSet, read_image_set
from trainer.data.sources.fashion import CLASS_NAMES, LICENCE
from trainer.data.sources.idx import pad_to_power_of_two

MODELS = ROOT / "models" / "fashion"
DATA, FIXTURE = WORK / "runs/data/fashion.zip", ROOT / "tests/fixtures/fashion-2000.png"
SHIPPED = "student"  # the name of the shipped one


def add_common_options(parser: argparse.ArgumentParser, taken: Collection[str] = ()) -> None:
    """Networks, images, extractors, backend and cache. taken: names that no student may have."""
    add = parser.add_argument
    add("--student", action=NamedFolders, default={SHIPPED: MODELS}, metavar="NAME=DIR", taken=taken,
        help=f"one more student; the name {SHIPPED!r} replaces the shipped one")  # fmt: skip
    add(
        "--teacher",
        type=Path,
        default=MODELS / "teacher",
        metavar="DIR",
        help="checkpoint of the teacher (default %(default)s)",
    )
    add("--extractor", nargs="+", default=[FASHION128], choices=(FASHION128, EFFL0), help=f"default {FASHION128}")
    add("--inception", type=Path, metavar="FILE", help="weights of InceptionV3 (2015-12-05): adds the standard FID")
    add("--backend", choices=BACKENDS, default="engine",
        help="ONNX engines (default), in OpenVINO's bfloat16, checkpoints, or those compiled in bfloat16")  # fmt: skip
    add("--batch", type=whole(1), default=100, help="images per network call (default 100)")
    add_data_options(parser)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Real images, threads and cache."""
    add = parser.add_argument
    add("--data", type=Path, default=DATA, metavar="ZIP", help="the training images")
    add("--held-out", type=Path, default=WORK / "runs/data/fashion-test.zip", metavar="ZIP",
        help="real images that nobody was trained on")  # fmt: skip
    add("--threads", type=whole(0), default=0, help="0: as many as there are cores")
    add(
        "--cache", type=Path, default=WORK / "runs/quality", metavar="DIR", help="finished cells (default runs/quality)"
    )


class NamedFolders(argparse.Action):
    """NAME=DIR, any number of times."""

    def __init__(self, taken: Collection[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self.taken = taken

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        name, equals, folder = values.partition("=")
        if not (name and equals and folder) or name in self.taken:
            parser.error(f"{option_string} wants NAME=DIR, with a name that is not one of {', '.join(self.taken)}")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), name: Path(folder)})


def run_cached(run: Callable[[argparse.Namespace, Cache], None], args: argparse.Namespace) -> None:
    """Run with the cache of the arguments, a smoke run with one of its own; what goes wrong is a sentence."""
    try:
        if args.smoke:
            with tempfile.TemporaryDirectory() as folder:
                run(args, Cache(Path(folder)))
        else:
            run(args, Cache(args.cache))
    except (CheckpointError, DataError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished cells are kept, and the same command goes on from them")


def load_data(args: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    if args.smoke and not args.data.exists() and args.data == DATA:  # a fresh clone
        print(f"{args.data} is not there: the images of {FIXTURE.relative_to(ROOT)} stand in for it", file=sys.stderr)
        train = fixture()
        part = shuffled(train)
        held_out = replace(train, images=train.images[part[1500:]], labels=train.labels[part[1500:]])
        train = replace(train, images=train.images[part[:1500]], labels=train.labels[part[:1500]])
    else:
        for path, split in ((args.data, "train"), (args.held_out, "test")):
            if not path.exists():
                command = f"fewstep trainer data fashion --split {split} --out {path}"
                raise DataError(f"{path} does not exist; for Fashion-MNIST: {command}")
        train, held_out = (read_image_set(path) for path in (args.data, args.held_out))
    if args.smoke:
        train, held_out = some_of(train, 1000), some_of(held_out, 500)
    return train, held_out


def fixture() -> ImageSet:
    """2,000 images of Fashion-MNIST's training split, 200 of each class, from the sheet that the tests use."""
    with Image.open(FIXTURE) as sheet:
        tiles = np.asarray(sheet).reshape(40, 28, 50, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28)
    images, labels = pad_to_power_of_two(tiles)[..., None], np.repeat(np.arange(10, dtype=np.int32), 200)
    return ImageSet("fashion-2000", images, labels, CLASS_NAMES, LICENCE, "Fashion-MNIST, 200 a class")


def some_of(images: ImageSet, count: int) -> ImageSet:
    """`count` images of the set, drawn in its random order."""
    rows = shuffled(images)[:count]
    return replace(images, name=f"{len(rows)} of {images.name}", images=images.images[rows], labels=images.labels[rows])


def load_generators(args: argparse.Namespace, train: ImageSet) -> tuple[dict[str, Generator], Generator]:
    students = {name: load_generator(folder, args.backend, args.threads) for name, folder in args.student.items()}
    teacher = load_generator(args.teacher, args.backend, args.threads)
    height, width, channels = train.images.shape[1:]
    for name, generator in {**students, "the teacher": teacher}.items():
        if generator.image_shape != (channels, height, width):
            raise ValueError(
                f"{name} makes images of {generator.image_shape}; {train.name} has {train.images.shape[1:]}"
            )
    for name, generator in students.items():
        if not generator.levels:
            raise ValueError(f"{name} has no levels in its card: it is not a student")
    return students, teacher


def load_references(args: argparse.Namespace, train: ImageSet, held_out: ImageSet, cache: Cache) -> list[Reference]:
    names = [*args.extractor, *([INCEPTION] if args.inception else [])]
    nets = [load_feature_net(name, args.inception, args.threads) for name in dict.fromkeys(names)]
    for net in nets:
        if net.image_shape and net.image_shape != train.images.shape[1:]:
            raise ValueError(f"{net.name} wants images of {net.image_shape}; take --extractor {EFFL0} for {train.name}")
    return [make_reference(net, train, held_out, cache) for net in nets]
