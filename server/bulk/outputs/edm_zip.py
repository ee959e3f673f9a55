"""The data set of EDM and StyleGAN: PNG files in a zip, and dataset.json with {"labels": [[file name, class], ...]}.

`fewstep train s.zip` and the panel read it. dataset.json also has our recipe, under "fewstep".
"""

import json
import zipfile
from pathlib import Path
from typing import IO, Any

from fewstep.card import replacing
from server.bulk.order import Order
from server.bulk.outputs.kind import Chunks, Kind
from server.bulk.outputs.npz import DATE, check_whole

INDEX = "dataset.json"


def write(out: Path, order: Order, file: int, chunks: Chunks) -> None:
    place = 0
    with replacing(out) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for number, pixels in chunks:
            for picture in order.pictures(number, pixels):
                archive.writestr(zipfile.ZipInfo(name_of(place), DATE), picture.png)
                place += 1
        with archive.open(zipfile.ZipInfo(INDEX, DATE), "w", force_zip64=True) as member:
            _index(member, order)


def name_of(place: int) -> str:
    """Of image number `place`, as EDM's own tool names it."""
    return f"{place // 1000:05d}/img{place:08d}.png"


def _index(member: IO[bytes], order: Order) -> None:
    """Piece by piece: of a million images it has 40 MB."""
    member.write(f'{{"fewstep": {json.dumps(order.recipe())}, "labels": '.encode())
    if order.manifest.classes:
        for place, (_, label) in enumerate(order.labels()):
            member.write(f'{", " if place else "["}["{name_of(place)}", {label}]'.encode())
        member.write(b"]}")
    else:
        member.write(b"null}")


def recipe(out: Path) -> dict[str, Any] | None:
    with zipfile.ZipFile(out) as archive:
        if INDEX not in archive.namelist():
            return None
        check_whole(archive)
        return json.loads(archive.read(INDEX)).get("fewstep")


KIND = Kind(".zip", "EDM's data set, PNG files and dataset.json", write, recipe)
