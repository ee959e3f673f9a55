"""The dataset zip and the `data` command: exact, reproducible, and nothing written when something is wrong."""

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.card import CheckpointError
from trainer.data import command as data
from trainer.data import named
from trainer.data.format import DataError, ImageSet, read_image_set, sigma_data, write_image_set
from trainer.data.named import load_recipe_dataset


def command(*arguments: str | Path) -> None:
    """What `fewstep trainer data ...` does, errors not yet turned into an exit code."""
    data.run([str(argument) for argument in arguments])


def test_a_zip_gives_back_exactly_what_was_written_memory_mapped(fashion_2000: ImageSet, fashion_2000_zip: Path):
    read = read_image_set(fashion_2000_zip, verify=True)
    assert isinstance(read.images, np.memmap)
    np.testing.assert_array_equal(read.images, fashion_2000.images)
    np.testing.assert_array_equal(read.labels, fashion_2000.labels)
    assert replace(read, images=fashion_2000.images, labels=fashion_2000.labels) == fashion_2000
    assert read.sha256() == fashion_2000.sha256()
    assert not read.images.flags.writeable


def test_the_fixture_is_real_and_balanced(fashion_2000: ImageSet):
    assert fashion_2000.images.shape == (2000, 32, 32, 1)
    assert np.bincount(fashion_2000.labels).tolist() == [200] * 10
    assert len(np.unique(fashion_2000.images, axis=0)) == 2000
    assert not fashion_2000.images[:, :2].any()
    trousers, bags = (fashion_2000.images[fashion_2000.labels == label].mean(axis=(0, 3)) for label in (1, 8))
    assert trousers[:, 4:8].mean() < 5 < 50 < bags[12:24, 4:8].mean()  # trousers are narrow, bags are wide


def test_the_same_images_give_the_same_file(fashion_2000: ImageSet, fashion_2000_zip: Path, tmp_path: Path):
    write_image_set(tmp_path / "again.zip", fashion_2000)
    assert (tmp_path / "again.zip").read_bytes() == fashion_2000_zip.read_bytes()


def test_the_hash_covers_pixels_labels_and_shape(fashion_2000: ImageSet):
    few = replace(fashion_2000, images=fashion_2000.images[:4], labels=fashion_2000.labels[:4])
    pixels = few.images.copy()
    pixels[0, 0, 0, 0] += 1
    changed = [
        replace(few, images=pixels),
        replace(few, labels=few.labels + 1),
        replace(few, images=few.images.reshape(16, 16, 16, 1), labels=np.repeat(few.labels, 4)),
    ]
    assert len({few.sha256(), *(images.sha256() for images in changed)}) == 4


def test_sigma_data_is_the_standard_deviation_of_the_pixels(fashion_2000: ImageSet):
    assert sigma_data(fashion_2000.images) == pytest.approx((fashion_2000.images / 127.5 - 1).std(), rel=1e-9)


@pytest.mark.parametrize(
    "fields",
    [
        {"images": np.zeros((2, 4, 5, 1), np.uint8)},
        {"images": np.zeros((2, 4, 4, 2), np.uint8)},
        {"images": np.zeros((2, 4, 4, 1), np.float32)},
        {"images": np.zeros((2, 4, 4), np.uint8)},
        {"labels": np.zeros(3, np.int32)},
        {"labels": np.array([0, 2], np.int32)},
    ],
)
def test_images_that_do_not_belong_together_are_refused(fields: dict[str, Any]):
    good = ImageSet("x", np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32), ("a", "b"), "", "")
    with pytest.raises(DataError, match=r"^x: "):
        replace(good, **fields)


