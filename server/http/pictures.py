"""Decode an untrusted picture: a file's bytes -> uint8 pixels of exactly one size, or PictureError.

- PNG, JPEG (baseline or progressive) and WebP are read, known by their first bytes; Pillow decodes. The size is read
  from the header and checked before a pixel is decoded: at most MAX_PIXELS.
- A picture of another size is made to fit: its middle square, upright as EXIF says, is resized by Lanczos' filter, or a
  mask's by taking the nearest pixel. A picture of the right size keeps its pixels.
- The file must be whole: PNG checksums are right, and its pixels are as many bytes as the header asks for; a JPEG's
  pixels do not depend on what follows them (`_jpeg`); libwebp refuses a WebP that is short.
- Texts, profiles and gamma are not used. From a PNG they are removed before Pillow reads it, so none is inflated.
  An animated PNG counts as its still image, an animated WebP as its first frame.
- 16-bit gray is divided by 257 and rounded; 16-bit colour and alpha keep their upper 8 bits. CMYK and YCCK (inverted,
  as Adobe writes them) become RGB without a profile. Colour becomes gray by ITU-R 601-2 luma; gray is repeated as RGB.
- Alpha must be opaque everywhere in that square. A gray or RGB PNG of 2, 4 or 16 bits must not name a transparent
  colour at all.
"""

import hashlib
import io
import re
import struct
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from fewstep.pixels import Pixels
from server.http.picture_files import MAX_FILE_BYTES, MODES, REPAINTED_FROM, PictureError, own_bytes, too_long

MAX_PIXELS = 2**24  # such as 4096x4096: up to 280 MB while it is decoded, and half a second
# Bits of a WebP's header at which width and height begin, counted from byte 20; their mask; what is added to them.
WEBP_SIZES = {b"VP8X": (32, 56, 2**24 - 1, 1), b"VP8L": (8, 22, 2**14 - 1, 1), b"VP8 ": (48, 64, 2**14 - 1, 0)}
MAX_SCANS, MAX_SEGMENTS = 100, 1_000  # of a JPEG: each costs time; encoders write about ten and thirty
MAX_SCANNED = 12 * MAX_PIXELS  # pixels of a JPEG times its scans: encoders write ten
MAX_RESTARTS = 20_000  # intervals of a JPEG; cameras write one for each row of blocks, or each few blocks
MAX_CHUNKS = 10_000  # of a PNG; encoders write pixels in pieces of 8 KiB or more
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
INFLATED_BYTES = 2**20  # of a PNG's pixels, in one piece
LARGE_PIXELS = 2**20  # a picture of more is decoded while no other such is, so that they take the memory of one
LARGE_ONES = threading.Lock()
FILLER = b"\xa5" * 64  # no marker; read as pixels, it differs from the gray that libjpeg puts where none are
EXIF, BYTE_ORDERS = b"Exif\0\0", {b"II*\0": "<", b"MM\0*": ">"}
ORIENTATION, SHORT = 0x0112, 3  # the tag, and the type that its value has (EXIF 2.32, section 4.6.4)
TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), start=2))  # by EXIF's orientation; 1 is upright


def decode(data: bytes, resolution: int, channels: int) -> Pixels:
    """A PNG, JPEG or WebP file -> uint8 [resolution, resolution, channels], channels 1 or 3. Raises PictureError."""
    lanczos = Image.Resampling.LANCZOS
    return _decoded(data, resolution, lambda image: _opaque(image).convert(MODES[channels]), lanczos)


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

    return _decoded(data, resolution, gray, Image.Resampling.NEAREST)[..., 0] >= REPAINTED_FROM


