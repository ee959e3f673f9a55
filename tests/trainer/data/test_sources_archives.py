"""The EDM zip and IDX files: what they hold comes back exactly, what is damaged is refused by name."""

import gzip
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.data.archives import NO_INDEX, png, write_edm
from trainer.data.format import DataError, ImageSet
from trainer.data.sources.edm_zip import read_edm_zip
from trainer.data.sources.idx import read_idx, read_idx_file


@pytest.fixture
def twenty(fashion_2000: ImageSet) -> ImageSet:
    """Two images of each class."""
    chosen = np.arange(20) * 100
    return ImageSet("x", fashion_2000.images[chosen], fashion_2000.labels[chosen], fashion_2000.class_names, "", "")


def test_images_and_labels_of_an_edm_zip_come_back_in_order(tmp_path: Path, twenty: ImageSet):
    path = tmp_path / "edm.zip"
    names = write_edm(path, twenty.images, None)
    labels = [[name, int(label)] for name, label in zip(names, twenty.labels, strict=True)]
    write_edm(path, twenty.images, {"labels": labels[::-1]})  # the order of the list does not matter
    read = read_edm_zip(path, licence="MIT", class_names=twenty.class_names)
    np.testing.assert_array_equal(read.images, twenty.images)
    np.testing.assert_array_equal(read.labels, twenty.labels)
    assert (read.name, read.licence, read.class_names) == ("edm", "MIT", twenty.class_names)
    few = read_edm_zip(path, limit=5)
    assert few.labels.tolist() == [0, 2, 4, 6, 8]
    assert few.class_names == tuple("0123456789"), "a limit does not change how many classes there are"


def test_colour_comes_from_the_first_image_unless_gray_is_asked_for(tmp_path: Path):
    colour = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    write_edm(tmp_path / "c.zip", colour, NO_INDEX)
    np.testing.assert_array_equal(read_edm_zip(tmp_path / "c.zip").images, colour)
    assert read_edm_zip(tmp_path / "c.zip", gray=True).images.shape == (2, 4, 4, 1)
    assert read_edm_zip(tmp_path / "c.zip", resolution=2).images.shape == (2, 2, 2, 3)


@pytest.mark.parametrize("index", [NO_INDEX, {"labels": None}, {}], ids=["no index", "null", "no labels"])
def test_labels_may_be_absent(tmp_path: Path, index: Any):
    write_edm(tmp_path / "edm.zip", np.zeros((3, 4, 4, 1), np.uint8), index)
    read = read_edm_zip(tmp_path / "edm.zip")
    assert read.labels.tolist() == [-1, -1, -1]
    assert read.class_names == ()


FIRST, SECOND = "00000/img00000000.png", "00000/img00000001.png"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "dataset.json is not"),
        ({"labels": 3}, "dataset.json is not"),
        ({"labels": [[FIRST]]}, "dataset.json is not"),
        ({"labels": [[FIRST, 0]]}, f"{SECOND} has no label"),
        ({"labels": [[FIRST, 0], [SECOND, 1], ["gone.png", 1]]}, "gone.png, which is not in the data set"),
        ({"labels": [[FIRST, 0], [SECOND, -1]]}, "label of .* is -1"),
        ({"labels": [[FIRST, 0], [SECOND, 1.5]]}, "label of .* is 1.5"),
        ({"labels": [[FIRST, 0], [SECOND, [0.1, 0.2]]]}, "not a class index"),
        ({"labels": [[FIRST, 0], [SECOND, 10**9]]}, "not a class index"),
        ({"labels": [[FIRST, 0], [SECOND, True]]}, "not a class index"),
    ],
    ids=str,
)
def test_labels_that_make_no_sense_are_refused(tmp_path: Path, index: Any, message: str):
    write_edm(tmp_path / "edm.zip", np.zeros((2, 4, 4, 1), np.uint8), index)
    with pytest.raises(DataError, match=message):
        read_edm_zip(tmp_path / "edm.zip")


def test_a_corrupt_image_in_a_zip_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "edm.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(np.zeros((4, 4, 1), np.uint8)))
        archive.writestr("b.png", b"broken")
    with pytest.raises(DataError, match=r"edm\.zip: b\.png is not a readable image"):
        read_edm_zip(path)


def test_files_that_are_no_zip_are_refused_by_name(tmp_path: Path):
    path = tmp_path / "edm.zip"
    write_edm(path, np.zeros((9, 4, 4, 1), np.uint8), NO_INDEX)
    content = path.read_bytes()
    for damaged in (b"", b"nonsense", content[:-40], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"edm\.zip is not a readable zip"):
            read_edm_zip(path)
    with pytest.raises(DataError, match=r"missing\.zip"):
        read_edm_zip(tmp_path / "missing.zip")


def test_a_zip_without_images_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match="holds no images"):
        read_edm_zip(tmp_path / "edm.zip")


def test_too_few_class_names_are_refused(tmp_path: Path):
    write_edm(tmp_path / "edm.zip", np.zeros((2, 4, 4, 1), np.uint8), {"labels": [[FIRST, 0], [SECOND, 2]]})
    with pytest.raises(DataError, match="3 classes but 2 class names"):
        read_edm_zip(tmp_path / "edm.zip", class_names=("a", "b"))


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def pair(tmp_path: Path, twenty: ImageSet) -> tuple[Path, Path]:
    images, labels = tmp_path / "images-idx3-ubyte", tmp_path / "labels-idx1-ubyte.gz"
    images.write_bytes(idx_bytes(twenty.images[:, 2:30, 2:30, 0]))
    labels.write_bytes(gzip.compress(idx_bytes(twenty.labels.astype(np.uint8))))
    return images, labels


def test_idx_files_are_read_gzipped_or_not_and_padded_when_asked(pair: tuple[Path, Path], twenty: ImageSet):
    padded = read_idx(*pair, pad=True)
    np.testing.assert_array_equal(padded.images, twenty.images)
    np.testing.assert_array_equal(padded.labels, twenty.labels)
    assert padded.class_names == tuple("0123456789")
    plain = read_idx(*pair)
    np.testing.assert_array_equal(plain.images, twenty.images[:, 2:30, 2:30])


def test_idx_files_cut_at_any_place_are_refused_by_name(pair: tuple[Path, Path]):
    for path, dimensions in zip(pair, (3, 1), strict=True):
        content = path.read_bytes()
        for length in (0, 1, 3, 7, 12, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises(DataError, match=path.name):
                read_idx_file(path, dimensions)
        path.write_bytes(content)


def test_idx_files_with_extra_bytes_are_refused(pair: tuple[Path, Path]):
    pair[0].write_bytes(pair[0].read_bytes() + b"\0")
    with pytest.raises(DataError, match="longer than its header says"):
        read_idx(*pair)


def test_swapped_and_mismatched_idx_files_are_refused(pair: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(DataError, match="not an IDX file of unsigned bytes with 3"):
        read_idx(pair[1], pair[0])
    (tmp_path / "few").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match=r"20 images .* 3 labels"):
        read_idx(pair[0], tmp_path / "few")
    (tmp_path / "none3").write_bytes(idx_bytes(np.zeros((0, 28, 28), np.uint8)))
    (tmp_path / "none1").write_bytes(idx_bytes(np.zeros(0, np.uint8)))
    with pytest.raises(DataError, match="no images"):
        read_idx(tmp_path / "none3", tmp_path / "none1")
    with pytest.raises(DataError, match="missing"):
        read_idx(tmp_path / "missing", pair[1])
