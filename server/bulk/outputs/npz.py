"""NumPy's archive: images uint8 [N, H, W, C], seeds int64 [N], labels int64 [N] (-1: no class), recipe (a JSON text),
and of orders that have them, guidance float32 [N] and inputs [N], the names of the pictures that were enlarged.

EDM's and guided diffusion's tools call the images `arr_0`; here they have the name of what they are.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fewstep.card import replacing
from server.bulk.order import Order
from server.bulk.outputs.kind import Chunks, Kind

DATE = (1980, 1, 1, 0, 0, 0)  # fixed: the same order gives the same bytes


def write(out: Path, order: Order, file: int, chunks: Chunks) -> None:
    """Chunk by chunk: a million images need no memory."""
    channels, height, width = order.manifest.image_shape
    count = order.seeds.count
    with replacing(out) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        with _member(archive, "images") as member:
            _header(member, np.dtype(np.uint8), (count, height, width, channels))
            for _, pixels in chunks:
                member.write(np.ascontiguousarray(pixels).data)
        for index, name in enumerate(("seeds", "labels")):
            with _member(archive, name) as member:
                _header(member, np.dtype(np.int64), (count,))
                for part in _columns(order, index):
                    member.write(part.data)
        if order.guidance is not None:
            with _member(archive, "guidance") as member:
                np.lib.format.write_array(member, np.full(count, order.guidance, np.float32), allow_pickle=False)
        if order.inputs is not None:
            with _member(archive, "inputs") as member:
                np.lib.format.write_array(member, np.array(order.inputs.names), allow_pickle=False)
        with _member(archive, "recipe") as member:
            np.lib.format.write_array(member, np.array(json.dumps(order.recipe())), allow_pickle=False)


def _columns(order: Order, index: int) -> Iterator[NDArray[np.int64]]:
    for number in range(order.chunks):
        request = order.request(number * order.chunk, order.chunk)
        yield np.array((request.seeds, request.labels)[index], np.int64)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(zipfile.ZipInfo(f"{name}.npy", DATE), "w", force_zip64=True)


def _header(member: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    buffer = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    member.write(buffer.getvalue())


def recipe(out: Path) -> dict[str, Any] | None:
    with zipfile.ZipFile(out) as archive:
        if "recipe.npy" not in archive.namelist():
            return None
        check_whole(archive)
        with archive.open("recipe.npy") as member:
            return json.loads(str(np.lib.format.read_array(member, allow_pickle=False)))


def check_whole(archive: zipfile.ZipFile) -> None:
    """Raise BadZipFile where the file's beginning is missing: the list of its members stands at the end."""
    if min(member.header_offset for member in archive.infolist()) != 0:
        raise zipfile.BadZipFile("its beginning is missing")


KIND = Kind(".npz", "NumPy arrays images, seeds, labels", write, recipe)
