"""What a server makes of settings that leave something to the machine; measured, kept, and measured again."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from fewstep import cores
from fewstep.cache_folder import cache_folder
from server.__main__ import main
from server.check import choice_lines
from server.machine import kept
from server.machine import settle as settling
from server.machine.choice import Layout
from server.machine.settle import Settled, settle
from server.machine.trial import LayoutError, measure_layout
from server.settings.settings import Settings, SettingsError
from server.settings.sources import resolve
from tests.server.fakes import manifest

HERE = {"tiny": Path("/nowhere")}
SLOW, FAST = {1: 0.010, 16: 0.080}, {1: 0.005, 16: 0.040}


class Machine:
    """Two idle cores with OpenVINO, and times for each backend; a text instead of them is why it does not run."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.measured: list[Layout] = []
        self.times: dict[str, Mapping[int, float] | str] = {"onnxruntime-cpu": SLOW, "openvino": FAST}
        self.load = 0.0
        monkeypatch.setattr(cores, "usable", lambda: (0, 1))
        monkeypatch.setattr(cores, "quota", lambda: None)
        monkeypatch.setattr(os, "getloadavg", lambda: (2 * self.load, 0.0, 0.0))
        monkeypatch.setattr(settling, "find_spec", lambda name: object())
        self.model = replace(manifest(), backend="onnxruntime-cpu", proofs={"openvino": {}})

    def measure(self, folder: Path, layout: Layout) -> Mapping[int, float]:
        self.measured.append(layout)
        times = self.times[layout.backend]
        if isinstance(times, str):
            raise LayoutError(times, lasting="for now" not in times)
        return {size: seconds * (1 if layout.workers == 1 else 1.2) for size, seconds in times.items()}

    def settle(
        self,
        workers: int = 0,
        say: Callable[[str], None] = lambda text: None,
        **changes: Any,
    ) -> Settled:
        """As of --workers auto, unless a number of workers is given."""
        self.measured.clear()
        settings = Settings(HERE, workers=workers, **changes)
        return settle(settings, {"tiny": self.model}, self.measure, self.home, say)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "cache", monkeypatch)


def test_the_faster_backend_runs_and_the_user_is_told_in_one_line(machine: Machine):
    found = machine.settle()
    assert found.settings == Settings(HERE, workers=2, threads=1, capacity=24, backend="openvino")
    assert found.chosen.endswith(
        "; the networks run with openvino, 2.0 times as fast as onnxruntime-cpu when measured here; "
        "--backend onnxruntime-cpu keeps the engine's"
    )
    layouts = {(each.backend, each.workers, each.threads) for each in machine.measured}
    assert layouts == {(name, *each) for name in ("onnxruntime-cpu", "openvino") for each in ((1, 2), (2, 1))}


def test_without_any_setting_the_faster_backend_runs_in_the_layout_that_the_settings_name(machine: Machine):
    many: list[dict[str, Any]] = [{"workers": 1}, {"workers": 3, "threads": 1}, {"workers": 40, "capacity": 4}]
    for changes in many:
        said: list[str] = []
        found = machine.settle(say=said.append, **changes)
        assert found.settings == Settings(HERE, **changes, backend="openvino")
        asked = Layout("openvino", min(changes["workers"], settling.MAX_WORKERS), changes.get("threads", 0))
        assert machine.measured == [replace(asked, backend="onnxruntime-cpu"), asked]
        assert found.chosen == (
            "the networks run with openvino, 2.0 times as fast as onnxruntime-cpu when measured here; "
            "--backend onnxruntime-cpu keeps the engine's"
        )
        assert "measuring call times of tiny, seconds each" in said[0] and "measuring took" in said[1]
        assert found.calls == {"tiny": machine.measure(HERE["tiny"], asked)}, "the workers need not measure them again"
        said.clear()
        assert machine.settle(say=said.append, **changes) == found
        assert not machine.measured and not said


