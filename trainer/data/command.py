"""`fewstep trainer data`: turn images into a dataset zip, or look into one.

fewstep trainer data fashion --out fashion.zip
fewstep trainer data fashion --half a --out fashion-a.zip
fewstep trainer data folder PHOTOS --resolution 64 --licence "CC0-1.0" --out photos.zip
fewstep trainer data show fashion.zip --png sheet.png
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fewstep.card import write_atomically
from fewstep.command_line import Flat, Positional, Switch, arg, parse, value_of
from fewstep.outputs import check_file
from fewstep.pixels import encode, grid
from fewstep.ranges import COUNT, SEED, Range, check_ranges
from fewstep.subcommands import as_sentence, subcommand
from trainer.data.format import DataError, ImageSet, printable, read_image_set, write_image_set
from trainer.data.named import read_recipe
from trainer.data.shards import is_index, read_index
from trainer.data.sources.earth import read_earth, read_earth_x4
from trainer.data.sources.edm_zip import read_edm_zip
from trainer.data.sources.emoji import read_emoji
from trainer.data.sources.folder import read_folder
from trainer.data.sources.idx import read_idx
from trainer.data.sources.selection import halved, limit_images
from trainer.data.sources.shards import write_index
from trainer.settings import Half, Split

SHEET_COLUMNS = 16
SHEET_TILE = 32  # smaller images are enlarged to about this many pixels


PROG = "fewstep trainer data"
KINDS = {
    "digits": "scikit-learn's handwritten digits, 8x8 gray",
    "fashion": "Fashion-MNIST, 32x32 gray",
    "sprites": "Dungeon Crawl tiles, 32x32 RGB",
    "emoji": "Noto emoji, 32x32 RGB",
    "emoji64": "Noto, Twemoji and Fluent emoji, 64x64 RGB",
    "earth": "crops of NASA's Blue Marble, 64x64 RGB",
    "earth-x4": "the same without classes, to be enlarged from 16x16",
    "folder": "a folder of images; each subfolder is a class",
    "edm-zip": "a dataset zip of EDM or StyleGAN",
    "idx": "a pair of IDX files, as MNIST has them",
    "shards": "an index of WebDataset tars or of EDM's zip, to train from images that do not fit into memory",
    "show": "what a dataset zip or an index of shards holds",
}
SIDE = Range(1, 4096, whole=True)
NAMES = value_of(lambda text: tuple(name.strip() for name in text.split(",") if text), "A,B,...", ",".join)
Licence = Annotated[str, arg(metavar="TEXT")]


def run(arguments: Sequence[str]) -> None:
    """Raises DataError or OSError."""
    kind, rest = subcommand(arguments, PROG, KINDS, (__doc__ or "").strip())
    asked = parse(FLAGS[kind], rest, f"{PROG} {kind}", as_sentence(KINDS[kind]))
    if isinstance(asked, Show):
        _show(asked)
    elif isinstance(asked, Shards):
        _index(asked)
    else:
        _write(asked.output, lambda: asked.read(kind))


@dataclass(frozen=True)
class Output:
    out: Annotated[Path, arg(metavar="FILE.zip")]
    """The dataset zip."""
    limit: Annotated[int | None, COUNT] = None
    """Only so many images, evenly spread over all."""
    name: Annotated[str | None, arg(metavar="TEXT")] = None
    """Name of the dataset (default: after its source)."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Digits:
    output: Flat[Output]
    split: Split = "train"
    """The images that networks are trained with, or those that are held out."""
    half: Half | None = None
    """a: for networks, b: for the judges of the panel."""

    def read(self, kind: str) -> ImageSet:
        return read_recipe(kind, None, self.split, self.half)


@dataclass(frozen=True)
class Named:
    chosen: Flat[Digits]
    source: Path | None = None
    """Where its files are."""

    @property
    def output(self) -> Output:
        return self.chosen.output

    def read(self, kind: str) -> ImageSet:
        return read_recipe(kind, self.source, self.chosen.split, self.chosen.half)


@dataclass(frozen=True)
class Emoji:
    chosen: Flat[Digits]
    source: Path | None = None
    """Where its files are."""
    resolution: Annotated[int, SIDE] = 32
    """Side in pixels."""
    skin_tones: Switch[bool] = False
    """Also the five tones of each person."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def output(self) -> Output:
        return self.chosen.output

    def read(self, _kind: str) -> ImageSet:
        split, side, half = self.chosen.split, self.resolution, self.chosen.half
        images = read_emoji(self.source, split, resolution=side, skin_tones=self.skin_tones)
        return halved(images, half) if half else images


@dataclass(frozen=True)
class Earth:
    chosen: Flat[Digits]
    source: Path | None = None
    """The package three-globe, as a .tgz or unpacked."""
    per_class: Annotated[int | None, COUNT] = None
    """Crops of each class."""
    seed: Annotated[int, SEED] = 0
    """Another one: other crops of the same strips."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def output(self) -> Output:
        return self.chosen.output

    def read(self, kind: str) -> ImageSet:
        split, half = self.chosen.split, self.chosen.half
        reader = read_earth_x4 if kind == "earth-x4" else read_earth
        return reader(self.source, split, half, per_class=self.per_class, seed=self.seed)