def test_damaged_pixels_are_noticed_when_asked(fashion_2000_zip: Path, tmp_path: Path):
    content = bytearray(fashion_2000_zip.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "damaged.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match="do not match the hash"):
        read_image_set(path, verify=True)


def rewrite(
    source: Path, target: Path, members: Mapping[str, bytes | None], compression: int = zipfile.ZIP_STORED
) -> Path:
    """A copy of a dataset zip with some members replaced, or left out where None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = members.get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_a_truncated_or_foreign_file_is_refused_by_name(fashion_2000_zip: Path, tmp_path: Path):
    content = fashion_2000_zip.read_bytes()
    path = tmp_path / "bad.zip"
    for damaged in (b"", b"nonsense", content[:-30], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad\.zip is not a fewstep dataset"):
            read_image_set(path)
    with pytest.raises(DataError, match="does not exist"):
        read_image_set(tmp_path / "missing.zip")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"images.npy": None}, "not a fewstep dataset"),
        ({"dataset.json": None}, "not a fewstep dataset"),
        ({"dataset.json": b"[]"}, "not a fewstep dataset"),
        ({"dataset.json": b"{"}, "not a fewstep dataset"),
        ({"dataset.json": b"{}"}, "dataset format None; this version reads 1"),
        ({"dataset.json": b'{"format": 2}'}, "dataset format 2"),
        ({"dataset.json": b'{"format": 1}'}, "not a fewstep dataset"),
        ({"images.npy": npy(np.zeros((2000, 4, 4, 1)))}, "not uint8"),
        ({"images.npy": npy(np.asfortranarray(np.zeros((2000, 4, 4, 1), np.uint8)))}, "in C order"),
        ({"images.npy": b"not an array"}, "not a fewstep dataset"),
        ({"labels.npy": npy(np.zeros(3, np.int32))}, "3 labels for 2000 images"),
        ({"labels.npy": b""}, "not a fewstep dataset"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_zip_with_wrong_members_is_refused_in_words(
    fashion_2000_zip: Path, tmp_path: Path, members: dict[str, bytes | None], message: str
):
    with pytest.raises(DataError, match=message):
        read_image_set(rewrite(fashion_2000_zip, tmp_path / "x.zip", members))


def test_a_compressed_zip_is_refused(fashion_2000_zip: Path, tmp_path: Path):
    with pytest.raises(DataError, match="is compressed"):
        read_image_set(rewrite(fashion_2000_zip, tmp_path / "x.zip", {}, zipfile.ZIP_DEFLATED))


def test_pickled_arrays_are_never_loaded(fashion_2000_zip: Path, tmp_path: Path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"an": "object"}] * 2000, dtype=object), allow_pickle=True)
    for member in ("images.npy", "labels.npy"):
        with pytest.raises(DataError):
            read_image_set(rewrite(fashion_2000_zip, tmp_path / "x.zip", {member: buffer.getvalue()}))


def test_the_digits_command_writes_a_zip_and_says_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command("digits", "--out", tmp_path / "sub" / "d.zip", "--limit", "50", "--name", "few")
    printed = capsys.readouterr().out
    assert "few: 50 images, 8x8 gray" in printed
    images = read_image_set(tmp_path / "sub" / "d.zip", verify=True)
    assert images.images.shape == (50, 8, 8, 1)
    assert images.sha256() in printed
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["d.zip"]


def test_the_folder_command_takes_resolution_gray_and_licence(tmp_path: Path):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        Image.new("RGB", (9, 6), (200, 10, 10)).save(tmp_path / "in" / name)
    out = tmp_path / "out.zip"
    command("folder", tmp_path / "in", "--resolution", "4", "--gray", "--licence", "CC0-1.0", "--out", out)
    images = read_image_set(out)
    assert images.images.shape == (2, 4, 4, 1)
    assert (images.class_names, images.licence) == (("a", "b"), "CC0-1.0")
    with zipfile.ZipFile(out) as archive:
        assert json.loads(archive.read("dataset.json"))["licence"] == "CC0-1.0"


def test_the_edm_and_idx_commands_read_what_the_other_tools_write(tmp_path: Path):
    pixels = np.arange(3 * 9, dtype=np.uint8).reshape(3, 3, 3)
    (tmp_path / "images").write_bytes(
        bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (3, 3, 3)) + pixels.tobytes()
    )
    (tmp_path / "labels").write_bytes(bytes((0, 0, 8, 1)) + (3).to_bytes(4, "big") + bytes((1, 0, 1)))
    command(
        "idx",
        tmp_path / "images",
        tmp_path / "labels",
        "--pad",
        "--class-names",
        "odd, even",
        "--out",
        tmp_path / "i.zip",
    )
    images = read_image_set(tmp_path / "i.zip")
    assert (images.images.shape, images.class_names) == ((3, 4, 4, 1), ("odd", "even"))
    with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
        buffer = io.BytesIO()
        Image.fromarray(pixels[0]).save(buffer, "PNG")
        archive.writestr("00000/img00000000.png", buffer.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": [["00000/img00000000.png", 1]]}))
    command("edm-zip", tmp_path / "edm.zip", "--out", tmp_path / "e.zip")
    np.testing.assert_array_equal(read_image_set(tmp_path / "e.zip").images[0, ..., 0], pixels[0])


def test_show_prints_every_class_and_draws_a_sheet(
    fashion_2000_zip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command("show", fashion_2000_zip, "--png", tmp_path / "sheet.png")
    printed = capsys.readouterr().out
    assert "fashion-2000: 2000 images, 32x32 gray" in printed
    assert "     200 Ankle boot" in printed
    assert "MIT" in printed
    assert "no class" not in printed
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (16 * 34 - 2, 10 * 34 - 2)


def test_images_without_a_class_are_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = ImageSet("x", np.zeros((3, 4, 4, 3), np.uint8), np.full(3, -1, np.int32), (), "", "")
    write_image_set(tmp_path / "x.zip", images)
    command("show", tmp_path / "x.zip", "--png", tmp_path / "sheet.png")
    assert "       3 no class" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("folder", "missing"),
        ("edm-zip", "missing.zip"),
        ("idx", "missing", "missing"),
        ("fashion", "--source", "missing"),
        ("sprites", "--source", "missing"),
        ("emoji", "--source", "missing"),
    ],
    ids=" ".join,
)
def test_whatever_is_wrong_nothing_is_written(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        command(*arguments, "--out", "out.zip")
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_cannot_be_written_is_refused_in_words(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is a folder"):
        command("digits", "--out", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        command("digits", "--out", tmp_path / "file" / "out.zip")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no command is named; choose digits, fashion,"),
        (("foldr",), "there is no command 'foldr'; did you mean folder?"),
        (("digits",), "--out is required"),
        (("digits", "--out", "a.zip", "--gray"), "there is no flag --gray"),
        (("digits", "--split", "tst"), "--split: 'tst' is none of train, test"),
    ],
)
def test_a_misspelt_command_exits_with_2(arguments, said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        command(*arguments)
    assert said in capsys.readouterr().err


def test_a_recipe_is_made_once_and_then_opened_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = load_recipe_dataset("digits", tmp_path)
    assert isinstance(first.images, np.memmap)
    monkeypatch.setitem(named.READERS, "digits", lambda source, split: pytest.fail("made twice"))
    assert load_recipe_dataset("digits", tmp_path).sha256() == first.sha256()
    monkeypatch.undo()
    test = load_recipe_dataset("digits", tmp_path, "test")
    assert len(test.images) + len(first.images) == 1797
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-test.zip", "digits.zip"]


def test_an_unknown_recipe_is_refused_with_the_list_of_recipes(tmp_path: Path):
    with pytest.raises(DataError, match="'cats'; the recipes are digits, fashion, sprites, emoji"):
        load_recipe_dataset("cats", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_deviation_takes_little_memory_and_is_the_same(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (6000, 64, 64, 3), dtype=np.uint8)  # 74 MB
    tracemalloc.start()
    measured = sigma_data(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    counts = np.bincount(pixels[:500].reshape(-1), minlength=256) / pixels[:500].size
    values = np.arange(256) / 127.5 - 1
    assert sigma_data(pixels[:500]) == pytest.approx(np.sqrt(counts @ values**2 - (counts @ values) ** 2), abs=1e-12)
    assert measured == pytest.approx(sigma_data(pixels[:500]), abs=1e-2)


def test_hash_and_deviation_are_stored_and_trusted(fashion_2000: ImageSet, tmp_path: Path, monkeypatch):
    path = tmp_path / "set.zip"
    write_image_set(path, fashion_2000)
    read = read_image_set(path)
    monkeypatch.setattr("trainer.data.format.sigma_data", lambda _: pytest.fail("all pixels were read"))
    monkeypatch.setattr("hashlib.sha256", lambda *_: pytest.fail("all pixels were hashed"))
    deviation, provenance = read.sigma_data(), read.provenance()
    monkeypatch.undo()
    assert deviation == pytest.approx(sigma_data(fashion_2000.images), abs=1e-9)
    assert provenance == fashion_2000.provenance()
    darker = replace(read, images=np.asarray(read.images) // 4)  # what was stored is of other pixels
    assert darker.sigma_data() == sigma_data(darker.images) != deviation and darker.sha256() != read.sha256()


def test_a_data_set_without_a_stored_deviation_is_measured(fashion_2000: ImageSet, tmp_path: Path):
    path = tmp_path / "set.zip"
    write_image_set(path, fashion_2000)
    rewrite_meta(path, lambda meta: meta.pop("sigma_data"))
    assert read_image_set(path, verify=True).sigma_data() == sigma_data(fashion_2000.images)
    rewrite_meta(path, lambda meta: meta.update(sigma_data=0.123))
    assert read_image_set(path).sigma_data() == 0.123
    with pytest.raises(DataError, match="do not have the deviation"):
        read_image_set(path, verify=True)
    rewrite_meta(path, lambda meta: meta.update(sha256=7))
    with pytest.raises(DataError, match="its sha256 is 7"):
        read_image_set(path)


def rewrite_meta(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(meta := json.loads(members["dataset.json"]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (members | {"dataset.json": json.dumps(meta).encode()}).items():
            archive.writestr(name, content)
