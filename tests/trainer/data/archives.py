"""Pictures and archives as the tests of data sources write them."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NO_INDEX = object()


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W], or [H, W, C] with one to four channels."""
    buffer = io.BytesIO()
    gray = pixels.ndim == 3 and pixels.shape[-1] == 1
    Image.fromarray(pixels[..., 0] if gray else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Uncompressed as .tar, with xz as .xz, else with gzip."""
    with tarfile.open(path, {".tar": "w", ".xz": "w:xz"}.get(path.suffix, "w:gz")) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def sample(row: int, pixels: np.ndarray, label: int) -> dict[str, bytes]:
    """The members of an image, as WebDataset has them."""
    return {f"{row:06d}.cls": str(label).encode(), f"{row:06d}.json": b"{}", f"{row:06d}.png": png(pixels)}


def write_shards(folder: Path, images: np.ndarray, labels: np.ndarray, each: int) -> None:
    """p-000000.tar, p-000001.tar, ... of `each` images uint8 [N, H, W, C] with labels [N]."""
    for number, first in enumerate(range(0, len(images), each)):
        members: dict[str, bytes] = {}
        for row in range(first, min(first + each, len(images))):
            members |= sample(row, images[row], int(labels[row]))
        write_tar(folder / f"p-{number:06d}.tar", members)


def edm_names(count: int) -> list[str]:
    """00000/img00000000.png, ..., as EDM names the pictures of its zip."""
    return [f"{number // 1000:05d}/img{number:08d}.png" for number in range(count)]


def write_edm(path: Path, images: np.ndarray, index: Any, compression: int = zipfile.ZIP_STORED) -> list[str]:
    """A zip as EDM writes it, with `index` as its dataset.json. Returns the names of its pictures."""
    names = edm_names(len(images))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, image in zip(names, images, strict=True):
            archive.writestr(name, png(image))
        if index is not NO_INDEX:
            archive.writestr("dataset.json", json.dumps(index))
    return names
