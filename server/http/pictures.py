"""A PNG from a stranger: base64 -> uint8 pixels of exactly one size, or a sentence that says what is wrong with it.

Nothing is inflated before the header has been read by hand and its size found right. Pillow then decodes a file that
is written here, of that header, the palette, and the pixels' chunks alone: text, profiles, animation and whatever else
a PNG may carry are gone by then.
"""

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from fewstep.pixels import Pixels

MODES = {1: "L", 3: "RGB"}  # Pillow's word by channels
PREFIX = "data:image/png;base64,"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
BEFORE_PIXELS = (b"IHDR", b"PLTE", b"tRNS")  # size and kind, palette, and which levels or entries are transparent
DEPTHS = (1, 2, 4, 8)  # bits per channel; Pillow cuts 16-bit gray at 255 where it should scale
OPAQUE = 255
_HEADER = struct.Struct("!IIBBBBB")  # width, height, depth, colour type, compression, filter, interlace
_CHUNK = struct.Struct("!I4s")  # length of the data, type; data and CRC follow
_CRC = struct.Struct("!I")
_SLACK = 4_096  # bytes for what is no pixel: chunk headers, a palette, short texts
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)  # Pillow's and zlib's


class PngError(ValueError):
    """Why a PNG is not taken: the end of a sentence that begins with its name."""


def max_base64(resolution: int) -> int:
    """Characters that a PNG of resolution x resolution takes at most: RGBA that does not shrink, with its prefix."""
    filtered = resolution * (4 * resolution + 1)
    return len(PREFIX) + 4 * -(-(filtered + filtered // 1_000 + _SLACK) // 3)


def decode(text: str, resolution: int, channels: int) -> Pixels:
    """uint8 [resolution, resolution, channels], channels 1 (gray, by ITU-R 601-2 luma) or 3. Raises PngError.

    Colour profiles and gamma are ignored. An alpha channel must be opaque; an animation counts as its still image.
    """
    longest = max_base64(resolution)
    if len(text) > longest:
        raise PngError(f"is longer than {longest} characters, which is enough for {resolution}x{resolution} pixels")
    try:
        data = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: a character beyond ASCII
        raise PngError("is not base64 of a PNG; send its bytes as base64 without line breaks") from error
    return _pixels(_cleaned(data, resolution), channels)


def _cleaned(data: bytes, resolution: int) -> bytes:
    """The same image without anything else in the file; its header has been checked."""
    if not data.startswith(SIGNATURE):
        raise PngError("is not a PNG; other formats are not read")
    kept: dict[bytes, bytes] = {}  # the first of each
    pixels: list[bytes] = []
    for name, content in _chunks(data):
        if not kept:
            if name != b"IHDR":
                raise PngError("is damaged: its first chunk is not a header")
            _check_header(content, resolution)
        if name == b"IDAT":
            pixels.append(content)
        elif name in BEFORE_PIXELS:
            kept.setdefault(name, content)
    if not pixels:
        raise PngError("is damaged: it holds no pixels")
    before = [_chunk(name, kept[name]) for name in BEFORE_PIXELS if name in kept]
    return b"".join([SIGNATURE, *before, _chunk(b"IDAT", b"".join(pixels)), _chunk(b"IEND", b"")])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) up to the end of the image; whatever lies behind that is not read."""
    at = len(SIGNATURE)
    while at + _CHUNK.size <= len(data):
        length, name = _CHUNK.unpack_from(data, at)
        start, end = at + _CHUNK.size, at + _CHUNK.size + length
        if end + _CRC.size > len(data):
            break
        if zlib.crc32(data[at + 4 : end]) != _CRC.unpack_from(data, end)[0]:
            raise PngError("is damaged: a checksum in it is wrong")
        if name == b"IEND":
            return
        yield name, data[start:end]
        at = end + _CRC.size
    raise PngError("is cut off before its end")


def _chunk(name: bytes, content: bytes) -> bytes:
    return _CHUNK.pack(len(content), name) + content + _CRC.pack(zlib.crc32(name + content))


def _check_header(content: bytes, resolution: int) -> None:
    if len(content) != _HEADER.size:
        raise PngError("is damaged: its header has another length than a PNG's")
    width, height, depth, *_ = _HEADER.unpack(content)
    if (width, height) != (resolution, resolution):
        raise PngError(f"has {width}x{height} pixels; this model's images have {resolution}x{resolution}")
    if depth not in DEPTHS:
        raise PngError(f"has {depth} bits per channel; save it with 8")


def _pixels(png: bytes, channels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            image.load()
            flat = _flat(image)
            return np.array(flat.convert(MODES[channels])).reshape(flat.height, flat.width, channels)
    except PngError:
        raise
    except _BROKEN as error:
        raise PngError("is damaged: its pixels cannot be read") from error


def _flat(image: Image.Image) -> Image.Image:
    """An image without alpha. Refuses one that is anywhere transparent: what lies behind is not ours to choose."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() != (OPAQUE, OPAQUE):
        raise PngError("is transparent in places; flatten it onto a background first")
    return layered.convert("RGB")
