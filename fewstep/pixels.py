"""Images in [-1, 1] <-> uint8 pixels <-> encoded bytes, and grids of images. Numpy, and Pillow for WebP and JPEG."""

import io
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [..., H, W, C] with C = 1 (gray), 3 (RGB)
Format = Literal["png", "webp", "jpeg", "npy"]
FORMATS: tuple[Format, ...] = get_args(Format)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: gray, gray and alpha, RGB, RGB and alpha
MEDIA_TYPES: dict[Format, str] = {
    "png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "npy": "application/x-npy",
}  # fmt: skip
KEYWORD = "fewstep"  # of the tEXt chunk by which an image can be made again
BEST_QUALITY = 100  # of JPEG where none is asked for; pixels still differ by a few levels


def to_pixels(images: NDArray[np.floating]) -> Pixels:
    """[B, C, H, W] nominally in [-1, 1] -> uint8 [B, H, W, C]; values outside are clipped."""
    scaled = images * 127.5
    scaled += 128.0  # EDM's rounding: 127.5 x + 128, truncated
    scaled.clip(0, 255, out=scaled)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


def from_pixels(pixels: Pixels) -> NDArray[np.float32]:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [-1, 1]."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(127.5) - 1


def encode(pixels: Pixels, format: Format, quality: int | None = None) -> bytes:
    """One image uint8 [H, W, C] as PNG, WebP, JPEG (C = 1 or 3), or an .npy file.

    quality: of WebP and JPEG, from 0 to 100; None: WebP is lossless, JPEG has BEST_QUALITY. Others are always lossless.
    """
    if format == "png":
        return _pngs(pixels[None])[0]
    buffer = io.BytesIO()
    if format == "npy":
        np.save(buffer, pixels, allow_pickle=False)
        return buffer.getvalue()
    from PIL import Image  # 20 ms to import, and few ask for these formats

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if format == "jpeg":
        image.save(buffer, "JPEG", quality=BEST_QUALITY if quality is None else quality, subsampling=0)
    elif quality is None:
        image.save(buffer, "WEBP", lossless=True, method=0)
    else:
        image.save(buffer, "WEBP", quality=quality, method=0)
    return buffer.getvalue()


def encode_pngs(images: Sequence[Pixels]) -> list[bytes]:
    """`encode(image, "png")` of each; small ones of one shape that follow each other take less time together."""
    return [png for _, same in groupby(images, lambda image: image.shape) for png in _pngs(np.array([*same]))]


def with_text(png: bytes, keyword: str, text: str) -> bytes:
    """The same PNG with a tEXt chunk behind its header (W3C PNG, section 11.3.3.2); what is no PNG stays as it is.

    keyword: 1 to 79 characters, ASCII. text: ASCII, without NUL.
    """
    if not png.startswith(_PNG_SIGNATURE):
        return png
    behind = len(_PNG_SIGNATURE) + 25  # the header's chunk has 25 bytes
    return png[:behind] + _chunk(b"tEXt", f"{keyword}\0{text}".encode("ascii")) + png[behind:]


def text_of(png: bytes, keyword: str) -> str | None:
    """The text of a PNG's first tEXt chunk with this keyword; None where there is none, or the file is no PNG."""
    at, prefix = len(_PNG_SIGNATURE), keyword.encode("ascii") + b"\0"
    while png.startswith(_PNG_SIGNATURE) and at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        content = png[at + 8 : at + 8 + length]
        if kind == b"tEXt" and content.startswith(prefix):
            return content[len(prefix) :].decode("latin-1")
        at += length + 12
    return None


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height as the header of a PNG says, which begins at byte 16."""
    width, height = struct.unpack_from(">II", png, 16)
    return width, height


def _pngs(images: Pixels) -> list[bytes]:
    """[B, H, W, C] as PNGs (W3C, third edition) of 8 bits a channel: differences to the row above, Huffman coded, runs
    shortened.

    Half of Pillow's time or less at its level 1, and files no larger: 18 us for 34 and 710 bytes for 710 (clothes,
    32x32, gray); 22 for 50 us, 875 for 991 bytes; 62 for 140 us, 4.3 for 4.7 kB; 320 for 1,330 us, 29.8 for 30.8 kB
    (squares of 32, 64 and 128 pixels from photographs, RGB). zlib's Huffman code alone takes 13 of the 18 us.
    """
    count, height, width, channels = images.shape
    rows = images.reshape(count, height, width * channels)
    filtered = np.empty((count, height, 1 + width * channels), np.uint8)
    filtered[:, :, 0] = 2  # the filter "Up"; what is above the first row counts as 0
    filtered[:, 0, 1:] = rows[:, 0]
    np.subtract(rows[:, 1:], rows[:, :-1], out=filtered[:, 1:, 1:])
    head = _png_head(width, height, channels)
    return [head + _chunk(b"IDAT", _deflated(data)) + _PNG_END for data in filtered]


def _deflated(data: NDArray[np.uint8]) -> bytes:
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return deflate.compress(data.data) + deflate.flush()


@lru_cache(maxsize=64)
def _png_head(width: int, height: int, channels: int) -> bytes:
    """What comes before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    return _PNG_SIGNATURE + _chunk(b"IHDR", header)


def _chunk(kind: bytes, data: bytes) -> bytes:
    content = kind + data
    return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))


_PNG_END = _chunk(b"IEND", b"")


def grid(pixels: Pixels, columns: int, gap: int = 0, background: int = 255) -> Pixels:
    """Tile [B, H, W, C] row by row into one image, with `gap` background pixels between tiles."""
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), background, dtype=np.uint8)
    for index, tile in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet
