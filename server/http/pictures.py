"""Decode an untrusted picture: base64 or a file's bytes -> uint8 pixels of exactly one size, or PictureError.

- PNG, JPEG (baseline or progressive) and WebP are read, known by their first bytes; Pillow decodes. The size is read
  from the header and checked, after EXIF's orientation has been applied to it, before a pixel is decoded.
- The file must be whole: PNG checksums are right, and its pixels are as many bytes as the header asks for; a JPEG's
  pixels do not depend on what follows them (`_jpeg`); libwebp refuses a WebP that is short.
- Texts, profiles and gamma are not used. From a PNG they are removed before Pillow reads it, so none is inflated.
  An animated PNG counts as its still image, an animated WebP as its first frame.
- 16-bit gray is divided by 257 and rounded; 16-bit colour and alpha keep their upper 8 bits. CMYK and YCCK (inverted,
  as Adobe writes them) become RGB without a profile. Colour becomes gray by ITU-R 601-2 luma; gray is repeated as RGB.
- Alpha must be opaque everywhere. A gray or RGB PNG of 2, 4 or 16 bits must not name a transparent colour at all.
"""

import base64
import io
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from fewstep.pixels import Pixels

REPAINTED_FROM = 128  # gray values of a mask from here on are made again; below, the image is kept (as in diffusers)
MODES = {1: "L", 3: "RGB"}  # Pillow's name by channels
PREFIX = re.compile("data:image/(?:png|jpeg|webp);base64,", re.IGNORECASE | re.ASCII)
OTHER_BYTES = 65_536  # room for what is no pixel: EXIF with its thumbnail, a colour profile, texts
# Bits of a WebP's header at which width and height begin, counted from byte 20; their mask; what is added to them.
WEBP_SIZES = {b"VP8X": (32, 56, 2**24 - 1, 1), b"VP8L": (8, 22, 2**14 - 1, 1), b"VP8 ": (48, 64, 2**14 - 1, 0)}
MAX_CANVAS = 2**24  # pixels: Pillow reserves memory for a WebP's canvas when it reads the header
MAX_SCANS, MAX_SEGMENTS = 100, 1_000  # of a JPEG: each costs time; encoders write about ten and thirty
FLATTEN = "flatten it onto a background first"
DAMAGED = "is damaged, or of a kind that is not read; save it again as an ordinary PNG, JPEG or WebP"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = (b"IHDR", b"eXIf", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # header, EXIF, palette, transparency, pixels, end
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by colour type: gray, RGB, palette, gray + alpha, RGBA
# The passes of an interlaced PNG: first column and row, steps between columns and rows.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Compressed pixels, fill bytes, code.
JPEG_MARKER = re.compile(rb"(?:[^\xff]++|\xff++\x00)*+(\xff++)([^\x00])", re.DOTALL)
SOF_READ, SOF_REFUSED = b"\xc0\xc1\xc2", b"\xc3\xc5\xc6\xc7\xc9\xca\xcb\xcd\xce\xcf"  # lossless, arithmetic, ...
FILLER = b"\xa5" * 64  # no marker; read as pixels, it differs from the gray that libjpeg puts where none are
TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), start=2))  # by EXIF's orientation; 1 is upright


class PictureError(ValueError):
    """Why a picture is refused: the end of a sentence that begins with the field's name."""


