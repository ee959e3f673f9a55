"""The recipe `emoji64` on three tiny packages: classes, held-out concepts, halves, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.test_sources_recipes import noise_png, write_files, write_tar
from trainer.data.format import DataError
from trainer.data.named import read_recipe
from trainer.data.sources.emoji64 import CLASS_NAMES, STYLES, code_points, read_emoji64
from trainer.data.sources.selection import half_of, in_split

GOOGLE, TWITTER, FLUENT = ("emoji-datasource-google-16.0.0.tgz", "emoji-datasource-twitter-16.0.0.tgz",
                           "lobehub-fluent-emoji-3d-1.1.0.tgz")  # fmt: skip


def concepts() -> dict[str, str]:
    """A code point with a variation selector for each place: train half a, train half b, test."""
    found: dict[str, str] = {}
    for number in range(0x1F600, 0x1F700):
        concept = f"{number:04X}-FE0F"
        found.setdefault("test" if in_split(concept, "test") else half_of(concept), concept)
    return found


CONCEPTS = concepts()


def entries() -> list[dict]:
    people = {"unified": CONCEPTS["a"], "category": "People & Body"}
    tone = {"skin_variations": {"1F3FB": {"unified": CONCEPTS["a"].replace("-FE0F", "-1F3FB")}}}
    return [
        people | tone,
        {"unified": CONCEPTS["b"], "category": "Food & Drink"},
        {"unified": CONCEPTS["test"], "category": "Flags"},
        {"unified": "1F3FB", "category": "Component"},
    ]


def files(folder: str, drop: str = "", suffix: str = ".png", first: int = 0) -> dict[str, bytes]:
    """A picture of every emoji of the index and of one that it does not know, in a style of its own."""
    stems = [CONCEPTS["a"], CONCEPTS["a"].replace("-FE0F", "-1F3FB"), CONCEPTS["b"], CONCEPTS["test"], "1F3FB", "1F9FF"]
    named = (stem.lower().replace(drop, "") if drop else stem.lower() for stem in stems)
    return {f"package{folder}{stem}{suffix}": noise_png(first + place, 64, 0.5) for place, stem in enumerate(named)}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    index = {"package/emoji.json": json.dumps(entries()).encode()}
    write_tar(tmp_path / GOOGLE, files("/img/google/64/") | index)
    write_tar(tmp_path / TWITTER, files("/img/twitter/64/", first=10) | index)
    # Pillow tells the kind of a picture by its content.
    write_tar(tmp_path / FLUENT, files("/assets/", drop="-fe0f", suffix=".webp", first=20))
    return tmp_path


def classes_of(images) -> list[str]:
    return sorted(images.class_names[label] for label in images.labels)


def test_a_class_is_a_style_and_a_group_and_skin_tones_are_of_their_group(packages):
    images = read_emoji64(packages)
    assert len(CLASS_NAMES) == 27 and images.images.shape == (9, 64, 64, 3)
    assert classes_of(images) == sorted(
        f"{style.name}: {group}" for style in STYLES for group in ("People & Body", "People & Body", "Food & Drink")
    )
    assert (images.images[:, 40:] == 255).all(), "the lower half is transparent, and the ground is white"


def test_a_concept_is_held_out_and_halved_in_all_styles_at_once(packages, monkeypatch):
    assert classes_of(read_emoji64(packages, "test")) == sorted(f"{style.name}: Flags" for style in STYLES)
    monkeypatch.chdir(packages)
    a, b = (read_recipe("emoji64", None, half=half) for half in ("a", "b"))
    assert classes_of(a) == sorted(2 * [f"{style.name}: People & Body" for style in STYLES])
    assert classes_of(b) == sorted(f"{style.name}: Food & Drink" for style in STYLES)
    assert b.name == "emoji64-b"
    with pytest.raises(DataError, match="no images for the test split, half"):
        read_emoji64(packages, "test", "b" if half_of(CONCEPTS["test"]) == "a" else "a")


def test_installed_packages_are_found_as_well(packages, tmp_path):
    index = {"emoji.json": json.dumps(entries()).encode()}
    modules = tmp_path / "project" / "node_modules"
    for package, folder, more in (
        ("emoji-datasource-google", "img/google/64", index),
        ("emoji-datasource-twitter", "img/twitter/64", {}),
        ("@lobehub/fluent-emoji-3d", "assets", {}),
    ):
        first = {"google": 0, "twitter": 10}.get(folder.split("/")[1] if "/" in folder else "", 20)
        pictures = files(f"/{folder}/", first=first)
        write_files(modules / package, {name.removeprefix("package/"): one for name, one in pictures.items()} | more)
    found = read_emoji64(tmp_path / "project")
    assert len(found.images) == 9
    np.testing.assert_array_equal(np.sort(found.labels), np.sort(read_emoji64(packages).labels))


def test_missing_packages_are_named_with_their_commands(packages, tmp_path):
    (packages / TWITTER).unlink()
    (packages / FLUENT).unlink()
    commands = "npm pack emoji-datasource-twitter@16.0.0 && npm pack @lobehub/fluent-emoji-3d@1.1.0"
    with pytest.raises(DataError, match=rf"Twemoji and Fluent are missing: run `{commands}` here"):
        read_emoji64(packages)
    with pytest.raises(DataError, match="is not a folder; --source names one that holds the packages of Noto, Twemoji"):
        read_emoji64(packages / GOOGLE)


@pytest.mark.parametrize(
    ("index", "message"),
    [(None, "holds no emoji.json"), (b"{", "is not the index"), (b'[{"unified": "1F600"}]', "is not the index")],
    ids=["none", "no JSON", "no category"],
)
def test_an_index_that_cannot_be_read_is_refused(packages, index, message):
    more = {} if index is None else {"package/emoji.json": index}
    write_tar(packages / GOOGLE, files("/img/google/64/") | more)
    with pytest.raises(DataError, match=message):
        read_emoji64(packages)


def test_a_package_without_known_pictures_is_refused(packages):
    write_tar(packages / FLUENT, {"package/assets/readme.png": noise_png(0, 8)})
    with pytest.raises(DataError, match=r"holds no pictures of Fluent; fetch it again: npm pack @lobehub"):
        read_emoji64(packages)


def test_code_points_are_compared_without_variation_selectors_and_leading_zeros():
    assert code_points("00A9-FE0F") == code_points("a9") == (0xA9,)
    assert code_points("1f468-200d-1f33e") == (0x1F468, 0x200D, 0x1F33E)
