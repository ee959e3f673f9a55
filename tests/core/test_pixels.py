"""Pixels: exact round trips, EDM's rounding, lossless files, grids."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep.pixels import (
    FORMATS,
    MEDIA_TYPES,
    Format,
    encode,
    encode_pngs,
    from_pixels,
    grid,
    text_of,
    to_pixels,
    with_text,
)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "fashion-2000.png"


def decode(content: bytes, format: Format) -> np.ndarray:
    if format == "npy":
        return np.load(io.BytesIO(content), allow_pickle=False)
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def test_all_256_values_survive_the_way_to_floats_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = from_pixels(pixels)
    assert images.dtype == np.float32
    assert images.min() == -1
    assert images.max() == 1
    np.testing.assert_array_equal(to_pixels(images), pixels)


def test_floats_become_pixels_by_edms_rule():
    # 127.5 x + 128, truncated, then clipped.
    values = np.array([-5, -1.0001, -1, -0.0001, 0, 0.0001, 0.999, 1, 1.0001, 5], dtype=np.float32)
    expected = [0, 0, 0, 127, 128, 128, 255, 255, 255, 255]
    assert to_pixels(values.reshape(1, 1, 1, -1)).ravel().tolist() == expected


@settings(deadline=None)
@given(st.floats(-3, 3, width=32))
def test_rounding_is_never_off_by_more_than_half_a_level(value: float):
    pixel = int(to_pixels(np.full((1, 1, 1, 1), value, np.float32))[0, 0, 0, 0])
    assert abs(pixel - np.clip(value * 127.5 + 127.5, 0, 255)) <= 0.5 + 1e-4


def test_channels_go_last_and_rows_stay_rows():
    images = np.zeros((2, 3, 4, 5), dtype=np.float32)
    images[1, 2, 3, 4] = 1
    pixels = to_pixels(images)
    assert pixels.shape == (2, 4, 5, 3)
    assert pixels[1, 3, 4, 2] == 255
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(from_pixels(pixels)[1, 2], (pixels[1, :, :, 2] / np.float32(127.5) - 1))


def test_an_empty_batch_stays_empty():
    assert to_pixels(np.zeros((0, 3, 4, 4), np.float32)).shape == (0, 4, 4, 3)
    assert from_pixels(np.zeros((0, 4, 4, 1), np.uint8)).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", [format for format in FORMATS if format != "jpeg"])
def test_every_format_but_jpeg_is_lossless(format: Format, channels: int):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    decoded = decode(encode(pixels, format), format)
    if format == "webp" and channels == 1:  # WebP knows no gray; all three channels carry it
        assert decoded.shape == (9, 7, 3)
        decoded = decoded[..., :1]
    np.testing.assert_array_equal(decoded.reshape(9, 7, channels), pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_quality_decides_how_much_of_a_picture_is_lost(format: Format, channels: int):
    rows = np.linspace(0, 255, 32).astype(np.uint8)
    pixels = np.broadcast_to(rows[:, None, None], (32, 32, channels)).copy()

    def error(quality: int | None) -> float:
        decoded = decode(encode(pixels, format, quality), format).reshape(32, 32, -1)[..., :channels]
        return float(np.abs(decoded.astype(int) - pixels).mean())

    assert error(None) <= 1 < error(5)
    assert len(encode(pixels, format, 5)) < len(encode(pixels, format, 100))


def test_a_text_in_a_png_is_read_back_and_leaves_the_pixels_alone():
    pixels = np.random.default_rng(2).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    plain = encode(pixels, "png")
    png = with_text(with_text(plain, "other", "x"), "fewstep", '{"seed":7}')
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert getattr(image, "text") == {"fewstep": '{"seed":7}', "other": "x"}  # noqa: B009
    np.testing.assert_array_equal(decode(png, "png"), pixels)
    assert (text_of(png, "fewstep"), text_of(png, "few"), text_of(plain, "fewstep")) == ('{"seed":7}', None, None)
    assert text_of(png[:40], "fewstep") is None
    assert text_of(b"GIF89a", "fewstep") is None and with_text(b"GIF89a", "fewstep", "x") == b"GIF89a"


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 4), st.integers(0, 2**32), st.booleans())
def test_a_png_of_any_size_is_read_back_by_pillow(height: int, width: int, channels: int, seed: int, flat: bool):
    rng = np.random.default_rng(seed)
    pixels = np.broadcast_to(rng.integers(0, 256, (1 if flat else height, width, channels), dtype=np.uint8), (
        height, width, channels,
    ))  # fmt: skip
    with Image.open(io.BytesIO(encode(pixels, "png"))) as image:
        assert (image.mode, image.size) == (["L", "LA", "RGB", "RGBA"][channels - 1], (width, height))
        image.verify()  # checksums
    np.testing.assert_array_equal(decode(encode(pixels, "png"), "png").reshape(pixels.shape), pixels)


def test_a_png_of_clothes_is_no_larger_than_pillows():
    with Image.open(FIXTURE) as image:
        clothes = np.asarray(image.convert("L"))[: 28 * 10, : 28 * 10].reshape(10, 28, 10, 28).swapaxes(1, 2)
    ours = theirs = 0
    for pixels in clothes.reshape(100, 28, 28, 1):
        ours += len(encode(pixels, "png"))
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0]).save(buffer, "PNG", compress_level=1)
        theirs += len(buffer.getvalue())
    assert ours < 1.05 * theirs


def test_pixels_are_imported_without_pillow():
    program = "import sys, fewstep.pixels; print('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_files_are_what_their_media_type_says():
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    assert encode(pixels, "png").startswith(b"\x89PNG")
    assert encode(pixels, "webp")[8:12] == b"WEBP"
    assert encode(pixels, "npy").startswith(b"\x93NUMPY")
    assert set(MEDIA_TYPES) == set(FORMATS)


def test_the_same_pixels_give_the_same_bytes():
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for format in FORMATS:
        assert encode(pixels, format) == encode(pixels.copy(), format)


def test_pngs_written_together_have_the_bytes_of_each_alone():
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in [(8, 6, 3)] * 3 + [(5, 7, 1)] * 2 + [(8, 6, 3)]]
    assert encode_pngs(images) == [encode(image, "png") for image in images]
    assert encode_pngs([]) == []


def test_a_grid_fills_row_by_row_with_gaps_and_leaves_missing_tiles_blank():
    tiles = np.stack([np.full((2, 3, 1), value, np.uint8) for value in (10, 20, 30)])
    sheet = grid(tiles, columns=2, gap=1, background=99)
    assert sheet.shape == (5, 7, 1)
    expected = np.full((5, 7), 99)
    expected[0:2, 0:3], expected[0:2, 4:7], expected[3:5, 0:3] = 10, 20, 30
    np.testing.assert_array_equal(sheet[..., 0], expected)


def test_a_grid_without_gap_of_whole_rows_is_a_plain_tiling():
    tiles = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2, 1)
    sheet = grid(tiles, columns=2)
    np.testing.assert_array_equal(sheet[:2, 2:], tiles[1])
    np.testing.assert_array_equal(sheet[2:, :2], tiles[2])
