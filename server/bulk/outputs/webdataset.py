"""WebDataset: tar files of about a gigabyte, NAME-000000.tar and so on, with SEED.png, SEED.cls and SEED.json for each
image, and generate.json beside them. Without classes there is no .cls."""

import io
import json
import tarfile
from pathlib import Path

from export.manifest import plain_name
from fewstep.card import replacing
from server.bulk.order import Order, Picture
from server.bulk.outputs import folder
from server.bulk.outputs.kind import Chunks, Kind

SHARD_BYTES = 2**30
BLOCK = 512  # of a tar file: a header, and what contents are padded to


def shard_images(shape: tuple[int, int, int]) -> int:
    """How many images of (C, H, W) a gigabyte holds if PNG saves nothing."""
    channels, height, width = shape
    png = -(-(channels * height * width + 1024) // BLOCK) * BLOCK
    return max(1, SHARD_BYTES // (png + 5 * BLOCK))


def write(out: Path, order: Order, file: int, chunks: Chunks) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (
        replacing(out / name_of(order, file)) as target,
        tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for number, pixels in chunks:
            for picture in order.pictures(number, pixels):
                _add(archive, folder.name_of(order, picture.seed), picture)


def name_of(order: Order, file: int) -> str:
    return f"{plain_name(order.manifest.name)}-{file:06d}.tar"


def names(order: Order, file: int, chunks: range) -> tuple[str]:
    return (name_of(order, file),)


def _add(archive: tarfile.TarFile, name: str, picture: Picture) -> None:
    contents = {"png": picture.png, "json": json.dumps(picture.facts).encode()}
    if picture.label >= 0:
        contents["cls"] = str(picture.label).encode()
    for suffix in sorted(contents):
        member = tarfile.TarInfo(f"{name}.{suffix}")  # its time is 0: the same order gives the same bytes
        member.size = len(contents[suffix])
        archive.addfile(member, io.BytesIO(contents[suffix]))


KIND = Kind("", "WebDataset shards in a folder, of about 1 GB", write, folder.recipe, folder.finish, names=names)
