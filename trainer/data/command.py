"""`python -m trainer data`: turn images into a dataset zip, or look into one.

python -m trainer data fashion --out fashion.zip
python -m trainer data fashion --half a --out fashion-a.zip
python -m trainer data folder PHOTOS --resolution 64 --licence "CC0-1.0" --out photos.zip
python -m trainer data show fashion.zip --png sheet.png
"""

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.card import write_atomically
from fewstep.outputs import check_file
from fewstep.pixels import encode, grid
from fewstep.ranges import whole
from trainer.data.format import DataError, ImageSet, read_image_set, write_image_set
from trainer.data.named import read_recipe
from trainer.data.sources.earth import read_earth
from trainer.data.sources.edm_zip import read_edm_zip
from trainer.data.sources.emoji import read_emoji
from trainer.data.sources.folder import read_folder
from trainer.data.sources.idx import read_idx
from trainer.data.sources.selection import HALVES, SPLITS, halved, limit_images

SHEET_COLUMNS = 16
SHEET_TILE = 32  # smaller images are enlarged to about this many pixels


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `data` and its kinds. Each sets `run`, a function of the parsed arguments that raises DataError."""
    parser = subparsers.add_parser(
        "data", help="make a dataset zip, or look into one", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    help_of = {
        "digits": "scikit-learn's handwritten digits, 8x8 gray",
        "fashion": "Fashion-MNIST, 32x32 gray",
        "sprites": "Dungeon Crawl tiles, 32x32 RGB",
        "emoji": "Noto emoji, 32x32 RGB",
        "emoji64": "Noto, Twemoji and Fluent emoji, 64x64 RGB",
        "earth": "crops of NASA's Blue Marble, 64x64 RGB",
    }
    for name, text in help_of.items():
        recipe = kinds.add_parser(name, help=text)
        recipe.add_argument("--split", choices=SPLITS, default="train")
        recipe.add_argument("--half", choices=HALVES, help="a: for networks, b: for the judges of the panel")
        if name != "digits":
            recipe.add_argument("--source", type=Path, metavar="PATH", help="where its files are")
        if name == "emoji":
            recipe.add_argument("--resolution", type=whole(1, 4096), default=32, metavar="N", help="side in pixels")
            recipe.add_argument("--skin-tones", action="store_true", help="also the five tones of each person")
        if name == "earth":
            recipe.add_argument("--per-class", type=whole(1), metavar="N", help="crops of each class")
            recipe.add_argument("--seed", type=whole(0), default=0, metavar="N", help="other crops of the same strips")
        _add_output(recipe, _make_recipe)

    folder = kinds.add_parser("folder", help="a folder of images; each subfolder is a class")
    folder.add_argument("path", type=Path, metavar="PATH")
    _add_shape(folder)
    _add_output(folder, _make_folder, licence=True)

    edm = kinds.add_parser("edm-zip", help="a dataset zip of EDM or StyleGAN")
    edm.add_argument("path", type=Path, metavar="PATH")
    _add_shape(edm)
    _add_class_names(edm)
    _add_output(edm, _make_edm, licence=True)

    idx = kinds.add_parser("idx", help="a pair of IDX files, as MNIST has them")
    idx.add_argument("images", type=Path, metavar="IMAGES")
    idx.add_argument("labels", type=Path, metavar="LABELS")
    idx.add_argument("--pad", action="store_true", help="zeros around, to the next power of two: 28 to 32")
    _add_class_names(idx)
    _add_output(idx, _make_idx, licence=True)

    show = kinds.add_parser("show", help="what a dataset zip holds")
    show.add_argument("path", type=Path, metavar="FILE.zip")
    show.add_argument("--png", type=Path, metavar="FILE.png", help="also draw a contact sheet")
    show.set_defaults(run=_show)


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resolution", type=whole(1, 4096), metavar="N", help="crop and resize to N x N pixels")
    parser.add_argument("--gray", action="store_true", help="one channel instead of three")


def _add_class_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--class-names", default="", metavar="A,B,...", help="names of classes 0, 1, ...")


def _add_output(
    parser: argparse.ArgumentParser, make: Callable[[argparse.Namespace], ImageSet], *, licence: bool = False
) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.zip")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="only N images, evenly spread over all")
    parser.add_argument("--name", help="name of the dataset (default: after its source)")
    if licence:
        parser.add_argument("--licence", default="not stated", metavar="TEXT", help="stored in every model's card")
    parser.set_defaults(run=functools.partial(_write, make=make))


def _make_recipe(args: argparse.Namespace) -> ImageSet:
    if args.kind == "earth":
        return read_earth(args.source, args.split, args.half, per_class=args.per_class, seed=args.seed)
    if args.kind == "emoji":
        images = read_emoji(args.source, args.split, resolution=args.resolution, skin_tones=args.skin_tones)
        return halved(images, args.half) if args.half else images
    return read_recipe(args.kind, getattr(args, "source", None), args.split, args.half)


def _make_folder(args: argparse.Namespace) -> ImageSet:
    return read_folder(args.path, licence=args.licence, resolution=args.resolution, gray=args.gray, limit=args.limit)


def _make_edm(args: argparse.Namespace) -> ImageSet:
    return read_edm_zip(
        args.path, licence=args.licence, resolution=args.resolution, gray=args.gray or None, limit=args.limit,
        class_names=_split_names(args.class_names),
    )  # fmt: skip


def _make_idx(args: argparse.Namespace) -> ImageSet:
    return read_idx(
        args.images,
        args.labels,
        licence=args.licence,
        pad=args.pad,
        class_names=_split_names(args.class_names),
    )


def _split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _write(args: argparse.Namespace, make: Callable[[argparse.Namespace], ImageSet]) -> None:
    check_file(args.out, ".zip")
    if args.out.exists():
        read_image_set(args.out)  # a data set may be replaced, another zip may not
    images = limit_images(make(args), args.limit)
    if args.name:
        images = replace(images, name=args.name)
    try:
        write_image_set(args.out, images)
    except OSError as error:
        raise DataError(f"{args.out} cannot be written ({error})") from error
    print(describe(images).encode(errors="backslashreplace").decode())
    print(f"wrote {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")


def _show(args: argparse.Namespace) -> None:
    if args.png:
        check_file(args.png, ".png")
    images = read_image_set(args.path, verify=True)
    print(describe(images))
    if args.png:
        try:
            write_atomically(args.png, encode(contact_sheet(images), "png"))
        except OSError as error:
            raise DataError(f"{args.png} cannot be written ({error})") from error
        print(f"wrote {args.png}")


def describe(images: ImageSet) -> str:
    """Name, size, licence, hash and the number of images of each class, for people."""
    count, height, width, channels = images.images.shape
    lines = [
        f"{images.name}: {count} images, {width}x{height} {'gray' if channels == 1 else 'RGB'}",
        f"source   {images.source}",
        f"licence  {images.licence}",
        f"sha256   {images.sha256()}",
    ]
    names = (*images.class_names, "no class")  # label -1 is the last
    counts = np.bincount(images.labels % len(names), minlength=len(names))
    lines += [f"{number:8d} {name}" for name, number in zip(names, counts, strict=True) if number or name != "no class"]
    return "\n".join(lines + list(describe_unread(images)))


def describe_unread(images: ImageSet, shown: int = 20) -> Iterator[str]:
    """One line that counts and names the files that were not read, if there are any."""
    if files := images.unread:
        rest = f" and {len(files) - shown} more" if len(files) > shown else ""
        yield f"not read {len(files)} other files: {', '.join(files[:shown])}{rest}"


def contact_sheet(images: ImageSet) -> NDArray[np.uint8]:
    """uint8 [H, W, C]: a block of rows for each class, with images evenly spaced over the class."""
    rows = max(1, SHEET_COLUMNS // max(1, len(images.class_names)))  # about square, whatever the class count
    tiles: list[NDArray[np.uint8]] = []
    for label in (*range(len(images.class_names)), -1):
        members = np.flatnonzero(images.labels == label)
        if len(members):
            tiles.append(_sheet_rows(images.images, members, rows))
    scale = max(1, SHEET_TILE // images.images.shape[1])
    stacked = np.concatenate(tiles).repeat(scale, axis=1).repeat(scale, axis=2)
    return grid(stacked, SHEET_COLUMNS, gap=2)


def _sheet_rows(images: NDArray[np.uint8], members: Sequence[int] | NDArray, rows: int) -> NDArray[np.uint8]:
    """`rows` rows of one class; white tiles where it has fewer images."""
    places = rows * SHEET_COLUMNS
    shown = np.asarray(members)[np.arange(min(places, len(members))) * len(members) // min(places, len(members))]
    tiles = np.full((places, *images.shape[1:]), 255, dtype=np.uint8)
    tiles[: len(shown)] = images[shown]
    return tiles
