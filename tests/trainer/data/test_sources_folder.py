"""The image folder, and the decoding every source shares."""

import io
import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from fewstep.card import read_card
from trainer.__main__ import main
from trainer.data.command import describe
from trainer.data.format import DataError
from trainer.data.sources.folder import read_folder
from trainer.data.sources.pictures import SUFFIXES, centre_square, decode, flatten, to_array


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


def test_every_format_that_pillow_opens_by_itself_is_read_and_the_rest_is_counted_and_named(tmp_path: Path):
    Image.init()
    films_and_pages = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
    opened = {e for e, kind in Image.registered_extensions().items() if kind in set(Image.OPEN) - films_and_pages}
    assert opened <= SUFFIXES
    formats = {"jfif": "JPEG", "tga": "TGA", "webp": "WEBP", "JP2": "JPEG2000", "ico": "ICO", "pcx": "PCX"}
    for name, kind in formats.items():
        (tmp_path / f"a.{name}").write_bytes(encoded(noise_image(0, 16), kind))
    for name in ("notes.txt", "film.mp4", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_bytes(b"no picture")
    images = read_folder(tmp_path)
    assert len(images.images) == len(formats)
    assert images.unread == ("Thumbs.db", "film.mp4", "notes.txt")
    assert "not read 3 other files: Thumbs.db, film.mp4, notes.txt" in describe(images)


def test_hidden_folders_are_passed_over_however_deep(tmp_path: Path):
    put(tmp_path, "cat/a.png", noise_image(0))
    for name in ("cat/.thumbnails/b.png", "cat/deep/.cache/c.png", ".git/d.png", "__MACOSX/cat/e.png", "cat/._a.png"):
        put(tmp_path, name, noise_image(1))
    images = read_folder(tmp_path)
    assert images.class_names == ("cat",) and len(images.images) == 1 and images.unread == ()


def test_all_broken_pictures_are_named_in_one_run(tmp_path: Path):
    put(tmp_path, "a.png", noise_image(0))
    for name in ("b.png", "c.jpg", "d.gif"):
        (tmp_path / name).write_bytes(b"this is no picture")
    with pytest.raises(DataError, match=r"3 of 4 pictures cannot be read") as caught:
        read_folder(tmp_path)
    assert all(name in str(caught.value) for name in ("b.png", "c.jpg", "d.gif"))


def test_links_are_followed_and_what_cannot_be_read_is_named_with_the_broken_ones(tmp_path: Path):
    put(tmp_path, "elsewhere/b.png", noise_image(1))
    put(tmp_path, "photos/cat/a.png", noise_image(0))
    (tmp_path / "photos" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "cat" / "around").symlink_to(tmp_path / "photos")
    os.mkfifo(tmp_path / "photos" / "cat" / "pipe.png")
    assert len(read_folder(tmp_path / "photos").images) == 2
    (tmp_path / "photos" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "photos" / "cat" / "z.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"2 of 4 pictures .*\n.*gone\.png cannot be read \(No such file.*\n.*z\.png is"
    ):
        read_folder(tmp_path / "photos")


def test_a_folder_of_other_files_alone_is_refused_naming_them(tmp_path: Path):
    for number in range(5):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(b"of a telephone")
    with pytest.raises(
        DataError, match=r"such as \.jpg.*its files are IMG_0\.HEIC, IMG_1\.HEIC, IMG_2\.HEIC and so on"
    ):
        read_folder(tmp_path)


def test_a_name_of_bytes_that_are_no_text_can_be_printed(tmp_path: Path):
    put(tmp_path, "cat/a.png", noise_image(0))
    with open(os.fsencode(tmp_path / "cat") + b"/\xff.txt", "wb"):  # noqa: PTH123 - pathlib takes no bytes
        pass
    assert "not read 1 other file: cat/\ufffd.txt" in describe(read_folder(tmp_path))


def test_a_picture_whose_kind_of_pixels_pillow_lacks_is_refused_and_lab_is_read():
    dds = bytearray(encoded(noise_image(0), "DDS"))
    dds[80:84], dds[84:88] = (4).to_bytes(4, "little"), b"ZZZZ"  # a compression of that name
    with pytest.raises(DataError, match=r"^a\.dds is not a readable image \(Unimplemented pixel format"):
        decode(bytes(dds), "a.dds")
    lab = decode(encoded(noise_image(0).convert("LAB"), "TIFF"), "a.tif")
    for gray in (False, True):
        ours, plain = (to_array(flatten(image, "a", gray=gray)).astype(int) for image in (lab, noise_image(0)))
        assert np.abs(ours - plain).mean() < 3


def edm_folder(path: Path) -> Path:
    for index in range(3):
        put(path, f"00000/img{index:08d}.png", noise_image(index))
    labels = [[f"00000/img{index:08d}.png", index % 2] for index in range(3)]
    (path / "dataset.json").write_text(json.dumps({"labels": labels}))
    return path


def test_edms_unpacked_folder_keeps_its_labels(tmp_path: Path):
    images = read_folder(edm_folder(tmp_path / "edm"))
    assert images.labels.tolist() == [0, 1, 0] and images.class_names == ("0", "1") and images.unread == ()


@pytest.mark.usefixtures("tiny_recipe")
def test_a_folder_is_taken_where_a_data_set_is(tmp_path: Path, monkeypatch, capsys):
    for index in range(8):
        put(tmp_path, f"photos/{'ab'[index % 2]}/{index}.png", noise_image(index, 20 + index))
    (tmp_path / "photos" / "a" / "readme.txt").write_text("")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted((tmp_path / "photos").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path).as_posix())
    common = ["--recipe", "digits", "--images", "8", "--batch", "8", "--device", "cpu", "--compile", "off"]

    def run(*line: object) -> int:
        monkeypatch.setattr(sys, "argv", ["trainer", *map(str, line), *common])
        return main()

    for name in ("photos", "photos.zip"):
        assert run("teacher", "--data", tmp_path / name, "--out", tmp_path / f"of {name}") == 0
    said = capsys.readouterr().err
    assert "not read 1 other file: a/readme.txt" in said
    folder, zipped = (read_card(tmp_path / f"of {name}").dataset for name in ("photos", "photos.zip"))
    assert folder.sha256 == zipped.sha256
    teacher = tmp_path / "of photos"
    assert run("student", "--data", tmp_path / "photos", "--teacher", teacher, "--out", tmp_path / "student") == 0


def test_a_file_of_no_known_format_is_named_without_an_object_in_memory():
    with pytest.raises(
        DataError, match=r"^a\.png is not a readable image \(of no known format\); replace or remove it$"
    ):
        decode(b"no picture", "a.png")
