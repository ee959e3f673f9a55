"""The recipe `earth` on a small planet of level bands: classes, held-out strips, halves, refusals."""

import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.archives import png, write_tar
from trainer.__main__ import main
from trainer.data.format import DataError, read_image_set
from trainer.data.named import read_recipe
from trainer.data.sources import land_cover
from trainer.data.sources.earth import PER_CLASS, SIDE, open_columns, read_earth
from trainer.data.sources.land_cover import CLASS_NAMES, classes_of_places, window_sums

WIDTH, HEIGHT = 2048, 1024
LAND = {  # colour and height
    "desert": ((200, 160, 110), 10),
    "forest and grassland": ((20, 60, 20), 10),
    "highlands": ((100, 80, 60), 200),
    "snow and ice": ((220, 220, 230), 10),
}
HELD_OUT = {4, 9, 14, 19}


def strip_of(column: np.ndarray) -> np.ndarray:
    return column * 24 // WIDTH


def planet(without: str | None = None) -> dict[str, bytes]:
    """Bands of land between an ocean in the north and one in the south. The ocean's red is ten times the strip."""
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[..., 0] = 10 * strip_of(np.arange(WIDTH))
    colours[..., 2] = 255
    water, height = np.full((HEIGHT, WIDTH), 255, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    for place, (name, (colour, metres)) in enumerate(LAND.items()):
        rows = slice(300 + 100 * place, 400 + 100 * place)
        if name != without:
            colours[rows], water[rows], height[rows] = colour, 0, metres
    files = {"earth-blue-marble.jpg": colours, "earth-water.png": water, "earth-topology.png": height}
    # Whatever the names say, all of them are PNGs.
    return {f"package/example/img/{name}": png(pixels) for name, pixels in files.items()}


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return write_tar(tmp_path_factory.mktemp("npm") / "three-globe-2.45.2.tgz", planet())


def strips_seen(images: np.ndarray) -> set[int]:
    of_water = images[..., 2] == 255
    return set((np.unique(images[of_water, 0]) // 10).tolist())


def test_every_class_has_as_many_crops_and_looks_like_itself(package):
    images = read_earth(package, per_class=20)
    assert images.images.shape == (120, 64, 64, 3) and images.class_names == CLASS_NAMES
    assert images.labels.tolist() == [label for label in range(6) for _ in range(20)]
    for name, (colour, _) in LAND.items():
        crops = images.images[images.labels == CLASS_NAMES.index(name)]
        assert (crops == colour).all(-1).mean() > 0.5
    of_water = (images.images[..., 2] == 255).mean((1, 2))
    assert (of_water[images.labels == 0] > 0.97).all()
    assert (of_water[images.labels == 1] > 0.15).all() and (of_water[images.labels == 1] <= 0.97).all()


def test_the_crops_are_the_same_every_time_and_from_the_unpacked_folder(package, tmp_path):
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path, filter="data")
    once = read_earth(package, per_class=5)
    assert read_earth(tmp_path / "package", per_class=5).sha256() == once.sha256()
    assert once.sha256() != read_earth(package, "test", per_class=5).sha256()


def test_training_crops_show_no_held_out_strip_and_held_out_crops_show_nothing_else(package):
    train, test = (read_earth(package, split, per_class=300) for split in ("train", "test"))
    oceans = [one.images[one.labels == 0] for one in (train, test)]
    assert strips_seen(oceans[0]) == set(range(24)) - HELD_OUT
    assert strips_seen(oceans[1]) == HELD_OUT
    # A crop that shows two strips shows the edge between them: across in some orientations, down in others.
    across = (oceans[0][:, 0, :, 0] != oceans[0][:, 0, :1, 0]).any(1)
    down = (oceans[0][:, :, 0, 0] != oceans[0][:, :1, 0, 0]).any(1)
    assert (across & ~down).any() and (down & ~across).any()


def test_training_columns_stay_a_crops_width_away_from_held_out_strips():
    train, test = (np.flatnonzero(open_columns(4096, split, None)) for split in ("train", "test"))
    gaps = np.abs(train[:, None] - test[None]).min(1)
    assert gaps.min() == SIDE + 1


def test_halves_are_of_strips_and_not_of_crops(package, monkeypatch):
    monkeypatch.setitem(PER_CLASS, "train", 100)
    a, b = (read_recipe("earth", package, half=half).images for half in ("a", "b"))
    assert strips_seen(a[:100]) == {strip for strip in range(24) if strip % 5 in (0, 1)}
    assert strips_seen(b[:100]) == {strip for strip in range(24) if strip % 5 in (2, 3)}
    held_out = [read_earth(package, "test", half, per_class=50) for half in ("a", "b")]
    assert [strips_seen(one.images[:50]) for one in held_out] == [{4, 14}, {9, 19}]
    assert held_out[1].name == "earth-b" and held_out[1].source == "three-globe, test split, half b"


def test_the_command_writes_the_held_out_crops(package, tmp_path, monkeypatch):
    out = tmp_path / "held-out.zip"
    options = ["--source", str(package), "--split", "test", "--per-class", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["trainer", "data", "earth", *options])
    assert main() == 0
    assert len(read_image_set(out, verify=True).images) == 18


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"earth-water.png": None}, r"holds no earth-water\.png.*`npm pack three-globe"),
        ({"earth-topology.png": b"broken"}, r"earth-topology\.png is not a readable image"),
        ({"earth-blue-marble.jpg": png(np.zeros((512, 1024, 3), np.uint8))}, "is 1024x512; a map of the Earth is"),
        (
            {"earth-blue-marble.jpg": png(np.zeros((1000, 2048, 3), np.uint8))},
            "is 2048x1000; a map of the Earth is",
        ),
    ],
    ids=["incomplete", "broken", "small", "not twice as wide"],
)
def test_another_package_is_refused(tmp_path, change, message):
    changed = planet() | {f"package/example/img/{name}": content for name, content in change.items()}
    files = {name: content for name, content in changed.items() if content is not None}
    with pytest.raises(DataError, match=message):
        read_earth(write_tar(tmp_path / "other.tgz", files))


