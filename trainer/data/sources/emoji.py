"""Recipe `emoji`: Noto emoji on white, from the npm package `emoji-datasource-google`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data.format import DataError, ImageSet
from trainer.data.sources.archive import find_source, read_files
from trainer.data.sources.pictures import centre_square, decode, flatten, to_array
from trainer.data.sources.selection import Item, select
from trainer.settings import Split

ADVICE = (
    "Emoji come from an npm package: run `npm pack emoji-datasource-google@16.0.0`, "
    "then give --source emoji-datasource-google-16.0.0.tgz or the folder it unpacks to"
)
LICENCE = "Apache-2.0 (Noto Emoji, Google)"
CLASS_NAMES = (
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities",
    "Objects", "Symbols", "Flags",
)  # fmt: skip
SKIPPED = "Component"  # five skin and hair swatches: no pictures of their own
_PICTURES = "/img/google/64/"


def read_emoji(
    source: Path | None = None, split: Split = "train", *, resolution: int = 32, skin_tones: bool = False
) -> ImageSet:
    """RGB [N, resolution, resolution, 3]; a class is a Unicode group.

    skin_tones: also the five tones of each person. They are 61 % of all people, so by default only the neutral
    drawing is used. A concept and its tones are held out together. Raises DataError.
    """
    source = find_source(source, ("emoji-datasource-google-*.tgz", "node_modules/emoji-datasource-google"), ADVICE)
    files = read_files(source, lambda name: _PICTURES in name or name.endswith("/emoji.json"))
    indices = [content for name, content in files.items() if name.endswith("/emoji.json")]
    if len(indices) != 1:
        raise DataError(f"{source} holds {len(indices)} files emoji.json instead of one. {ADVICE}")
    try:
        entries: list[dict[str, Any]] = json.loads(indices[0])
        pictures = [picture for entry in entries for picture in _pictures(entry, skin_tones)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source}: emoji.json is not the index this reader knows ({error!r})") from error
    if resolution < 1:
        raise DataError(f"--resolution must be positive, not {resolution}")
    content = {name.rpartition("/")[2]: data for name, data in files.items() if _PICTURES in name}
    images, labels = select(_items(pictures, content, source, resolution), split)
    return ImageSet("emoji", images, labels, CLASS_NAMES, LICENCE, f"emoji-datasource-google, {split} split")


def _pictures(entry: dict[str, Any], skin_tones: bool) -> Iterator[tuple[int, str, str]]:
    """(label, concept, file name) of each drawing of one entry of emoji.json."""
    if entry["category"] == SKIPPED or not entry["has_img_google"]:
        return
    label = CLASS_NAMES.index(entry["category"])
    yield label, entry["unified"], entry["image"]
    for tone in entry.get("skin_variations", {}).values() if skin_tones else ():
        if tone["has_img_google"]:
            yield label, entry["unified"], tone["image"]


def _items(
    pictures: list[tuple[int, str, str]], content: dict[str, bytes], source: Path, resolution: int
) -> Iterator[Item]:
    for label, concept, file in sorted(pictures, key=lambda picture: picture[2]):
        if file not in content:
            raise DataError(f"{source} lacks {file}, which its emoji.json lists: it is incomplete, fetch it again")
        where = f"{source}: {file}"
        image = flatten(decode(content[file], where), where, gray=False)
        yield Item(label, concept, to_array(centre_square(image, resolution)))
