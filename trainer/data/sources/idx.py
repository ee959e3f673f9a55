"""IDX files, the format of MNIST: a magic number, the sizes as big-endian 32-bit integers, then bytes."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.format import DataError, ImageSet

_UNSIGNED_BYTES = 0x08


def read_idx(
    images: Path,
    labels: Path,
    *,
    name: str | None = None,
    licence: str = "not stated",
    source: str = "IDX files",
    pad: bool = False,
    class_names: Sequence[str] = (),
) -> ImageSet:
    """An images-idx3 and a labels-idx1 file, gzipped or not, as gray images [N, H, W, 1].

    pad: surround with zeros up to the next power of two, 28 to 32, so that a U-Net can halve the size.
    class_names: without them classes are "0", "1", ... Raises DataError that names the file.
    """
    pixels, classes = read_idx_file(images, dimensions=3), read_idx_file(labels, dimensions=1)
    if len(pixels) != len(classes):
        raise DataError(f"{images} has {len(pixels)} images but {labels} has {len(classes)} labels")
    if not len(pixels):
        raise DataError(f"{images} holds no images")
    if pad:
        pixels = pad_to_power_of_two(pixels)
    count = int(classes.max()) + 1
    if class_names and len(class_names) < count:
        raise DataError(f"{labels} has {count} classes but {len(class_names)} class names were given")
    names = tuple(class_names) or tuple(str(index) for index in range(count))
    return ImageSet(name or images.stem, pixels[..., None], classes.astype(np.int32), names, licence, source)


def read_idx_file(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes with `dimensions` axes. Raises DataError that names the file."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, _UNSIGNED_BYTES, dimensions)):
        raise DataError(f"{path} is not an IDX file of unsigned bytes with {dimensions} dimension(s)")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "longer than its header says"
        raise DataError(f"{path} is {state}: {len(content)} bytes instead of {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def pad_to_power_of_two(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, H, W] -> [N, S, S] with zeros around, S the next power of two; an odd pixel goes to the end."""
    count, height, width = map(int, pixels.shape)
    side = 1 << (max(height, width, 1) - 1).bit_length()
    top, left = (side - height) // 2, (side - width) // 2
    padded = np.zeros((count, side, side), np.uint8)
    padded[:, top : top + height, left : left + width] = pixels
    return padded
