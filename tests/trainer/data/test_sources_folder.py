"""The image folder, and the decoding every source shares."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from trainer.data.format import DataError
from trainer.data.sources.folder import read_folder
from trainer.data.sources.pictures import centre_square, decode, flatten, to_array


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def noise_image(seed: int, side: int = 8, mode: str = "RGB") -> Image.Image:
    channels = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def put(folder: Path, name: str, image: Image.Image) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image))


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path: Path):
    for seed, name in enumerate(["dog/b.png", "cat/z.png", "dog/a.png", "cat/deep/y.png"]):
        put(tmp_path, name, noise_image(seed))
    images = read_folder(tmp_path, licence="CC0-1.0")
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.licence == "CC0-1.0"
    assert images.name == tmp_path.name
    for index, seed in enumerate([3, 1, 2, 0]):  # cat/deep/y, cat/z, dog/a, dog/b
        np.testing.assert_array_equal(images.images[index], np.asarray(noise_image(seed)))


def test_a_flat_folder_has_no_classes(tmp_path: Path):
    for seed in range(3):
        put(tmp_path, f"{seed}.png", noise_image(seed))
    images = read_folder(tmp_path)
    assert images.class_names == ()
    assert images.labels.tolist() == [-1, -1, -1]


def test_gray_gives_one_channel(tmp_path: Path):
    put(tmp_path, "a.png", Image.new("RGB", (4, 4), (255, 0, 0)))
    images = read_folder(tmp_path, gray=True).images
    assert images.shape == (1, 4, 4, 1)
    assert (images == 76).all()  # ITU-R 601 luma of pure red


def test_other_files_and_hidden_ones_are_skipped(tmp_path: Path):
    put(tmp_path, "class/a.png", noise_image(0))
    put(tmp_path, "class/._a.png", noise_image(1))
    put(tmp_path, ".trash/b.png", noise_image(2))
    (tmp_path / "class" / "notes.txt").write_text("no picture")
    assert len(read_folder(tmp_path).images) == 1


def test_a_limit_keeps_every_class(tmp_path: Path):
    for seed in range(12):
        put(tmp_path, f"{'abc'[seed // 4]}/{seed:02d}.png", noise_image(seed))
    images = read_folder(tmp_path, limit=6)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(images.images[1], np.asarray(noise_image(2)))


def test_a_corrupt_image_is_refused_by_name(tmp_path: Path):
    put(tmp_path, "a.png", noise_image(0))
    (tmp_path / "b.png").write_bytes(b"this is not a PNG file")
    with pytest.raises(DataError, match=r"b\.png is not a readable image"):
        read_folder(tmp_path)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, format: str):
    content = encoded(noise_image(0, side=64), format)
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(DataError, match=r"half\.png is not a readable image"):
        read_folder(tmp_path)


@pytest.mark.parametrize("limit", [40, 60], ids=["refused by Pillow", "only warned of by Pillow"])
def test_a_decompression_bomb_is_refused_by_name(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, "bomb.png", Image.new("L", (10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow raises beyond twice the limit
    with pytest.raises(DataError, match=r"bomb\.png is too large"):
        read_folder(tmp_path)


def test_images_of_different_sizes_need_a_resolution(tmp_path: Path):
    put(tmp_path, "a.png", noise_image(0, 8))
    put(tmp_path, "b.png", noise_image(1, 16))
    with pytest.raises(DataError, match=r"b\.png is 16x16, not 8x8; give --resolution N"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, resolution=4).images.shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no images"),
        (["a.png", "class/b.png"], "lies beside class folders"),
        (["one/a.png", "two/readme.txt"], "class folder .*two holds no images"),
    ],
)
def test_a_folder_that_is_not_clear_is_refused(tmp_path: Path, files: list[str], message: str):
    for name in files:
        put(tmp_path, name, noise_image(0))
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path):
    put(tmp_path, "a.png", noise_image(0))
    with pytest.raises(DataError, match="is not a folder"):
        read_folder(tmp_path / "a.png")


def test_the_crop_is_centred():
    image = Image.new("RGB", (6, 2), (255, 0, 0))
    image.paste((0, 255, 0), (2, 0, 4, 2))
    assert (to_array(centre_square(image, 2)) == (0, 255, 0)).all()


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = to_array(centre_square(Image.fromarray(stripes), 16))
    assert abs(small[:, 2:-2].astype(int) - 128).max() <= 2


def test_colours_under_transparent_pixels_do_not_leak_when_resized():
    # A white disc whose transparent surroundings are stored as black, as most drawing programs do.
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[16:48, 16:48] = 255
    flat = flatten(Image.fromarray(pixels), "x", gray=False)
    assert to_array(centre_square(flat, 13)).min() == 255


def test_half_transparent_pixels_are_mixed_with_the_background():
    image = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert flatten(image, "x", gray=False).getpixel((0, 0)) == (255, 127, 127)
    assert flatten(image, "x", gray=False, background=(0, 0, 100)).getpixel((0, 0)) == (128, 0, 50)


def test_palettes_with_transparency_and_gray_with_alpha_are_composited():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 0
    reread = decode(encoded(palette), "x")
    assert to_array(flatten(reread, "x", gray=False)).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    assert flatten(Image.new("LA", (1, 1), (0, 0)), "x", gray=True).getpixel((0, 0)) == 255


def test_sixteen_bit_gray_is_scaled_not_clipped():
    deep = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))
    reread = decode(encoded(deep), "x")
    assert to_array(flatten(reread, "x", gray=True)).ravel().tolist() == [0, 1, 128, 255]


def test_pixels_of_unknown_range_are_refused():
    with pytest.raises(DataError, match="32-bit"):
        flatten(Image.new("F", (2, 2)), "x", gray=True)


def test_a_picture_taken_sideways_is_turned_upright():
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    upright = decode(buffer.getvalue(), "x")
    assert upright.size == (1, 2)
    assert upright.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow remarks on damaged TIFF tags before it fails
@settings(max_examples=60, deadline=None)
@given(format=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]), data=st.data())
def test_damaged_bytes_give_a_picture_or_a_sentence_and_nothing_else(format: str, data: st.DataObject):
    content = bytearray(encoded(noise_image(0, 16), format))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        flatten(decode(bytes(content), "picture"), "picture", gray=False)
    except DataError as error:
        assert str(error).startswith("picture ")
