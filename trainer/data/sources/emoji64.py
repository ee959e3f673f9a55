"""Recipe `emoji64`: emoji in three styles on white, 64x64, from three npm packages.

A class is a style and a Unicode group: nine groups of each of three styles. A concept (an emoji with its skin tones, in
all styles) is held out as a whole, and belongs to one half as a whole.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.data.format import DataError, ImageSet
from trainer.data.sources.archive import USUAL_FOLDERS, first_match, read_files
from trainer.data.sources.emoji import CLASS_NAMES as GROUPS
from trainer.data.sources.emoji import SKIPPED
from trainer.data.sources.pictures import centre_square, decode, flatten, to_array
from trainer.data.sources.selection import Item, select
from trainer.settings import Half, Split

SIDE = 64
LICENCE = (
    "Apache-2.0 (Noto Emoji, Google); CC-BY-4.0 (Twemoji, Twitter, Inc. and other contributors); "
    "MIT (Fluent Emoji, Microsoft)"
)


class Style(NamedTuple):
    """Pictures named after their code points, in one folder of a package."""

    name: str
    package: str  # as `npm pack` takes it
    patterns: tuple[str, ...]  # of the file that makes, and of the folder that `npm install` makes
    folder: str  # of the pictures in the package


STYLES = (
    Style(
        "Noto", "emoji-datasource-google@16.0.0",
        ("emoji-datasource-google-*.tgz", "node_modules/emoji-datasource-google"), "/img/google/64/",
    ),
    Style(
        "Twemoji", "emoji-datasource-twitter@16.0.0",
        ("emoji-datasource-twitter-*.tgz", "node_modules/emoji-datasource-twitter"), "/img/twitter/64/",
    ),
    Style(
        "Fluent", "@lobehub/fluent-emoji-3d@1.1.0",
        ("lobehub-fluent-emoji-3d-*.tgz", "node_modules/@lobehub/fluent-emoji-3d"), "/assets/",
    ),
)  # fmt: skip
CLASS_NAMES = tuple(f"{style.name}: {group}" for style in STYLES for group in GROUPS)
INDEX = "/emoji.json"  # of the first package: the group of every emoji

CodePoints = tuple[int, ...]
Meaning = tuple[int, str]  # group, concept


def read_emoji64(source: Path | None = None, split: Split = "train", half: Half | None = None) -> ImageSet:
    """RGB [N, 64, 64, 3]. source: a folder that holds the three packages, packed or installed. Raises DataError."""
    places = find_packages(source)
    wanted = {style.name: read_files(place, _wanted(style)) for style, place in zip(STYLES, places, strict=True)}
    meanings = read_index(wanted[STYLES[0].name], places[0])
    items = (
        item
        for place, (number, style) in zip(places, enumerate(STYLES), strict=True)
        for item in _items(wanted[style.name], style, number, meanings, place)
    )
    images, labels = select(items, split, half)
    name, origin = (f"emoji64-{half}", f", half {half}") if half else ("emoji64", "")
    packages = ", ".join(style.package.rpartition("@")[0] for style in STYLES)
    return ImageSet(name, images, labels, CLASS_NAMES, LICENCE, f"{packages}, {split} split{origin}")


def find_packages(source: Path | None) -> list[Path]:
    """Where the package of every style is. Raises DataError that says how to fetch those that are missing."""
    if source is not None and not source.is_dir():
        raise DataError(f"{source} is not a folder; --source names one that holds the packages of {_styles()}")
    folders = USUAL_FOLDERS if source is None else (source,)
    found = [first_match(folders, style.patterns) for style in STYLES]
    if missing := [style for style, place in zip(STYLES, found, strict=True) if place is None]:
        commands = " && ".join(f"npm pack {style.package}" for style in missing)
        raise DataError(
            f"emoji64 needs the npm packages of {_styles()}, and {' and '.join(style.name for style in missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: run `{commands}` here or in runs/data, "
            "or name the folder that holds them: --source DIR"
        )
    return [place for place in found if place is not None]


def _styles() -> str:
    return ", ".join(style.name for style in STYLES)


def _wanted(style: Style) -> Callable[[str], bool]:
    return lambda name: style.folder in name or (style is STYLES[0] and name.endswith(INDEX))


def code_points(name: str) -> CodePoints:
    """From "00A9-FE0F" to (0xA9,), without variation selectors, which some packages leave out. Raises ValueError."""
    points = (int(part, 16) for part in name.replace("_", "-").split("-"))
    return tuple(point for point in points if point != 0xFE0F)


def read_index(files: Mapping[str, bytes], source: Path) -> dict[CodePoints, Meaning]:
    """Group and concept of every emoji and of its skin tones. Raises DataError."""
    content = next((content for name, content in files.items() if name.endswith(INDEX)), None)
    if content is None:
        raise DataError(f"{source} holds no emoji.json; fetch it again: npm pack {STYLES[0].package}")
    meanings: dict[CodePoints, Meaning] = {}
    try:
        for entry in json.loads(content):
            if entry["category"] == SKIPPED:
                continue
            concept, group = entry["unified"], GROUPS.index(entry["category"])
            tones = (tone["unified"] for tone in entry.get("skin_variations", {}).values())
            meanings |= {code_points(one): (group, concept) for one in (concept, *tones)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source}: emoji.json is not the index this reader knows ({error!r})") from error
    return meanings


def _items(
    files: Mapping[str, bytes], style: Style, number: int, meanings: Mapping[CodePoints, Meaning], source: Path
) -> Iterator[Item]:
    """The pictures of one style that the index knows. Raises DataError when there are none."""
    known = 0
    for name, content in files.items():
        stem = Path(name).stem
        if style.folder not in name or (meaning := _meaning(stem, meanings)) is None:
            continue
        known += 1
        group, concept = meaning
        where = f"{source}: {name}"
        image = flatten(decode(content, where), where, gray=False)
        yield Item(number * len(GROUPS) + group, concept, to_array(centre_square(image, SIDE)))
    if not known:
        raise DataError(f"{source} holds no pictures of {style.name}; fetch it again: npm pack {style.package}")


def _meaning(stem: str, meanings: Mapping[CodePoints, Meaning]) -> Meaning | None:
    try:
        return meanings.get(code_points(stem))
    except ValueError:  # a file that is not named after code points
        return None
