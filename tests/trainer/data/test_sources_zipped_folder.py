"""A zip of pictures is read like the folder that was zipped, where it is, and whatever is wrong is named."""

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.format import DataError
from trainer.data.sources.folder import read_folder
from trainer.data.sources.given import read_given


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(autouse=True)
def _no_room_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))


def test_a_zip_has_the_images_of_its_folder(tmp_path: Path):
    names = ("cats/a.png", "cats/deep/z.png", "cats-2/b.png", "dogs & co/100%.png", "dogs & co/.._.png")
    for seed, name in enumerate(names):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(seed))
    folder = read_folder(tmp_path / "photos", resolution=32)
    for around in ("photos/", "", "./", "../out/", "home/me/photos/"):
        members = {f"{around}{name}": png(seed) for seed, name in enumerate(names)}
        junk = {f"__MACOSX/{around}cats/._a.png": b"junk", f"{around}.DS_Store": b"junk", f"{around}notes.heic": b""}
        images = read_given(zipped(tmp_path / "photos.zip", {**junk, **members}), 32)
        assert images.sha256() == folder.sha256() and images.class_names == folder.class_names
        assert [Path(name).name for name in images.unread] == ["notes.heic"]


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("photos/1.png", "photos/2.png"), ()),
        (("photos/cats/1.png", "photos/cats/2.png"), ("cats",)),
        ((r"photos\cats\1.png", r"photos\dogs\1.png"), ("cats", "dogs")),
        ((f"{300 * 'x'}/1.png", "y/1.png"), (300 * "x", "y")),
    ],
)
def test_what_the_classes_of_a_zip_are(names: tuple[str, ...], classes: tuple[str, ...], tmp_path: Path):
    images = read_given(zipped(tmp_path / "a.zip", {name: png(0) for name in names}), 32)
    assert images.class_names == tuple(sorted(classes)) and len(images.images) == 2


def test_every_member_that_cannot_be_read_is_named(tmp_path: Path):
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        path = zipped(tmp_path / "a.zip", {"p/1.png": png(1), "p/2.png": b"no picture", "p/3.png": png(3)}, compression)
        content = bytearray(path.read_bytes())
        content[60:120] = b"\xff" * 60  # within the first picture
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_given(path, 32)
        first, *others = str(caught.value).splitlines()
        assert first.startswith("2 of 3 pictures") and f"{path}: p/1.png cannot be unpacked" in others[0]
        assert f"{path}: p/2.png is not a readable image" in others[1]


def test_a_zip_that_is_not_clear_is_refused(tmp_path: Path):
    for members, said in (
        ({"a.png": png(0), "a.png/b.png": png(1)}, r"a\.zip/a\.png lies beside class folders"),
        ({"edm/0/a.png": png(0), "edm/dataset.json": b"{}"}, r"edm/dataset\.json has to lie at the top"),
        ({"readme.txt": b"", "film.mov": b""}, r"a\.zip holds no images .*its files are film\.mov, readme\.txt"),
    ):
        with pytest.raises(DataError, match=said):
            read_given(zipped(tmp_path / "a.zip", members), 32)
