"""Compiled models on disk: what is read is what was written, whole, for this network and machine, or nothing."""

import multiprocessing
import os
from pathlib import Path

import pytest

from export.backends import kept_models
from export.backends.kept_models import read, write

IDENTITY = {"library": "openvino 2026", "network": "a" * 64, "rows": 2}
PARTS = [b"first" * 1000, b"", b"\x00\nlast"]


def test_what_was_written_is_read_and_of_another_network_library_or_size_nothing_is(tmp_path: Path):
    folder = tmp_path / "made" / "here"
    assert read(folder, IDENTITY) is None
    write(folder, IDENTITY, PARTS)
    assert read(folder, IDENTITY) == PARTS
    for name, value in (("library", "openvino 2027"), ("network", "b" * 64), ("rows", 4)):
        assert read(folder, {**IDENTITY, name: value}) is None
    assert [path.suffix for path in folder.iterdir()] == [kept_models.SUFFIX], "nothing else is left"


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[:100], lambda content: content[:-1], lambda content: content + b"x",
    lambda content: content.replace(b"first", b"forst", 1), lambda content: b"[]\n" + content,
    lambda content: b"\xff" * 70_000, lambda content: content.replace(b'"format": 1', b'"format": 2'),
    lambda content: content.replace(b"openvino 2026", b"openvino 2025"),
])  # fmt: skip
def test_a_damaged_file_is_said_and_written_again(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, IDENTITY, PARTS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert read(tmp_path, IDENTITY) is None
    assert f"the compiled model in {path} cannot be used (" in caplog.text and "is compiled again" in caplog.text
    write(tmp_path, IDENTITY, PARTS)
    assert read(tmp_path, IDENTITY) == PARTS


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "file" / "compiled"
    folder.parent.write_text("a file, where a folder would be")
    for _ in range(2):
        write(folder, IDENTITY, PARTS)
    assert caplog.text.count("compiled models cannot be kept in") == 1 and "XDG_CACHE_HOME" in caplog.text


def test_the_folder_stays_small_and_what_was_used_last_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_models, "MAX_BYTES", 13_000)  # two files
    for rows in (1, 2):
        write(tmp_path, {**IDENTITY, "rows": rows}, PARTS)
    for age, path in enumerate(tmp_path.iterdir()):
        os.utime(path, (1000 + age, 1000 + age))
    assert read(tmp_path, {**IDENTITY, "rows": 1})
    write(tmp_path, {**IDENTITY, "rows": 3}, PARTS)
    assert [rows for rows in (1, 2, 3) if read(tmp_path, {**IDENTITY, "rows": rows})] == [1, 3]


def write_often(folder: Path) -> None:
    for _ in range(100):
        write(folder, IDENTITY, PARTS)


def test_processes_that_write_at_once_never_leave_a_part(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, IDENTITY, PARTS)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert read(tmp_path, IDENTITY) == PARTS
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0] and not caplog.text
