"""What a start measures is known to the next one with the same settings, network and machine."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from server.machine import kept
from server.machine.start_times import keeper, read_start_times, shared_times
from server.settings.settings import Settings
from tests.server.fakes import manifest

MODELS = {"a": replace(manifest(), backend="onnxruntime-cpu"), "b": replace(manifest(), network_sha256="other")}
SETTINGS = Settings({name: Path("/nowhere") for name in MODELS}, workers=2, threads=1, backend="onnxruntime-cpu")
TIMES = {1: 0.004, 16: 0.06}


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def test_times_come_back_with_the_same_settings_alone(tmp_path: Path):
    keeper(SETTINGS, MODELS, tmp_path)("a", TIMES)
    assert read_start_times(SETTINGS, MODELS, tmp_path) == {"a": TIMES}
    for changes in ({"threads": 2}, {"workers": 1}, {"mode": "exact"}, {"capacity": 8}, {"backend": "openvino"}):
        assert read_start_times(replace(SETTINGS, **changes), MODELS, tmp_path) == {}, changes
    again = {**MODELS, "a": replace(MODELS["a"], network_sha256="exported again")}
    assert read_start_times(SETTINGS, again, tmp_path) == {}


def test_servers_with_different_threads_keep_their_times_beside_each_other(tmp_path: Path):
    other = replace(SETTINGS, threads=2)
    keeper(SETTINGS, MODELS, tmp_path)("a", TIMES)
    keeper(other, MODELS, tmp_path)("a", {1: 0.5})
    assert read_start_times(SETTINGS, MODELS, tmp_path) == {"a": TIMES}
    assert read_start_times(other, MODELS, tmp_path) == {"a": {1: 0.5}}


def test_a_server_measures_what_no_earlier_start_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shared_times(SETTINGS, MODELS).get("a", lambda: TIMES)
    again = shared_times(SETTINGS, MODELS, {"b": {1: 0.5}})
    assert again.get("a", dict) == TIMES and again.get("b", dict) == {1: 0.5}
    newer = shared_times(SETTINGS, MODELS, {"a": {1: 0.5}})
    assert newer.get("a", dict) == {1: 0.5}, "measured now, to settle the settings"


def test_the_largest_batch_that_may_be_asked_for_can_be_kept(tmp_path: Path):
    keeper(SETTINGS, MODELS, tmp_path)("a", {4_096: 1.0})
    assert read_start_times(SETTINGS, MODELS, tmp_path) == {"a": {4_096: 1.0}}


def test_a_busy_machine_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1_000.0, 0.0, 0.0))
    keeper(SETTINGS, MODELS, tmp_path)("a", TIMES)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_kept_of_a_gpu(tmp_path: Path):
    for settings in (replace(SETTINGS, devices=(0,)), replace(SETTINGS, backend="tensorrt")):
        keeper(settings, MODELS, tmp_path)("a", TIMES)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").touch()
    assert read_start_times(SETTINGS, MODELS, tmp_path / "file") == {}
    keeper(SETTINGS, MODELS, tmp_path / "file")("a", TIMES)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_damaged_file_and_a_full_disk_mean_measuring_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    keeper(SETTINGS, MODELS, tmp_path)("a", TIMES)
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    assert read_start_times(SETTINGS, MODELS, tmp_path) == {}
    assert "are measured again" in caplog.text

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_atomically", full)
    with caplog.at_level(logging.INFO):
        keeper(SETTINGS, MODELS, tmp_path)("a", TIMES)
    assert "No space left on device; the next start measures again" in caplog.text
