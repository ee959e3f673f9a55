"""Recipe `sprites`: 32x32 pixel-art tiles of Dungeon Crawl Stone Soup, from the source of Debian's `crawl`."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.data.format import DataError, ImageSet
from trainer.data.sources.archive import find_source, read_files
from trainer.data.sources.pictures import Colour, decode, flatten, to_array
from trainer.data.sources.selection import Item, select
from trainer.settings import Split

ADVICE = (
    "Sprites come from the source package of Debian's `crawl`: run `apt-get source --download-only crawl` "
    "(it needs a deb-src entry), then give --source crawl_*.orig.tar.xz or the folder it unpacks to"
)
LICENCE = "CC0-1.0 for most tiles, public domain for older ones (RLTiles); Dungeon Crawl Stone Soup contributors"
FOLDERS = {"mon": "monsters", "item": "items", "dngn": "dungeon"}
BACKGROUND: Colour = (20, 18, 28)  # dark, as in the game: the art is drawn for a dark floor
MAX_TRANSPARENT = 0.9  # emptier tiles are overlays (edges, sparks), not pictures of a thing
MIN_CONTRAST = 6.0  # standard deviation of the pixels, 0..255: flatter tiles are shadows and bare ground

_TILE = re.compile(r"(?:^|/)rltiles/(mon|item|dngn)/(.+\.png)$")
# Parts of a picture, which the game lays over others: segments of one creature, brands in the corner of an item,
# equipment and limbs of a monster, edges between two kinds of ground, and items not found yet (drawn as shadows).
_PARTS = re.compile(
    r"^tentacles/|^mutantbeast/|/draco-job-|brands/|/i-|overlay|uncollected|_wave_|_bord_|/shadow_|/grey_dirt_b[blr]"
)


def read_sprites(source: Path | None = None, split: Split = "train") -> ImageSet:
    """RGB [N, 32, 32, 3] from the orig tarball or the unpacked source. Raises DataError."""
    source = find_source(source, ("crawl_*.orig.tar.xz",), ADVICE)
    files = read_files(source, lambda name: _TILE.search(name) is not None)
    if not files:
        raise DataError(f"{source} holds no rltiles folder with tiles. {ADVICE}")
    images, labels = select(_items(files, source), split)
    return ImageSet("sprites", images, labels, tuple(FOLDERS.values()), LICENCE, f"crawl rltiles, {split} split")


def _items(files: dict[str, bytes], source: Path) -> Iterator[Item]:
    order = list(FOLDERS)
    for name, content in files.items():
        match = _TILE.search(name)
        assert match is not None, "read_files returns wanted names only"
        folder, tile = match.groups()
        where = f"{source}: {name}"
        if _PARTS.search(tile):
            continue
        image = decode(content, where)
        if image.size != (32, 32) or np.mean(np.asarray(image.convert("RGBA"))[..., 3] == 0) > MAX_TRANSPARENT:
            continue
        # brick_1.png, brick_2.png, ... are variants of one tile.
        concept = f"{folder}/{re.sub(r'[_-]?[0-9]+$', '', tile.removesuffix('.png'))}"
        pixels = to_array(flatten(image, where, gray=False, background=BACKGROUND))
        if pixels.std() >= MIN_CONTRAST:
            yield Item(order.index(folder), concept, pixels)