def test_a_backend_that_is_hardly_faster_or_does_not_run_leaves_the_engines(machine: Machine):
    machine.times["openvino"] = {1: 0.0095, 16: 0.076}
    found = machine.settle(workers=1)
    assert found.settings == Settings(HERE) and not found.notes
    assert (
        found.chosen == "the networks run with onnxruntime-cpu, the engine's backend: openvino is not 1.1 times as fast"
    )
    machine.model = replace(machine.model, network_sha256="d" * 64)
    machine.times["openvino"] = "this CPU has no bfloat16"
    found = machine.settle(workers=1)
    assert found.settings == Settings(HERE) and not found.notes and "the fastest that runs here" in found.chosen
    assert found.refused == (
        "openvino, 1 worker of threads as the backend likes does not run here: this CPU has no bfloat16",
    )
    machine.model = replace(machine.model, network_sha256="e" * 64)
    machine.times = {"onnxruntime-cpu": "broken", "openvino": FAST}
    found = machine.settle(workers=1)
    assert found.settings == Settings(HERE) and "broken" in found.notes[0], "its worker says what is wrong"


@pytest.mark.parametrize(
    "changes", [{"mode": "exact"}, {"backend": "onnxruntime-cpu"}, {"backend": "openvino"}, {"devices": (0,)}]
)
def test_nothing_is_measured_in_exact_mode_with_a_backend_or_for_gpus(machine: Machine, changes: Any):
    found = machine.settle(workers=1, **changes)
    assert found == Settled(Settings(HERE, **changes)) and not machine.measured


def test_nothing_is_measured_without_openvino_or_its_proof(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    proven, machine.model = machine.model, replace(machine.model, proofs={})
    assert machine.settle(workers=1) == Settled(Settings(HERE)) and not machine.measured
    machine.model = proven
    monkeypatch.setattr(settling, "find_spec", lambda name: None)
    assert machine.settle(workers=1) == Settled(Settings(HERE)) and not machine.measured


def test_what_cannot_be_kept_is_not_measured_at_every_start(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    machine.home.write_text("a file, where a folder would be")
    found = machine.settle(workers=1)
    assert found.settings == Settings(HERE) and not machine.measured
    assert f"no call times can be kept in {machine.home}" in found.notes[0] and "XDG_CACHE_HOME" in found.notes[0]
    monkeypatch.setattr(settling, "cache_folder", lambda name: None)
    found = settle(Settings(HERE), {"tiny": machine.model}, machine.measure)
    assert found.settings == Settings(HERE) and "no home folder" in found.notes[0]


@pytest.mark.parametrize("changes", [{"backend": "onnxruntime-cpu"}, {"mode": "exact"}, {"backend": "openvino"}])
def test_who_names_a_backend_or_wants_the_same_bytes_everywhere_gets_them(machine: Machine, changes: Any):
    found = machine.settle(**changes)
    own = changes.get("backend", "onnxruntime-cpu")
    assert found.settings.backend == changes.get("backend")
    assert not found.deferred
    assert {each.backend for each in machine.measured} == {own} and "the networks run" not in found.chosen


def test_a_backend_without_a_proof_for_every_engine_is_no_rival(machine: Machine):
    other = replace(machine.model, proofs={})
    both = {"tiny": machine.model, "b": other}
    found = settle(Settings(HERE, workers=0), both, machine.measure, machine.home)
    assert found.settings.backend is None and {each.backend for each in machine.measured} == {"onnxruntime-cpu"}


def test_auto_chooses_workers_threads_and_slots_and_keeps_what_is_given(machine: Machine):
    found = machine.settle(workers=0)
    assert found.settings == Settings(HERE, workers=2, threads=1, capacity=24, backend="openvino")
    assert found.chosen.startswith("workers auto: openvino, 2 workers of 1 thread, 24 slots each: 4 steps alone 24")
    assert len(found.fits) == 4
    assert machine.settle(workers=0, mode="exact").settings.backend is None
    given = machine.settle(workers=0, threads=2, capacity=5, backend="onnxruntime-cpu").settings
    assert (given.workers, given.threads, given.capacity, given.backend) == (1, 2, 5, "onnxruntime-cpu")


def test_a_second_start_measures_nothing_and_a_new_question_only_what_is_missing(machine: Machine):
    first = machine.settle(workers=0)
    assert machine.settle() == first and not machine.measured
    kept_times = len(first.fits)
    machine.model = replace(machine.model, proofs={"openvino": {}, "openvino-f32": {}})
    machine.times["openvino-f32"] = SLOW
    assert len(machine.settle().fits) > kept_times
    assert {each.backend for each in machine.measured} == {"openvino-f32"}


def test_another_network_library_or_processor_is_measured_anew(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    known = kept.identity(machine.model)
    assert known["onnxruntime"] == version("onnxruntime") and known["processor"] != "unknown"
    for change in (
        lambda: setattr(machine, "model", replace(machine.model, network_sha256="f" * 64)),
        lambda: monkeypatch.setattr(kept, "processor", lambda: "another"),
        lambda: monkeypatch.setattr(kept, "_version", lambda package: "another"),
    ):
        machine.settle()
        change()
        machine.settle()
        assert len(machine.measured) == 4
    monkeypatch.setattr(cores, "quota", lambda: 1.0)
    machine.settle()
    assert {(each.workers, each.threads) for each in machine.measured} == {(1, 1)}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"format": 2}', b"\xff\xfe", b"[" * 99_999, "another machine", "no load",
        {"1": -1}, {"1": -1.0}, {"1": 10**400}, {"1": float("nan")}, {"1": 1e-300}, {str(10**15): 1.0}, {"x": 1.0},
        {"1": 1.0, "2": 0.5},
    ],
)  # fmt: skip
def test_a_file_that_is_no_good_is_measured_again_and_replaced(machine: Machine, content: bytes | str | dict):
    first = machine.settle()
    assert first.path
    data = json.loads(first.path.read_bytes())
    if isinstance(content, dict):
        data["measured"][0]["calls_s"] = content
    elif content == "another machine":
        data["identity"]["processor"] = "another"
    else:
        del data["load"]
    first.path.write_bytes(content if isinstance(content, bytes) else json.dumps(data).encode())
    again = machine.settle()
    assert len(machine.measured) == 4 and again.settings == first.settings
    assert len(again.notes) == 1 and "cannot be used" in again.notes[0] and "measured again" in again.notes[0]
    assert not machine.settle().notes and not machine.measured


