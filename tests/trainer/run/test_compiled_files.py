"""What a killed process left unfinished in the cache of compiled kernels is removed; all else stays."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from trainer.run.compiled_files import LINKED_S, is_finished, remove_unfinished

NOW = 1_700_000_000.0
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to make a library")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    place = tmp_path_factory.mktemp("library")
    (place / "one.c").write_text("int one(void) { return 1; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(place / "one.so"), str(place / "one.c")], check=True)
    return (place / "one.so").read_bytes()


def written(folder: Path, name: str, content: bytes, age_s: float = 100.0) -> Path:
    path = folder / "ab" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (NOW - age_s, NOW - age_s))
    return path


@needs_gcc
@pytest.mark.parametrize("kept", [0, 1, 63, 64, 1000, -1])
def test_a_library_that_lacks_its_end_is_removed(library: bytes, tmp_path: Path, kept: int):
    whole, cut = written(tmp_path, "whole.so", library), written(tmp_path, "cut.so", library[:kept])
    other = written(tmp_path, "kernel.cpp", b"")
    remove_unfinished(tmp_path, now=lambda: NOW)
    assert (whole.exists(), cut.exists(), other.exists()) == (True, False, True)


@needs_gcc
def test_zeros_of_the_right_size_are_no_library(library: bytes, tmp_path: Path):
    assert not is_finished(written(tmp_path, "zeros.so", bytes(len(library))))
    assert is_finished(written(tmp_path, "text.so", b"GROUP ( libc.so.6 )"))


@needs_gcc
def test_a_library_that_is_being_linked_is_waited_for(library: bytes, tmp_path: Path):
    young, waits = written(tmp_path, "young.so", b"", age_s=LINKED_S - 3), []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            young.write_bytes(library)

    remove_unfinished(tmp_path, now=lambda: NOW, wait=wait)
    assert young.exists() and len(waits) == 2


def test_one_that_stays_unfinished_is_removed_after_a_while(tmp_path: Path):
    young, clock = written(tmp_path, "young.so", b"", age_s=0), [NOW]

    def wait(seconds: float) -> None:
        clock[0] += seconds

    remove_unfinished(tmp_path, now=lambda: clock[0], wait=wait)
    assert not young.exists() and clock[0] == NOW + LINKED_S


def test_a_library_that_another_process_removes_meanwhile_disturbs_nothing(tmp_path: Path):
    young = written(tmp_path, "young.so", b"", age_s=0)
    remove_unfinished(tmp_path, now=lambda: NOW, wait=lambda seconds: young.unlink())
    remove_unfinished(tmp_path / "nowhere", now=lambda: NOW)