def test_a_planet_without_a_class_is_refused(tmp_path):
    with pytest.raises(DataError, match="shows no snow and ice in the train split"):
        read_earth(write_tar(tmp_path / "warm.tgz", planet(without="snow and ice")))


def test_a_missing_package_is_named_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"npm pack three-globe@2\.45\.2"):
        read_earth()
    with pytest.raises(DataError, match="typo does not exist"):
        read_earth(tmp_path / "typo")


def only_place(water: int = 0, snow: int = 0, bare: int = 0, height: int = 0) -> str:
    """The class of a map of 10 x 10 pixels: so many of them water, snow, bare and, the rest, green."""
    colours = np.full((100, 3), (20, 60, 20), np.uint8)
    colours[water : water + snow] = 255
    colours[water + snow : water + snow + bare] = (200, 160, 110)
    of_water = np.arange(100) < water
    heights = np.where(of_water, 0, height).astype(np.uint8)
    [[label]] = classes_of_places(colours.reshape(10, 10, 3), of_water.reshape(10, 10), heights.reshape(10, 10), 10)
    return CLASS_NAMES[label]


def test_classes_change_where_the_rule_says():
    assert [only_place(water=count) for count in (98, 97, 16, 15)] == [
        "ocean",
        "coast",
        "coast",
        "forest and grassland",
    ]
    assert [only_place(snow=count, height=200) for count in (21, 20)] == ["snow and ice", "highlands"]
    assert only_place(water=10, snow=19, height=0) == "snow and ice", "19 of 90 pixels of land"
    assert [only_place(bare=100, height=height) for height in (61, 60)] == ["highlands", "desert"]
    assert [only_place(bare=count) for count in (51, 50)] == ["desert", "forest and grassland"]


def test_snow_is_gray_and_bare_land_is_not_green():
    assert land_cover.is_snow(np.array([[101, 128, 110], [101, 129, 110], [100, 100, 100]], np.uint8)).tolist() == [
        True,
        False,
        False,
    ]
    assert land_cover.is_bare(np.array([[200, 160, 110], [60, 40, 30], [90, 130, 60]], np.uint8)).tolist() == [
        True,
        False,
        False,
    ]


def test_window_sums_are_sums_over_every_square():
    values = np.random.default_rng(0).integers(0, 256, (9, 11), dtype=np.uint8)
    expected = [[values[y : y + 4, x : x + 4].sum() for x in range(8)] for y in range(6)]
    np.testing.assert_array_equal(window_sums(values, 4), expected)