def test_a_folder_that_cannot_be_written_is_said_and_changes_nothing_else(machine: Machine):
    machine.home.write_text("a file, where a folder would be")
    found = machine.settle()
    assert found.settings.backend == "openvino" and found.deferred, "nobody named it"
    (note,) = found.notes
    assert str(machine.home) in note and "the next start measures again" in note


def test_a_user_without_a_home_is_told_that_every_start_measures(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder("times", {"XDG_CACHE_HOME": "relative"}) is None
    assert cache_folder("times", {"XDG_CACHE_HOME": "/c"}) == Path("/c/fewstep/times")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found = settle(Settings(HERE, workers=0), {"tiny": machine.model}, machine.measure)
    assert found.settings.backend == "openvino" and found.path is None
    assert "XDG_CACHE_HOME names one" in found.notes[0]


def test_a_backend_that_does_not_run_is_said_and_remembered(machine: Machine):
    machine.times["openvino"] = "this CPU has no bfloat16"
    for _ in range(2):
        found = machine.settle()
        assert found.settings.backend is None and "openvino" not in found.chosen
    assert not machine.measured
    machine.model = replace(machine.model, network_sha256="e" * 64)
    machine.times["onnxruntime-cpu"] = "broken"
    with pytest.raises(SettingsError, match=r"no way to run tiny works here.*broken"):
        machine.settle()
    machine.times["onnxruntime-cpu"] = SLOW  # the engine was mended, and its network is the same
    assert machine.settle().settings.workers == 2 and len(machine.measured) == 4


def test_what_fails_for_now_is_said_and_tried_again_at_the_next_start(machine: Machine):
    machine.times["openvino"] = "no memory for now"
    assert any("no memory for now" in note for note in machine.settle().notes)
    machine.times["openvino"] = FAST
    assert machine.settle().settings.backend == "openvino"
    assert {each.backend for each in machine.measured} == {"openvino"}


def test_times_of_a_busy_machine_change_no_backend_and_are_measured_again_when_it_is_idle(machine: Machine):
    machine.load = 3.0
    for _ in range(2):
        found = machine.settle()
        assert found.settings.backend is None
        assert "the load was 3.0 for each core" in found.notes[-1]
    assert not machine.measured, "it is as busy as before"
    machine.load = 0.1
    assert machine.settle().settings.backend == "openvino"
    assert len(machine.measured) == 4
    machine.load = 3.0
    assert machine.settle().settings.backend == "openvino", "times of an idle machine stay"


def test_the_default_measures_nothing_on_a_busy_machine_and_uses_what_is_kept(machine: Machine):
    machine.load = 3.0
    found = machine.settle(workers=1)
    assert found.settings == Settings(HERE) and not machine.measured and not found.chosen
    assert "the load is 3.0 for each core, so no backend was measured" in found.notes[0]
    machine.load = 0.1
    assert machine.settle(workers=1).settings.backend == "openvino"
    machine.load = 3.0
    assert machine.settle(workers=1).settings.backend == "openvino" and not machine.measured


def test_the_lines_of_check_have_the_choice_each_figure_and_what_does_not_run(machine: Machine):
    machine.model = replace(machine.model, proofs={"openvino": {}, "openvino-f32": {}})
    machine.times |= {"openvino": "this CPU has no bfloat16", "openvino-f32": FAST}
    found = machine.settle(workers=1)
    assert list(choice_lines(found)) == [
        "",
        f"# chosen for this machine: {found.fit}",
        *(f"# measured: {each}" for each in reversed(found.fits)),
        "# openvino, 1 worker of threads as the backend likes does not run here: this CPU has no bfloat16",
        f"# kept in {found.path}; without that file, the next start measures again",
    ]
    assert str(found.fit).startswith(
        "openvino-f32, 1 worker of threads as the backend likes, 24 slots each: 4 steps al"
    )


def test_on_a_gpu_auto_is_one_worker_for_each_device(machine: Machine):
    machine.model = replace(machine.model, backend="torch")
    found = machine.settle(workers=0)
    assert found.settings == Settings(HERE, workers=1, capacity=0) and not machine.measured
    assert "one for each device" in found.notes[0]


@pytest.mark.parametrize(("arguments", "workers"), [(["--workers", "auto"], 0), (["--workers", "3"], 3)])
def test_auto_is_a_word_of_flags_variables_and_files(tmp_path: Path, arguments: list[str], workers: int):
    (tmp_path / "s.toml").write_text('workers = "auto"')
    assert resolve(arguments, {}).settings.workers == workers
    assert resolve([], {"FEWSTEP_WORKERS": " AUTO "}).settings.workers == 0
    assert resolve(["--config", str(tmp_path / "s.toml")], {}).settings.workers == 0
    with pytest.raises(SettingsError, match=r"--workers must be auto, or from 1 to 64, not 65"):
        resolve(["--workers", "65"], {})
    with pytest.raises(SettingsError, match=r"--threads must be a whole number, not 'auto'"):
        resolve(["--threads", "auto"], {})


def test_processes_measure_a_real_engine_side_by_side(engine_dir: Path):
    times = measure_layout(engine_dir, Layout("onnxruntime-cpu", 2, 1))
    assert {1, 2} <= set(times) and all(seconds > 0 for seconds in times.values())


def test_a_process_that_cannot_load_says_why(engine_dir: Path, tmp_path: Path):
    with pytest.raises(LayoutError) as refused:
        measure_layout(tmp_path, Layout("onnxruntime-cpu", 2, 1))
    assert "holds no engine.json" in refused.value.why


def test_check_prints_the_choice_and_its_figures(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["--check", "--engine", str(engine_dir), "--workers", "auto", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert 'workers = "auto"' in said
    assert "# chosen for this machine: onnxruntime-cpu, " in said and "images/s when full" in said
    assert f"# kept in {tmp_path}/fewstep/times/" in said
    (tmp_path / "s.toml").write_text(said)
    assert resolve(["--config", str(tmp_path / "s.toml")], {}).settings.workers == 0