def _decoded(
    data: bytes, resolution: int, converted: Callable[[Image.Image], Image.Image], filter: Image.Resampling
) -> Pixels:
    """uint8 [resolution, resolution, C] of the middle square that `converted` makes. Raises PictureError."""
    most = max(MAX_FILE_BYTES, own_bytes(resolution))
    if len(data) > most:
        raise PictureError(too_long(most))
    try:
        image, check = _opened(data)
        with LARGE_ONES if image.width * image.height > LARGE_PIXELS else nullcontext():
            check()
            pixels = converted(image.crop(_middle(image)))
        if (orientation := _orientation(image)) in TURNS:
            pixels = pixels.transpose(TURNS[orientation])
        if pixels.width != resolution:
            pixels = pixels.resize((resolution, resolution), filter)
        return np.array(pixels).reshape(resolution, resolution, -1)
    except PictureError:
        raise
    except Exception as error:  # Pillow raises errors of nearly every kind when a file is damaged
        raise PictureError(DAMAGED) from error


def _opened(data: bytes) -> tuple[Image.Image, Callable[[], object]]:
    """A picture whose header has been read and whose size may be, and what checks that its pixels are all there."""
    if data.startswith(SIGNATURE):
        chunks = _png_chunks(data)
        kept = b"".join(chunk for name in PNG_KEPT for chunk in chunks.get(name, []))
        image = PngImagePlugin.PngImageFile(io.BytesIO(SIGNATURE + kept))
        check = partial(_check_png, image, chunks)
    elif data.startswith(b"\xff\xd8\xff"):
        data, exif = _without_exif(data)
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        image.info["exif"] = exif
        check = partial(_check_jpeg, image, data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_size(_webp_size(data))  # Pillow reserves memory for the canvas when it reads the header
        image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
        check = image.load
    else:
        raise PictureError("is not a PNG, JPEG or WebP; other formats are not read")
    _check_size(image.size)
    return image, check


def _check_png(image: Image.Image, chunks: Mapping[bytes, Sequence[bytes]]) -> None:
    header, stream = chunks[b"IHDR"][0], b"".join(chunk[8:-4] for chunk in chunks[b"IDAT"])
    depth, colour, interlaced = header[16], header[17], header[20]
    length = 0
    for x, y, right, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = len(range(x, image.width, right)), len(range(y, image.height, down))
        length += rows * (1 + -(-columns * depth * PNG_SAMPLES[colour] // 8)) if columns else 0  # 1: the filter
    if not _inflates_to(stream, length):
        raise PictureError("is damaged: it does not hold the pixels that its header announces")
    if b"tRNS" in chunks and colour in (0, 2) and depth in (2, 4, 16):  # Pillow compares it with scaled levels
        raise PictureError(f"names a transparent colour; {FLATTEN}")
    if colour == 3 and np.asarray(image).max() >= (len(chunks[b"PLTE"][0]) - 12) // 3:
        raise PictureError("is damaged: its palette is too short")


def _inflates_to(stream: bytes, length: int) -> bool:
    """Whether a zlib stream is whole and holds exactly so many bytes; no more of them are kept than one piece."""
    inflate, left = zlib.decompressobj(), length + 1
    while left and not inflate.eof:
        piece = inflate.decompress(stream, min(left, INFLATED_BYTES))
        stream = inflate.unconsumed_tail
        if not piece and not stream:
            break
        left -= len(piece)
    return inflate.eof and left == 1


def _png_chunks(data: bytes) -> dict[bytes, list[bytes]]:
    """Whole chunks by name, up to the end of the image: every one of the pixels', the first of the others."""
    chunks: dict[bytes, list[bytes]] = {}
    at = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        length, name = struct.unpack_from("!I4s", data, at) if len(data) >= at + 8 else (0, b"")
        chunk = data[at : at + length + 12]  # length, name, content, and the checksum of the latter two
        if len(chunk) < length + 12:
            raise PictureError("is cut off before its end")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
            raise PictureError("is damaged: a checksum in it is wrong")
        if name == b"IDAT" or name not in chunks:
            chunks.setdefault(name, []).append(chunk)
        at += len(chunk)
        if name == b"IEND":
            return chunks
    raise PictureError(f"has more than {MAX_CHUNKS} chunks; save it again as an ordinary PNG")


def _check_jpeg(image: Image.Image, data: bytes) -> None:
    """libjpeg makes missing pixels up without an error. Decoding again, with other bytes in their place, finds them."""
    filled = _with_filler(data, *image.size)
    if _digest(image) != _digest(JpegImagePlugin.JpegImageFile(io.BytesIO(filled))):
        raise PictureError("is damaged: some of its pixels are missing")


def _without_exif(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG without the segments that hold EXIF or XMP (APP1), and the first EXIF among them.

    Pillow would read every entry of every segment, which takes seconds, and warn of each damaged one.
    """
    parts, exif, begin, at, segments = [], b"", 0, 2, 0
    while (marker := JPEG_MARKER.match(data, at)) and marker[2] != b"\xda":
        start, at = marker.start(1), marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
        segments += 1
        if segments > MAX_SEGMENTS:
            raise PictureError(f"has more than {MAX_SEGMENTS} segments; save it as a baseline JPEG")
        if marker[2] == b"\xe1":
            content = data[marker.end() + 2 : at]
            exif = exif or (content if content.startswith(EXIF) else b"")
            parts.append(data[begin:start])
            begin = at
    return b"".join([*parts, data[begin:]]), exif


def _digest(image: Image.Image) -> bytes:
    """A digest of the pixels. Comparing the pixels themselves would hold two copies more."""
    return hashlib.sha256(image.tobytes()).digest()


def _with_filler(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG with FILLER behind the compressed pixels of each scan and restart interval, where none is read."""
    blocks, most_scans = (width // 8 + 1) * (height // 8 + 1), min(MAX_SCANS, MAX_SCANNED // (width * height))
    parts, at, restarts = [data[:2]], 2, -1  # restarts: in the scan at this place; -1 outside of one
    segments, components, scanned = 0, 0, []  # scanned: the components of each scan
    while (marker := JPEG_MARKER.match(data, at)) and segments < MAX_SEGMENTS:
        code, start = marker[2][0], marker.end()
        parts += [data[at : marker.start(1)], FILLER * (restarts >= 0)]
        if 0xD0 <= code <= 0xD7:
            if code != 0xD0 + restarts % 8 or restarts > blocks:
                raise PictureError("is damaged: some of its pixels are missing")
            if restarts > MAX_RESTARTS:
                raise PictureError(f"has more than {MAX_RESTARTS} restart intervals; save it without them")
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
        if len(scanned) > most_scans:
            break
    if marker:
        raise PictureError(f"has more than {most_scans} scans or {MAX_SEGMENTS} segments; save it as a baseline JPEG")
    raise PictureError("is cut off before its end")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Of the canvas, as the header says."""
    head = int.from_bytes(data[20:30], "little")
    width_at, height_at, mask, added = WEBP_SIZES[data[12:16]]
    return (head >> width_at & mask) + added, (head >> height_at & mask) + added


def _orientation(image: Image.Image) -> int:
    """1 to 8, of an image whose header has been read; 1: upright, or not said."""
    exif = image.info.get("exif", b"").removeprefix(EXIF)
    order = BYTE_ORDERS.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for tag, kind, values, short in struct.iter_unpack(f"{order}HHIH2x", exif[at + 2 : at + 2 + 12 * count]):
            if tag == ORIENTATION:
                return short if (kind, values) == (SHORT, 1) and short in TURNS else 1
    except struct.error:  # it is cut off
        pass
    return 1


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise PictureError(f"has {width}x{height} pixels; a picture has at most {MAX_PIXELS}, such as 4096x4096")


def _middle(image: Image.Image) -> tuple[int, int, int, int]:
    """The middle square of an image, as a box of it; of two, the upper or left one as the upright picture shows it."""
    orientation, side = _orientation(image), min(image.size)
    left = (image.width - side + (orientation in (2, 3, 7, 8))) // 2  # these look from the right,
    top = (image.height - side + (orientation in (3, 4, 6, 7))) // 2  # and these from below
    return left, top, left + side, top + side


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
