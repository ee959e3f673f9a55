"""A zip is refused before anything is unpacked when the disk has no room for its pictures."""

import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.data.format import DataError
from trainer.data.sources import given


def test_a_zip_that_does_not_fit_on_the_disk_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(30):
            archive.writestr(f"{number}.png", bytes(1_000_000))
        archive.writestr("notes.txt", bytes(10))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    monkeypatch.setattr(given.shutil, "disk_usage", lambda _: SimpleNamespace(free=29_999_999))
    with pytest.raises(DataError, match=r"unpacks to 0\.0 GB, and .* has 0\.0 GB free; set TMPDIR"):
        given._unpack(tmp_path / "photos.zip", unpacked)
    assert not list(unpacked.iterdir())
    monkeypatch.setattr(given.shutil, "disk_usage", lambda _: SimpleNamespace(free=30_000_000))
    assert len(list(given._unpack(tmp_path / "photos.zip", unpacked).iterdir())) == 30