@dataclass(frozen=True)
class Folder:
    path: Positional[Path]
    """The folder."""
    output: Flat[Output]
    resolution: Annotated[int | None, SIDE] = None
    """Crop and resize to a square of so many pixels a side."""
    gray: Switch[bool] = False
    """One channel instead of three."""
    licence: Licence = "not stated"
    """Stored in every model's card."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def read(self, _kind: str) -> ImageSet:
        return read_folder(
            self.path, licence=self.licence, resolution=self.resolution, gray=self.gray, limit=self.output.limit
        )


@dataclass(frozen=True)
class EdmZip:
    folder: Flat[Folder]
    class_names: Annotated[tuple[str, ...], NAMES] = ()
    """Names of classes 0, 1, ..."""

    @property
    def output(self) -> Output:
        return self.folder.output

    def read(self, _kind: str) -> ImageSet:
        given = self.folder
        return read_edm_zip(
            given.path, licence=given.licence, resolution=given.resolution, gray=given.gray or None,
            limit=given.output.limit, class_names=self.class_names,
        )  # fmt: skip


@dataclass(frozen=True)
class Idx:
    images: Annotated[Positional[Path], arg(metavar="IMAGES")]
    labels: Annotated[Positional[Path], arg(metavar="LABELS")]
    output: Flat[Output]
    pad: Switch[bool] = False
    """Zeros around, to the next power of two: 28 to 32."""
    class_names: Annotated[tuple[str, ...], NAMES] = ()
    """Names of classes 0, 1, ..."""
    licence: Licence = "not stated"
    """Stored in every model's card."""

    def read(self, _kind: str) -> ImageSet:
        return read_idx(
            self.images, self.labels, licence=self.licence, pad=self.pad, class_names=self.class_names
        )  # fmt: skip


@dataclass(frozen=True)
class Shards:
    path: Positional[Path]
    """A folder of .tar files (KEY.png and KEY.cls), one of them, or EDM's dataset zip."""
    out: Annotated[Path, arg(metavar="FILE.zip")]
    """The index. The images stay where they are."""
    name: Annotated[str | None, arg(metavar="TEXT")] = None
    """Name of the dataset (default: after its source)."""
    resolution: Annotated[int | None, SIDE] = None
    """Crop and resize to a square of so many pixels a side, each time an image is read."""
    gray: Switch[bool] = False
    """One channel instead of three."""
    licence: Licence = "not stated"
    """Stored in every model's card."""
    class_names: Annotated[tuple[str, ...], NAMES] = ()
    """Names of classes 0, 1, ..."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Show:
    path: Annotated[Positional[Path], arg(metavar="FILE.zip")]
    png: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """Also draw a contact sheet."""


FLAGS: dict[str, type[Digits | Named | Emoji | Earth | Folder | EdmZip | Idx | Shards | Show]] = {
    "digits": Digits, "fashion": Named, "sprites": Named, "emoji": Emoji, "emoji64": Named, "earth": Earth,
    "earth-x4": Earth, "folder": Folder, "edm-zip": EdmZip,
    "idx": Idx, "shards": Shards, "show": Show,
}  # fmt: skip


def _write(output: Output, make: Callable[[], ImageSet]) -> None:
    check_file(output.out, ".zip")
    if output.out.exists():
        read_image_set(output.out)  # a data set may be replaced, another zip may not
    images = limit_images(make(), output.limit)
    if output.name:
        images = replace(images, name=output.name)
    try:
        write_image_set(output.out, images)
    except OSError as error:
        raise DataError(f"{output.out} cannot be written ({error})") from error
    print(describe(images).encode(errors="backslashreplace").decode())
    print(f"wrote {output.out}, {output.out.stat().st_size / 1e6:.1f} MB")


def _index(asked: Shards) -> None:
    check_file(asked.out, ".zip")
    if asked.out.exists():
        read_index(asked.out)  # an index may be replaced, another zip may not
    try:
        write_index(
            asked.path, asked.out, name=asked.name, licence=asked.licence, resolution=asked.resolution,
            gray=asked.gray or None, class_names=asked.class_names,
        )  # fmt: skip
    except OSError as error:
        raise DataError(f"{asked.out} cannot be written ({error})") from error
    print(describe(read_index(asked.out)).encode(errors="backslashreplace").decode())
    print(f"wrote {asked.out}, {asked.out.stat().st_size / 1e6:.1f} MB; the images stay in their shards")


def _show(asked: Show) -> None:
    if asked.png:
        check_file(asked.png, ".png")
    images = read_index(asked.path) if is_index(asked.path) else read_image_set(asked.path, verify=True)
    print(describe(images))
    if asked.png:
        try:
            write_atomically(asked.png, encode(contact_sheet(images), "png"))
        except OSError as error:
            raise DataError(f"{asked.png} cannot be written ({error})") from error
        print(f"wrote {asked.png}")


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
        names = ", ".join(map(printable, files[:shown]))
        yield f"not read {len(files)} other file{'s' * (len(files) != 1)}: {names}{rest}"


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