def max_base64(resolution: int) -> int:
    """The longest text that is taken: the largest PNG (RGBA of 16 bits that does not shrink) and OTHER_BYTES."""
    filtered = resolution * (8 * resolution + 2)  # 2: an interlaced PNG has up to twice as many rows
    return len("data:image/jpeg;base64,") + 4 * -(-(filtered + filtered // 1_000 + OTHER_BYTES) // 3)


def decode_base64(text: str, resolution: int, channels: int) -> Pixels:
    """As `decode`, from base64 without line breaks, alone or after data:image/png;base64, (or jpeg, or webp)."""
    longest = max_base64(resolution)
    if len(text) > longest:
        raise PictureError(f"is longer than {longest} characters, which is enough for {resolution}x{resolution} pixels")
    prefix = PREFIX.match(text)
    try:
        data = base64.b64decode(text[prefix.end() :] if prefix else text, validate=True)
    except ValueError as error:
        raise PictureError("is not base64 of a picture; send a file's bytes as base64 without line breaks") from error
    return decode(data, resolution, channels)


def decode(data: bytes, resolution: int, channels: int) -> Pixels:
    """A PNG, JPEG or WebP file -> uint8 [resolution, resolution, channels], channels 1 or 3. Raises PictureError."""
    return _decoded(data, resolution, lambda image: _opaque(image).convert(MODES[channels]))


def decode_mask(data: bytes, resolution: int) -> NDArray[np.bool_]:
    """A PNG, JPEG or WebP file -> bool [resolution, resolution]: which pixels are made again. Raises PictureError.

    Where some pixel of it is transparent, these are the pixels of an alpha below REPAINTED_FROM, as in OpenAI's API;
    else those of a gray value from REPAINTED_FROM on.
    """

    def gray(image: Image.Image) -> Image.Image:
        if "A" in image.getbands() or "transparency" in image.info:
            alpha = image.convert("RGBA").getchannel("A")
            if alpha.getextrema() != (255, 255):
                return alpha.point([255] * REPAINTED_FROM + [0] * (256 - REPAINTED_FROM))
        return _opaque(image).convert("L")

    return _decoded(data, resolution, gray)[..., 0] >= REPAINTED_FROM


def _decoded(data: bytes, resolution: int, converted: Callable[[Image.Image], Image.Image]) -> Pixels:
    """uint8 [resolution, resolution, C] of the picture that `converted` makes. Raises PictureError."""
    try:
        if data.startswith(SIGNATURE):
            image = _png(data, resolution)
        elif data.startswith(b"\xff\xd8\xff"):
            image = _jpeg(data, resolution)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            image = _webp(data, resolution)
        else:
            raise PictureError("is not a PNG, JPEG or WebP; other formats are not read")
        pixels = converted(image)
        if (orientation := _orientation(image)) in TURNS:
            pixels = pixels.transpose(TURNS[orientation])
        return np.array(pixels).reshape(resolution, resolution, -1)
    except PictureError:
        raise
    except Exception as error:  # Pillow raises errors of nearly every kind when a file is damaged
        raise PictureError(DAMAGED) from error


def _png(data: bytes, resolution: int) -> Image.Image:
    chunks = _png_chunks(data)
    kept = b"".join(chunk for name in PNG_KEPT for chunk in chunks.get(name, []))
    image = PngImagePlugin.PngImageFile(io.BytesIO(SIGNATURE + kept))
    _check_size(image.size, _orientation(image), resolution)
    header, stream = chunks[b"IHDR"][0], b"".join(chunk[8:-4] for chunk in chunks[b"IDAT"])
    depth, colour, interlaced = header[16], header[17], header[20]
    length = 0
    for x, y, right, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = len(range(x, resolution, right)), len(range(y, resolution, down))
        length += rows * (1 + -(-columns * depth * PNG_SAMPLES[colour] // 8)) if columns else 0  # 1: the filter
    inflate = zlib.decompressobj()
    if len(inflate.decompress(stream, length + 1)) != length or not inflate.eof:
        raise PictureError("is damaged: it does not hold the pixels that its header announces")
    if b"tRNS" in chunks and colour in (0, 2) and depth in (2, 4, 16):  # Pillow compares it with scaled levels
        raise PictureError(f"names a transparent colour; {FLATTEN}")
    if colour == 3 and np.asarray(image).max() >= (len(chunks[b"PLTE"][0]) - 12) // 3:
        raise PictureError("is damaged: its palette is too short")
    return image


def _png_chunks(data: bytes) -> dict[bytes, list[bytes]]:
    """Whole chunks by name, up to the end of the image: every one of the pixels', the first of the others."""
    chunks: dict[bytes, list[bytes]] = {}
    at = len(SIGNATURE)
    while b"IEND" not in chunks:
        length, name = struct.unpack_from("!I4s", data, at) if len(data) >= at + 8 else (0, b"")
        chunk = data[at : at + length + 12]  # length, name, content, and the checksum of the latter two
        if len(chunk) < length + 12:
            raise PictureError("is cut off before its end")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
            raise PictureError("is damaged: a checksum in it is wrong")
        if name == b"IDAT" or name not in chunks:
            chunks.setdefault(name, []).append(chunk)
        at += len(chunk)
    return chunks


def _jpeg(data: bytes, resolution: int) -> Image.Image:
    """libjpeg makes missing pixels up without an error. Decoding again, with other bytes in their place, finds them."""
    filled = _with_filler(data, (resolution // 8 + 1) ** 2)
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    _check_size(image.size, _orientation(image), resolution)
    if image.tobytes() != JpegImagePlugin.JpegImageFile(io.BytesIO(filled)).tobytes():
        raise PictureError("is damaged: some of its pixels are missing")
    return image


def _with_filler(data: bytes, blocks: int) -> bytes:
    """The same JPEG with FILLER behind the compressed pixels of each scan and restart interval, where none is read."""
    parts, at, restarts = [data[:2]], 2, -1  # restarts: in the scan at this place; -1 outside of one
    segments, components, scanned = 0, 0, []  # scanned: the components of each scan
    while (marker := JPEG_MARKER.match(data, at)) and segments < MAX_SEGMENTS:
        code, start = marker[2][0], marker.end()
        parts += [data[at : marker.start(1)], FILLER * (restarts >= 0)]
        if 0xD0 <= code <= 0xD7:
            if code != 0xD0 + restarts % 8 or restarts > blocks:
                raise PictureError("is damaged: some of its pixels are missing")
            restarts, at = restarts + 1, start
            parts.append(data[at - 2 : at])
            continue
        if restarts >= 0:
            parts += [bytes((0xFF, 0xD0 + restarts % 8)), FILLER]  # an interval more
        at = start + int.from_bytes(data[start : start + 2])
        parts.append(data[marker.start(1) : at])
        restarts = 0 if code == 0xDA else -1
        segments += 1
        if code in SOF_REFUSED:
            raise PictureError("is an arithmetic or lossless JPEG; save it as baseline or progressive")
        if code in SOF_READ:
            components = data[start + 7]
        elif code == 0xDA:
            scanned.append(data[start + 3 : start + 3 + 2 * data[start + 2] : 2])
        elif code == 0xD9:
            if len(set(b"".join(scanned))) < components:
                raise PictureError("is damaged: some of its colours are missing")
            return b"".join(parts)
        if len(scanned) > MAX_SCANS:
            break
    if marker:
        raise PictureError(f"has more than {MAX_SCANS} scans or {MAX_SEGMENTS} segments; save it as a baseline JPEG")
    raise PictureError("is cut off before its end")


def _webp(data: bytes, resolution: int) -> Image.Image:
    head = int.from_bytes(data[20:30], "little")
    width_at, height_at, mask, added = WEBP_SIZES[data[12:16]]
    size = (head >> width_at & mask) + added, (head >> height_at & mask) + added
    if size[0] * size[1] > MAX_CANVAS:
        _check_size(size, 1, resolution)
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    _check_size(image.size, _orientation(image), resolution)
    return image


def _orientation(image: Image.Image) -> int:
    """1 to 8, of an image whose header has been read; 1: upright, or not said."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    value = exif.get(ExifTags.Base.Orientation)
    return value if value in TURNS else 1


def _check_size(size: tuple[int, int], orientation: int, resolution: int) -> None:
    width, height = size if orientation < 5 else size[::-1]  # from 5 on, rows become columns
    if (width, height) != (resolution, resolution):
        raise PictureError(f"has {width}x{height} pixels; this model's images have {resolution}x{resolution}")


def _opaque(image: Image.Image) -> Image.Image:
    """The same pixels with 8 bits and without alpha. Raises PictureError if one is transparent."""
    if image.mode.startswith("I"):  # 16-bit gray
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB") if image.mode == "CMYK" else image
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() != (255, 255):
        raise PictureError(f"is transparent in places; {FLATTEN}")
    return layered.convert("RGB")
