"""The four recipes, on small imitations of their packages (the real ones where they are installed)."""

import contextlib
import gzip
import json
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from tests.trainer.data.archives import png, write_tar
from trainer.data.format import DataError, ImageSet
from trainer.data.sources import emoji, fashion, sprites
from trainer.data.sources.digits import read_digits
from trainer.data.sources.emoji import read_emoji
from trainer.data.sources.fashion import DEBIAN_FOLDER, read_fashion
from trainer.data.sources.selection import Item, halved, in_split, select, spread
from trainer.data.sources.sprites import read_sprites
from trainer.settings import Split


def noise_png(seed: int, side: int, opaque: float = 1.0) -> bytes:
    """RGBA noise; the lower part beyond `opaque` is fully transparent."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[round(side * opaque) :, :, 3] = 0
    return png(pixels)


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def concept(split: Split, pattern: str = "{}") -> str:
    """A name that falls into that split."""
    return next(name for number in range(1000) if in_split(name := pattern.format(number), split))


def test_digits_are_spread_over_the_whole_range_and_hold_out_a_tenth():
    train, test = read_digits("train"), read_digits("test")
    assert train.images.shape[1:] == (8, 8, 1)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert len(np.unique(train.images)) == 17
    assert len(train.images) + len(test.images) == 1797
    assert 140 < len(test.images) < 220
    assert np.bincount(train.labels).min() > 140
    assert train.class_names == tuple("0123456789")


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_installed_fashion_mnist_has_6000_or_1000_images_a_class():
    for split, each in zip(get_args(Split), (6000, 1000), strict=True):
        images = read_fashion(split=split)
        assert images.images.shape == (10 * each, 32, 32, 1)
        assert np.bincount(images.labels).tolist() == [each] * 10
        assert images.class_names[9] == "Ankle boot"
        assert not images.images[:, :2].any(), "two rows of padding"


def test_fashion_reads_the_folder_it_is_given_and_keeps_the_splits_apart(tmp_path: Path):
    for prefix, count in (("train", 4), ("t10k", 2)):
        header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + bytes(range(count)) * 784)
        labels = bytes((0, 0, 8, 1)) + count.to_bytes(4, "big") + bytes(range(count))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    assert len(read_fashion(tmp_path).images) == 4
    test = read_fashion(tmp_path, "test")
    assert (len(test.images), test.class_names, test.licence) == (2, fashion.CLASS_NAMES, fashion.LICENCE)


SPRITES = {
    "stone_soup/source/rltiles/mon/animals/bee_1.png": noise_png(1, 32),
    "stone_soup/source/rltiles/mon/animals/bee_2.png": noise_png(2, 32),
    "stone_soup/source/rltiles/mon/animals/copy_of_bee.png": noise_png(1, 32),
    "stone_soup/source/rltiles/mon/animals/._bee_1.png": b"a resource fork of macOS",
    "stone_soup/source/rltiles/mon/tentacles/part.png": noise_png(3, 32),
    "stone_soup/source/rltiles/mon/big.png": noise_png(4, 48),
    "stone_soup/source/rltiles/item/potion/i-heal.png": noise_png(5, 32),
    "stone_soup/source/rltiles/item/spark.png": noise_png(6, 32, opaque=0.05),
    "stone_soup/source/rltiles/item/sword.png": noise_png(7, 32, opaque=0.5),
    "stone_soup/source/rltiles/dngn/wall.png": noise_png(8, 32),
    "stone_soup/source/rltiles/dngn/unseen.png": png(np.zeros((32, 32, 3), np.uint8)),
    "stone_soup/source/rltiles/gui/button.png": noise_png(9, 32),
    "stone_soup/source/rltiles/UNUSED/mon/old.png": noise_png(10, 32),
    "stone_soup/LICENSE": b"GPL and CC0",
}


def non_empty_splits(source: Path) -> list[ImageSet]:
    """Both splits together are all sprites; with so few of them, one may be empty, which is refused."""
    found = []
    for split in get_args(Split):
        with contextlib.suppress(DataError):
            found.append(read_sprites(source, split))
    return found


def test_sprites_keep_whole_pictures_of_things_once_each(tmp_path: Path):
    source = write_files(tmp_path / "crawl", SPRITES)
    both = non_empty_splits(source)
    labels = sorted(label for images in both for label in images.labels.tolist())
    assert labels == [0, 0, 1, 2]  # two bees, the sword, the wall
    assert both[0].class_names == ("monsters", "items", "dungeon")


def test_sprites_stand_on_the_dark_background(tmp_path: Path):
    source = write_files(tmp_path / "crawl", SPRITES)
    [sword] = np.concatenate([images.images[images.labels == 1] for images in non_empty_splits(source)])
    assert (sword[16:] == sprites.BACKGROUND).all()


def test_sprites_are_the_same_from_the_tarball_and_from_the_folder(tmp_path: Path):
    folder = read_sprites(write_files(tmp_path / "crawl", SPRITES))
    archive = read_sprites(write_tar(tmp_path / "crawl.orig.tar.xz", SPRITES))
    assert folder.sha256() == archive.sha256()
    inner = read_sprites(tmp_path / "crawl" / "stone_soup" / "source" / "rltiles")
    assert inner.sha256() == folder.sha256()


def emoji_package(prefix: str = "package") -> dict[str, bytes]:
    """Three concepts in two groups, one with a skin tone, and one that is skipped."""
    train, other = (f"{number}-x" for number in range(1000) if in_split(f"{number}-x", "train")), concept("test")
    first, second, third = next(train), next(train), next(train)
    entries = [
        {"unified": first, "image": "a.png", "category": "Food & Drink", "has_img_google": True},
        {
            "unified": second, "image": "b.png", "category": "People & Body", "has_img_google": True,
            "skin_variations": {"1F3FB": {"image": "b-tone.png", "has_img_google": True}},
        },
        {"unified": third, "image": "c.png", "category": "Component", "has_img_google": True},
        {"unified": other, "image": "d.png", "category": "Flags", "has_img_google": True},
    ]  # fmt: skip
    pictures = {name: noise_png(seed, 64, 0.5) for seed, name in enumerate(["a", "b", "b-tone", "c", "d"])}
    return {
        f"{prefix}/emoji.json": json.dumps(entries).encode(),
        f"{prefix}/emoji_pretty.json": b"[]",
        f"{prefix}/img/google/sheets/64.png": b"not read",
        **{f"{prefix}/img/google/64/{name}.png": content for name, content in pictures.items()},
    }


def test_emoji_are_the_neutral_drawings_on_white_by_group(tmp_path: Path):
    images = read_emoji(write_tar(tmp_path / "emoji.tgz", emoji_package()))
    assert [images.class_names[label] for label in images.labels] == ["Food & Drink", "People & Body"]
    assert images.images.shape == (2, 32, 32, 3)
    assert (images.images[:, 20:] == 255).all()
    assert len(images.class_names) == 9
    held_out = read_emoji(tmp_path / "emoji.tgz", "test")
    assert [held_out.class_names[label] for label in held_out.labels] == ["Flags"]


def test_emoji_skin_tones_and_resolution_are_options(tmp_path: Path):
    source = write_files(tmp_path, emoji_package("emoji-datasource-google")) / "emoji-datasource-google"
    assert read_emoji(source, resolution=16, skin_tones=True).images.shape == (3, 16, 16, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package/emoji.json": None}, "0 files emoji.json"),
        ({"package/emoji.json": b"{"}, "not the index"),
        ({"package/emoji.json": b'[{"unified": "1"}]'}, "not the index"),
        ({"package/img/google/64/a.png": None}, r"lacks a\.png"),
        ({"package/img/google/64/a.png": b"broken"}, r"a\.png is not a readable image"),
    ],
    ids=str,
)
def test_an_incomplete_emoji_package_is_refused(tmp_path: Path, change: dict[str, bytes | None], message: str):
    files = {name: data for name, data in (emoji_package() | change).items() if data is not None}
    with pytest.raises(DataError, match=message):
        read_emoji(write_files(tmp_path, files) / "package")


def test_a_missing_source_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", tmp_path / "none")
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        read_fashion()
    with pytest.raises(DataError, match="apt-get source --download-only crawl"):
        read_sprites()
    with pytest.raises(DataError, match="npm pack emoji-datasource-google@"):
        read_emoji()
    for read in (read_fashion, read_sprites, read_emoji):
        with pytest.raises(DataError, match="typo"):
            read(tmp_path / "typo")


def test_a_fetched_package_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "emoji-datasource-google-16.0.0.tgz", emoji_package())
    assert len(read_emoji().images) == 2


@pytest.mark.parametrize("read", [read_sprites, read_emoji])
def test_a_file_that_is_no_archive_is_refused_by_name(tmp_path: Path, read):
    good = write_tar(tmp_path / "good.tar.gz", SPRITES | emoji_package()).read_bytes()
    for content in (b"", b"nonsense", good[: len(good) // 2]):
        (tmp_path / "bad.tar.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.tar\.gz"):
            read(tmp_path / "bad.tar.gz")


def test_identical_images_are_kept_once_even_across_splits():
    same = np.zeros((2, 2, 1), np.uint8)
    items = [Item(0, concept("train", "a{}"), same), Item(1, concept("test", "b{}"), same)]
    assert select(items, "train")[1].tolist() == [0]
    with pytest.raises(DataError, match="no images for the test split"):
        select(items, "test")


def test_about_a_tenth_of_all_concepts_is_held_out_for_ever():
    held_out = sum(in_split(f"concept {number}", "test") for number in range(10_000))
    assert 900 < held_out < 1100
    assert in_split("1F600", "test") == (zlib.crc32(b"1F600") % 10 == 0)


def test_a_subset_is_evenly_spread_and_a_limit_of_nothing_is_refused():
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 7).tolist() == spread(3, None).tolist() == [0, 1, 2]
    for limit in (0, -3):
        with pytest.raises(DataError, match="--limit"):
            spread(10, limit)
    assert emoji.SKIPPED not in emoji.CLASS_NAMES


def test_halves_share_out_every_class_and_do_not_hang_on_the_order():
    digits = read_digits("train")
    a, b = halved(digits, "a"), halved(digits, "b")
    assert (a.name, b.name) == ("digits-a", "digits-b") and a.source.endswith("half a")
    assert len(a.images) + len(b.images) == len(digits.images)
    gaps = np.bincount(a.labels) - np.bincount(b.labels)
    assert set(gaps) <= {0, 1}
    assert not {image.tobytes() for image in a.images} & {image.tobytes() for image in b.images}
    turned = ImageSet("digits", digits.images[::-1], digits.labels[::-1], digits.class_names, "", "")
    assert {image.tobytes() for image in halved(turned, "a").images} == {image.tobytes() for image in a.images}
    with pytest.raises(DataError, match="digits has 1 images, too few for a half b"):
        halved(ImageSet("digits", digits.images[:1], digits.labels[:1], digits.class_names, "", ""), "b")
