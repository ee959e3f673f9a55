"""Starting, refusing to start, stopping, and dying."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from server.__main__ import bind, main
from server.settings.settings import MODELS, Settings, SettingsError
from server.settings.sources import model_engine, resolve
from tests.server.conftest import DEADLINE_S, ROOT, launch, serving, wait_until, write_engine

Until = Callable[[Callable[[], bool]], None]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@contextmanager
def started_with_hangup(handler: signal.Handlers) -> Iterator[None]:
    """What SIGHUP does in programs that are started within: these tests themselves may run under nohup."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_ends_every_process_with_exit_code_0(engine_dir: Path, how: signal.Signals, until: Until):
    with started_with_hangup(signal.SIG_DFL), serving(engine_dir) as server:
        family = server.children()
        assert server.stop(how) == 0
        until(lambda: gone(family))


def test_nohup_keeps_a_server_from_hearing_that_its_terminal_is_gone(engine_dir: Path):
    with started_with_hangup(signal.SIG_IGN), serving(engine_dir) as server:
        status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
        ignored, blocked = (int(re.findall(rf"{name}:\s+(\w+)", status)[0], 16) for name in ("SigIgn", "SigBlk"))
        hangup = 1 << signal.SIGHUP - 1
        assert ignored & hangup and not blocked & hangup, "one that is blocked is waited for"


@pytest.mark.parametrize("victim", ["parent", "http"])
def test_a_killed_process_takes_the_others_with_it(engine_dir: Path, until: Until, victim: str):
    with serving(engine_dir, "--workers", "2") as server:
        family = server.children()
        if victim == "parent":
            server.process.kill()
        else:
            (http,) = [c for c in family if not any("onnxruntime" in m.path for m in c.memory_maps())]
            http.kill()
            assert server.process.wait(DEADLINE_S) == 1
        until(lambda: gone(family))


def test_a_server_whose_output_is_not_read_serves_and_stops(engine_dir: Path):
    process = launch(["--engine", str(engine_dir), "--port", "0", "--drain-s", "0"])
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert "stdout cannot be written: Broken pipe" in process.stderr.readline()
    process.terminate()
    assert (process.wait(DEADLINE_S), process.stderr.read()) == (0, "")


def refused(*arguments: str) -> str:
    """The sentence a server that cannot start leaves on stderr."""
    process = launch(arguments)
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, output) == (2, "")
    assert len(errors.strip().splitlines()) == 1, errors
    return errors


def test_a_port_in_use_is_refused(engine_dir: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}: Address already in use" in refused("--engine", str(engine_dir), "--port", port)


def test_too_few_open_files_are_refused(engine_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (16, 1_024))
    with pytest.raises(SettingsError, match="allows 16 open files"):
        bind(Settings({"tiny": engine_dir}, port=0))


def test_a_network_that_is_not_the_manifests_is_refused(tmp_path: Path):
    engine = tmp_path / "engine"
    write_engine(engine)
    with (engine / "network.onnx").open("ab") as file:
        file.write(b"x")
    assert "is not the file its manifest describes" in refused("--engine", str(engine), "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nosuch"], "there is no model 'nosuch'"),
        (["--model", "../fashion"], "there is no model"),
        (["--engine", "/nonexistent"], "it is not a fewstep engine"),
        (["--engine", "tiny=/nonexistent", "--capacity", "-1"], "--capacity must be from 0"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    assert main([*arguments, "--port", "0"]) == 2
    assert words in capsys.readouterr().err


def test_an_unknown_model_is_told_apart_from_those_there_are(tmp_path: Path):
    write_engine(tmp_path / "tiny" / "engine")
    (tmp_path / "untrained").mkdir()
    assert model_engine("tiny", tmp_path) == tmp_path / "tiny" / "engine"
    with pytest.raises(SettingsError, match="the models with an engine are: tiny"):
        model_engine("huge", tmp_path)
    assert MODELS.name == "models"


def test_flags_become_settings(engine_dir: Path):
    flags = ["--engine", str(engine_dir), "--mode", "exact", "--max-queue", "3", "--max-images", "9"]
    assert resolve(flags, {}).settings == Settings(
        engines={"tiny": engine_dir}, mode="exact", max_queue=3, max_images=9
    )
    with pytest.raises(SettingsError, match="could never be admitted"):
        Settings(engines={"tiny": engine_dir}, capacity=2, max_queue=3, max_images=9)


def test_a_server_without_standard_files_serves_and_stops_in_order(engine_dir: Path):
    """A socket of ours would get the number of stderr, and log lines would go to a client."""
    command = [sys.executable, "-m", "server", "--engine", str(engine_dir), "--port", "0", "--drain-s", "0"]
    process = subprocess.Popen(["bash", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "bash", *command], cwd=ROOT)
    parent = psutil.Process(process.pid)
    try:
        wait_until(lambda: bool(_listening(parent)))
        url = _listening(parent)[0]
        with httpx.Client(base_url=url, timeout=DEADLINE_S) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            assert client.post("/v1/generate", json={"steps": 1}).status_code == 200
        family = [parent, *parent.children(recursive=True)]
        files = [Path(f"/proc/{process.pid}/fd/{number}") for process in family for number in range(3)]
        assert {file.readlink() for file in files} == {Path("/dev/null")}
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()


def _listening(parent: psutil.Process) -> list[str]:
    """The URLs on which the server's processes listen."""
    sockets = [each for process in parent.children() for each in process.net_connections("tcp")]
    return [f"http://127.0.0.1:{each.laddr.port}" for each in sockets if each.status == psutil.CONN_LISTEN]
