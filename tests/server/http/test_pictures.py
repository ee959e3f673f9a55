"""Pictures from strangers: what is taken comes out exactly, and what is not gets a sentence and costs nothing."""

import base64
import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from fewstep.pixels import Pixels
from server.http import pictures as png
from server.http.pictures import PREFIX, SIGNATURE, PngError, decode, max_base64

SIDE = 8
GRAY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 1), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def saved(picture: Pixels | Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + name + content + struct.pack("!I", zlib.crc32(name + content))


def header(width: int, height: int, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def file_of(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


def sentence(data: bytes | str, channels: int = 1) -> str:
    with pytest.raises(PngError) as caught:
        decode(data if isinstance(data, str) else text(data), SIDE, channels)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_a_picture_of_the_models_size_and_channels_comes_out_as_it_went_in(prefix: str):
    np.testing.assert_array_equal(decode(prefix + text(saved(GRAY)), SIDE, 1), GRAY)
    np.testing.assert_array_equal(decode(prefix + text(saved(COLOUR, compress_level=0)), SIDE, 3), COLOUR)


def test_gray_becomes_colour_and_colour_becomes_luma():
    np.testing.assert_array_equal(decode(text(saved(GRAY)), SIDE, 3), np.repeat(GRAY, 3, axis=2))
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(text(saved(COLOUR)), SIDE, 1)[..., 0] - luma).max() <= 1


@pytest.mark.parametrize(
    ("mode", "options"),
    [("1", {}), ("P", {}), ("P", {"bits": 4}), ("LA", {}), ("RGBA", {}), ("L", {"transparency": 3}), ("RGB", {})],
    ids=str,
)
def test_every_kind_of_png_that_is_opaque_is_read(mode: str, options: dict[str, Any]):
    picture = Image.fromarray((COLOUR // 128 * 255).astype(np.uint8))
    picture = picture.quantize(8) if options.get("bits") else picture.convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(decode(text(saved(picture, **options)), SIDE, 3), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L"])
def test_a_transparent_pixel_is_refused(mode: str):
    if mode in ("P", "L"):
        data = saved(Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).convert(mode), transparency=0)
    else:
        picture = Image.fromarray(COLOUR).convert(mode)
        alpha = Image.new("L", (SIDE, SIDE), 255)
        alpha.putpixel((3, 4), 254)
        picture.putalpha(alpha)
        data = saved(picture)
    assert "flatten it onto a background" in sentence(data)


@pytest.mark.parametrize("size", [(7, 8), (8, 9), (50_000, 50_000), (2**31 - 1, 1)])
def test_another_size_is_refused_in_a_sentence_with_both(size: tuple[int, int]):
    assert f"{size[0]}x{size[1]} pixels; this model's images have 8x8" in sentence(file_of(header(*size)))


def test_no_decoder_sees_a_file_of_another_size(monkeypatch: pytest.MonkeyPatch):
    """A bomb is a header: 50,000 x 50,000 black pixels are 2.4 MB here, and 2.5 GB once they are decoded."""
    rows = zlib.compress(bytes(2**22), 9)  # some of them; the rest would be as small
    bomb = file_of(header(50_000, 50_000), chunk(b"IDAT", rows))
    assert len(bomb) < 8_000
    monkeypatch.setattr(png.Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    tracemalloc.start()
    assert "50000x50000" in sentence(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_a_second_header_does_not_replace_the_one_that_was_checked():
    pixels = chunk(b"IDAT", zlib.compress(bytes(SIDE * (SIDE + 1))))
    for chunks in ((header(8, 8), header(50_000, 50_000), pixels), (header(8, 8), pixels, header(50_000, 50_000))):
        assert decode(text(file_of(*chunks)), SIDE, 1).shape == (SIDE, SIDE, 1)


def test_more_pixels_than_the_header_says_are_not_inflated(monkeypatch: pytest.MonkeyPatch):
    """Pillow's decoder ends with the last row; what it is given is what was sent."""
    flood = file_of(header(8, 8), chunk(b"IDAT", zlib.compress(bytes(10_000_000), 9)))
    monkeypatch.setattr(png, "_SLACK", 20_000)  # as if the body had room for it
    tracemalloc.start()
    assert not decode(text(flood), SIDE, 1).any()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP", b"tEXt", b"eXIf", b"acTL"])
def test_text_profiles_and_the_like_are_left_out_before_anything_reads_them(name: bytes):
    squeezed = zlib.compress(bytes(3_000_000), 9)  # 3 kB
    keyword = b"key\0\1\0\0\0" if name == b"iTXt" else b"key\0\0"
    data = saved(GRAY)
    at = len(SIGNATURE) + 25
    swollen = data[:at] + chunk(name, keyword + squeezed) + data[at:]
    assert name not in png._cleaned(swollen, SIDE)
    np.testing.assert_array_equal(decode(text(swollen), SIDE, 1), GRAY)


def test_a_picture_with_texts_and_a_profile_from_a_camera_is_read():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Title", "a boot", zip=True)
    notes.add_itxt("Author", "nobody", "en", "")
    data = saved(GRAY, pnginfo=notes, icc_profile=b"profile" * 20, dpi=(300, 300))
    np.testing.assert_array_equal(decode(text(data), SIDE, 1), GRAY)


WRONG = [
    ("not base64!", "is not base64"),
    ("ïVBORw0KGgo=", "is not base64"),
    ("iVBORw0KGgo", "is not base64"),
    ("", "is not a PNG"),
    ("https://example.org/boot.png", "is not base64"),
    ("file:///etc/passwd", "is not base64"),
    (text(b"GIF89a" + bytes(40)), "other formats are not read"),
    (SIGNATURE, "is cut off"),
    (saved(GRAY)[:-30], "is cut off"),
    (saved(GRAY)[:-12], "is cut off"),
    (file_of(), "holds no pixels"),
    (file_of(chunk(b"IDAT", b""), header(8, 8)), "first chunk is not a header"),
    (file_of(chunk(b"IHDR", bytes(5))), "header has another length"),
    (file_of(header(8, 8, depth=16)), "16 bits per channel; save it with 8"),
    (file_of(header(8, 8, depth=3)), "3 bits per channel"),
    (file_of(header(8, 8, colour=7), chunk(b"IDAT", b"")), "is damaged"),
    (file_of(header(8, 8)), "holds no pixels"),
    (file_of(header(8, 8), chunk(b"IDAT", b"nonsense")), "is damaged"),
    (file_of(header(8, 8), chunk(b"IDAT", zlib.compress(bytes(20)))), "is damaged"),
    (file_of(header(8, 8), chunk(b"tRNS", b""), chunk(b"IDAT", zlib.compress(bytes(72)))), "is damaged"),
    (saved(GRAY).replace(b"IDAT", b"IDAX"), "checksum"),
    ("A" * (max_base64(SIDE) + 1), "longer than"),
]


@pytest.mark.parametrize(("data", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_said(data: bytes | str, words: str):
    assert words in sentence(data)


@pytest.mark.parametrize("resolution", [8, 32, 512])
def test_the_bound_has_room_for_the_worst_picture_of_the_size(resolution: int):
    noise = np.random.default_rng(0).integers(0, 256, (resolution, resolution, 4), np.uint8)
    noise[..., 3] = 255
    assert len(PREFIX + text(saved(Image.fromarray(noise), compress_level=0))) <= max_base64(resolution)


files = st.sampled_from([saved(GRAY), saved(COLOUR), saved(Image.fromarray(COLOUR).convert("P"))])


@settings(deadline=None, max_examples=300)
@given(files, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.booleans())
def test_a_damaged_file_is_a_picture_or_a_sentence(data: bytes, changes: list[tuple[int, int]], mended: bool):
    """mended: with right checksums, so that the damage reaches the decoder."""
    content = bytearray(data)
    for at, value in changes:
        content[at % len(content)] = value
    if mended:
        at = len(SIGNATURE)
        while at + 12 <= len(content):
            end = at + 8 + int.from_bytes(content[at : at + 4])
            content[end : end + 4] = struct.pack("!I", zlib.crc32(content[at + 4 : end]))
            at = end + 4
    try:
        assert decode(text(bytes(content)), SIDE, 3).shape == (SIDE, SIDE, 3)
    except PngError as error:
        assert str(error)
