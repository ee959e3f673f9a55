"""Untrusted pictures: whole ones come out exactly, all others are refused in a sentence at a bounded cost."""

import base64
import io
import struct
import tracemalloc
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fewstep.pixels import Pixels
from server.http.picture_files import MAX_FILE_BYTES, PictureError, from_base64, own_bytes
from server.http.pictures import MAX_CHUNKS, MAX_PIXELS, MAX_SCANS, SIGNATURE, decode, decode_mask

SIDE = 32
GRAY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 1), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
RGB = Image.fromarray(COLOUR)
RAMP = Image.linear_gradient("L").resize((SIDE, SIDE))
FORMATS = ["PNG", "JPEG", "WEBP"]


def saved(picture: Pixels | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + name + content + struct.pack("!I", zlib.crc32(name + content))


def header(width: int, height: int, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def file_of(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


def png(rows: int = SIDE, row: int = SIDE + 1, **fields: int) -> bytes:
    return file_of(header(SIDE, SIDE, **fields), chunk(b"IDAT", zlib.compress(bytes(row * rows))))


def sized(data: bytes, height: int) -> bytes:
    """A JPEG whose header announces another height."""
    at = next(at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return data[: at + 5] + struct.pack("!H", height) + data[at + 7 :]


def sentence(data: bytes | str, channels: int = 1) -> str:
    with pytest.raises(PictureError) as caught:
        decode(from_base64(data, SIDE) if isinstance(data, str) else data, SIDE, channels)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:image/JPEG;base64,", "data:Image/WebP;Base64,"])
def test_a_lossless_picture_comes_out_as_it_went_in(prefix: str):
    for picture, kind in ((GRAY, "PNG"), (COLOUR, "PNG"), (COLOUR, "WEBP")):
        decoded = decode(from_base64(prefix + text(saved(picture, kind, lossless=True)), SIDE), SIDE, picture.shape[-1])
        np.testing.assert_array_equal(decoded, picture)


def test_gray_becomes_colour_and_colour_becomes_luma():
    np.testing.assert_array_equal(decode(saved(GRAY), SIDE, 3), np.repeat(GRAY, 3, axis=2))
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(saved(COLOUR), SIDE, 1)[..., 0] - luma).max() <= 1


@pytest.mark.parametrize(
    ("mode", "options"),
    [("1", {}), ("P", {}), ("P", {"bits": 4}), ("LA", {}), ("RGBA", {}), ("L", {"transparency": 3}), ("RGB", {})]
    + [(mode, {"kind": "JPEG", "progressive": step}) for mode in ("L", "RGB", "CMYK") for step in (False, True)]
    + [("RGB", {"kind": "JPEG", "restart_marker_blocks": 1}), ("RGB", {"kind": "JPEG", "quality": 100})]
    + [("RGBA", {"kind": "WEBP", "lossless": True}), ("RGB", {"kind": "WEBP"})],
    ids=str,
)
def test_every_kind_that_is_opaque_is_read_as_pillow_reads_it(mode: str, options: dict[str, Any]):
    picture = Image.fromarray((COLOUR // 128 * 255).astype(np.uint8))
    picture = picture.quantize(8) if options.get("bits") else picture.convert(mode)
    data = saved(picture, **options)
    with Image.open(io.BytesIO(data)) as expected:
        np.testing.assert_array_equal(decode(data, SIDE, 3), np.asarray(expected.convert("RGB")))


def test_16_bit_gray_is_scaled_and_not_clipped():
    levels = np.linspace(0, 65_535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(levels)), SIDE, 1)[..., 0], np.round(levels / 257))
    assert decode(png(row=6 * SIDE + 1, depth=16, colour=2), SIDE, 3).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("depth, colour, row", [(1, 0, 4), (2, 0, 8), (4, 0, 16), (8, 4, 64), (16, 6, 256)])
def test_a_png_has_the_bytes_that_its_kind_takes(depth: int, colour: int, row: int):
    if colour == 0:
        assert not decode(png(row=row + 1, depth=depth, colour=colour), SIDE, 1).any()
    else:
        assert "transparent in places" in sentence(png(row=row + 1, depth=depth, colour=colour))
    passes = [4 * 5, 4 * 5, 4 * 9, 8 * 9, 8 * 17, 16 * 17, 16 * 33]  # rows times columns and a filter
    interlaced = zlib.compress(bytes(sum(passes)))
    assert not decode(file_of(header(SIDE, SIDE, interlace=1), chunk(b"IDAT", interlaced)), SIDE, 1).any()


@pytest.mark.parametrize("mode, kind", [("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("L", "PNG"), ("RGBA", "WEBP")])
def test_a_transparent_pixel_is_refused(mode: str, kind: str):
    if mode in ("P", "L"):
        data = saved(Image.new(mode, (SIDE, SIDE)), transparency=0)
    else:
        picture, alpha = RGB.convert(mode), Image.new("L", (SIDE, SIDE), 255)
        alpha.putpixel((3, 4), 254)
        picture.putalpha(alpha)
        data = saved(picture, kind, lossless=True)
    assert "flatten it onto a background" in sentence(data)
    key = file_of(header(SIDE, SIDE, 16), chunk(b"tRNS", bytes(2)), chunk(b"IDAT", zlib.compress(bytes(65 * SIDE))))
    assert "flatten it onto a background" in sentence(key)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exifs_orientation_is_applied_before_the_middle_is_cut_out(kind: str, orientation: int):
    turns = [lambda a: a, np.fliplr, lambda a: a[::-1, ::-1], np.flipud, lambda a: a.transpose(1, 0, 2)]
    turns += [lambda a: np.rot90(a, -1), lambda a: a[::-1, ::-1].transpose(1, 0, 2), np.rot90]
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, turned = (saved(RGB, kind, lossless=True, quality=90, **more) for more in ({}, {"exif": exif}))
    np.testing.assert_array_equal(decode(turned, SIDE, 3), turns[orientation - 1](decode(plain, SIDE, 3)))
    for width, height in ((SIDE + 3, SIDE), (SIDE, SIDE + 5)):
        wide = RGB.resize((width, height))
        plain, turned = (saved(wide, kind, lossless=True, quality=90, **more) for more in ({}, {"exif": exif}))
        with Image.open(io.BytesIO(plain)) as stored:
            upright = saved(np.ascontiguousarray(turns[orientation - 1](np.asarray(stored))))
        np.testing.assert_array_equal(decode(turned, SIDE, 3), decode(upright, SIDE, 3))


def damaged_exif(orientation: int, entries: int) -> bytes:
    """EXIF that says how the picture is turned, and then has entries whose values lie beyond its end."""
    said = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    beyond = (struct.pack(">HHII", 0x0200 + number, 7, 1_000, 2**24) for number in range(entries))
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1 + entries) + said + b"".join(beyond) + bytes(4)


@pytest.mark.parametrize("kind", FORMATS)
def test_of_exif_only_the_orientation_is_read(kind: str):
    xmp = b"\xff\xe1\x00\x1fhttp://ns.adobe.com/xap/1.0/\0"  # of the same kind of segment
    plain, turned = (saved(RGB, kind, lossless=True, **more) for more in ({}, {"exif": damaged_exif(3, 2_000)}))
    if kind == "JPEG":
        turned = turned[:2] + xmp + turned[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns of each entry, in the server's log
        np.testing.assert_array_equal(decode(turned, SIDE, 3), decode(plain, SIDE, 3)[::-1, ::-1])


@pytest.mark.parametrize(("width", "height"), [(SIDE, SIDE + 3), (100, 64), (7, 20), (1, 1), (1_400, 600)])
def test_of_another_size_the_middle_square_is_resized(width: int, height: int):
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8))
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    middle = picture.crop((left, top, left + side, top + side))
    expected = np.asarray(middle.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(decode(saved(picture), SIDE, 3), expected)
    gray = picture.convert("L")
    nearest = gray.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(decode_mask(saved(gray), SIDE), np.asarray(nearest) >= 128)


def test_what_is_cut_away_may_be_transparent_and_16_bits_and_palettes_are_resized_too():
    wide = Image.new("RGBA", (3 * SIDE, SIDE), (0, 0, 0, 0))
    wide.paste(RGB, (SIDE, 0))
    np.testing.assert_array_equal(decode(saved(wide), SIDE, 3), COLOUR)
    levels = Image.fromarray(np.full((50, 70), 257 * 99, np.uint16))
    assert (decode(saved(levels), SIDE, 1) == 99).all()
    palette = Image.new("RGB", (90, 40), (10, 200, 30)).quantize(4)
    assert (decode(saved(palette), SIDE, 3) == (10, 200, 30)).all()
    cmyk = saved(Image.new("RGB", (90, 40), (200, 20, 20)).convert("CMYK"), "JPEG")
    assert np.abs(decode(cmyk, SIDE, 3).astype(int) - (200, 20, 20)).max() <= 3


def test_a_photograph_of_12_megapixels_is_taken_and_one_beyond_the_bound_is_not():
    photograph = Image.linear_gradient("L").resize((4_032, 3_024)).convert("RGB")
    for options in ({"quality": 90}, {"quality": 90, "progressive": True}):
        assert decode(saved(photograph, "JPEG", **options), SIDE, 3).shape == (SIDE, SIDE, 3)
    beyond = saved(Image.new("L", (MAX_PIXELS // 4_096 + 1, 4_096)))
    assert "has 4097x4096 pixels; a picture has at most 16777216" in sentence(beyond)


def test_of_an_animation_the_first_picture_counts():
    for kind in ("PNG", "WEBP"):
        data = saved(RGB, kind, save_all=True, append_images=[RAMP.convert("RGB")], lossless=True)
        np.testing.assert_array_equal(decode(data, SIDE, 3), COLOUR)


def huge_webp(kind: bytes, size: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", 60) + size + bytes(60 - len(size))
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("data", "size"),
    [(file_of(header(*size)), size) for size in ((4_097, 4_096), (50_000, 50_000), (100_000, 10_000), (2**31 - 1, 1))]
    + [(sized(saved(RGB.resize((4_000, 32)), "JPEG"), 65_500), (4_000, 65_500))]
    + [
        (
            huge_webp(b"VP8X", bytes(4) + (99_999).to_bytes(3, "little") + (9_999).to_bytes(3, "little")),
            (100_000, 10_000),
        )
    ]
    + [(huge_webp(b"VP8L", b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little")), (16_383, 16_383))]
    + [(huge_webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 16_383, 9_999)), (16_383, 9_999))],
)
def test_too_large_a_picture_is_refused_before_a_pixel_is_decoded(data: bytes, size: tuple[int, int]):
    bomb = (
        data[:33] + chunk(b"IDAT", zlib.compress(bytes(2**22), 9)) + data[33:] if data.startswith(SIGNATURE) else data
    )
    tracemalloc.start()
    assert f"{size[0]}x{size[1]} pixels; a picture has at most" in sentence(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


def test_what_a_png_holds_beyond_its_pixels_is_not_inflated():
    bomb = b"key\0\0" + zlib.compress(bytes(10_000_000), 9)
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("Author", "nobody", "en", "")
    data = saved(GRAY, pnginfo=notes, icc_profile=b"profile" * 20, dpi=(300, 300))
    swollen = data[:33] + chunk(b"zTXt", bomb) + chunk(b"iCCP", bomb) + data[33:-12] + chunk(b"zTXt", bomb) + data[-12:]
    flood = png(rows=300_000)
    tracemalloc.start()
    np.testing.assert_array_equal(decode(swollen, SIDE, 1), GRAY)
    assert "does not hold the pixels" in sentence(flood)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


SCANS = saved(RAMP, "JPEG", progressive=True)
SCAN = SCANS[SCANS.rindex(b"\xff\xda") : -2]
NO_BASE64 = (
    "not base64!",
    "ïVBORw0KGgo=",
    "iVBORw0KGgo",
    "iVBO Rw0K",
    "file:///x",
    "\ud800",
    "data:image/gif;base64,AA==",
)
NO_PNG = (file_of(), file_of(header(SIDE, SIDE)), file_of(chunk(b"IHDR", bytes(5))), png(depth=3), png(colour=7))
BEYOND = zlib.compress((b"\0" + b"\2" * SIDE) * SIDE)  # indices of a palette of two colours
SHORT_PALETTE = file_of(header(SIDE, SIDE, colour=3), chunk(b"PLTE", bytes(6)), chunk(b"IDAT", BEYOND))
WRONG = {
    "is not base64": NO_BASE64,
    "has more than 3145728 bytes": ("A" * (4 * MAX_FILE_BYTES // 3 + 50), SIGNATURE + bytes(MAX_FILE_BYTES)),
    "more than 10000 chunks": (file_of(header(SIDE, SIDE), *[chunk(b"tEXt", b"")] * MAX_CHUNKS),),
    "other formats are not read": (b"", b"GIF89a" + bytes(40), b"RIFF"),
    "does not hold the pixels": [png(rows) for rows in (0, 1, 16, 31, 33)],
    "is damaged": (*NO_PNG, png(colour=3), file_of(header(SIDE, SIDE), chunk(b"IDAT", b"nonsense"))),
    "its palette is too short": (SHORT_PALETTE,),
    "checksum": (saved(GRAY).replace(b"IDAT", b"IDAX"),),
    "some of its pixels are missing": (saved(GRAY, "JPEG")[:-300] + b"\xff\xd9",),
    "more than 100 scans": (SCANS[:-2] + MAX_SCANS * SCAN + b"\xff\xd9",),
    "1000 segments": (SCANS[:2] + 2_000 * b"\xff\xe0\0\2" + SCANS[2:],),
    "arithmetic": (saved(RAMP, "JPEG").replace(b"\xff\xc0", b"\xff\xc9"),),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_said(words: str):
    for data in WRONG[words]:
        assert words in sentence(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_a_jpeg_with_fewer_rows_than_its_header_says_is_refused(options: dict[str, Any]):
    for picture in (RGB, RAMP):
        short = saved(picture.crop((0, 0, SIDE, 16)), "JPEG", **options)
        assert "missing" in sentence(sized(short, SIDE))


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_with_fewer_rows_than_its_header_says_is_refused(lossless: bool):
    data = bytearray(saved(RGB.crop((0, 0, SIDE, 16)), "WEBP", lossless=lossless))
    if lossless:  # 14 bits each of width - 1 and height - 1
        data[21:25] = struct.pack("<I", int.from_bytes(data[21:25], "little") & ~(0x3FFF << 14) | (SIDE - 1) << 14)
    else:
        data[28:30] = struct.pack("<H", SIDE)
    assert "is damaged" in sentence(bytes(data))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("resolution", [8, 32, 512])
def test_the_bound_has_room_for_the_worst_picture_of_the_size(kind: str, resolution: int):
    noise = np.random.default_rng(0).integers(0, 256, (resolution, resolution, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010E] = "description" * 4_000
    data = saved(noise, kind, compress_level=0, quality=100, subsampling=0, lossless=True, exif=exif)
    assert len(data) <= own_bytes(resolution)
    assert decode(from_base64("data:image/jpeg;base64," + text(data), resolution), resolution, 3).shape == noise.shape
    assert own_bytes(resolution) >= resolution * (8 * resolution + 1) + 40_000  # 16-bit RGBA


@pytest.mark.parametrize(
    "seed, data", list(enumerate([saved(RGB, kind) for kind in FORMATS] + [SCANS, saved(RGB.quantize(9))]))
)
def test_a_damaged_file_is_a_picture_or_a_sentence(seed: int, data: bytes):
    rng = np.random.default_rng(seed)
    for length in range(0, len(data), 7):
        assert sentence(data[:length])
    assert sentence(data[:-1])
    for _ in range(1_000):
        content = bytearray(data)
        for at in rng.integers(0, rng.choice([64, len(data)]), rng.integers(1, 5)):
            content[at] = rng.integers(256)
        at = len(SIGNATURE)
        while data.startswith(SIGNATURE) and rng.random() < 0.9 and at + 12 <= len(content):  # right checksums
            end = at + 8 + int.from_bytes(content[at : at + 4])
            content[end : end + 4] = struct.pack("!I", zlib.crc32(content[at + 4 : end]))
            at = end + 4
        try:
            pixels = decode(bytes(content), SIDE, 3)
        except PictureError as error:
            assert str(error)
        else:
            assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
