"""--check: what it prints is a settings file, and what it refuses the server would refuse."""

import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.__main__ import bind, main
from server.check import settings_lines
from server.settings.settings import HOST, OPTIONS, Option, Settings
from server.settings.sources import Resolved, resolve
from tests.server.conftest import DEADLINE_S, ROOT, write_engine

TINY = {"tiny": Path("/nowhere")}
KEY = "0123456789abcdef"


def values(option: Option) -> st.SearchStrategy[Any]:
    """Allowed values of a setting."""
    if option.choices:
        return st.sampled_from([option.default, *option.choices])
    if option.entry is bool:
        return st.booleans()
    if option.entry is int:
        numbers = st.integers(max(int(option.low), 0), int(option.high))
        return st.lists(numbers, unique=True).map(tuple) if option.many else numbers
    if option.entry is float:
        return st.floats(option.low, option.high)
    words = {
        "host": st.text(st.characters(exclude_categories=["Cs"])).filter(HOST.fullmatch),
        "cors_origins": st.lists(st.from_regex(r"https?://[a-z.]{1,9}(:[1-7]000)?|\*", fullmatch=True)).map(tuple),
        "allowed_hosts": st.lists(st.from_regex(r"(\*\.)?[A-Za-z0-9_-]{1,9}|\[::1\]|\*", fullmatch=True)).map(tuple),
        "page_runtime": st.none()
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
        "trusted_proxies": st.lists(st.ip_addresses().map(str)).map(tuple),
    }
    return words[option.name]


FOLDERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1).map(
    Path("/x").joinpath
)
ENGINES = st.dictionaries(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True), FOLDERS, min_size=1)
CHOSEN = st.fixed_dictionaries({option.name: values(option) for option in OPTIONS})


@given(ENGINES, CHOSEN, FOLDERS)
def test_what_check_prints_is_read_back_to_the_same_settings(
    engines: dict[str, Path], chosen: dict[str, Any], source: Path
):
    chosen["max_queue"] = max(chosen["max_queue"], 256)  # room for every max_images
    settings = Settings(engines, **chosen)
    sources = {field.name: str(source) for field in fields(Settings)}
    printed = "\n".join(settings_lines(Resolved(settings, sources, None, True)))
    assert printed.isascii()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(printed)
        file.flush()
        again = resolve(["--config", file.name], {}).settings
    assert again == settings
    assert list(again.engines) == list(settings.engines), "the first is the default"


def test_check_prints_a_settings_file_that_says_the_same(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FEWSTEP_API_KEYS", KEY)
    (tmp_path / "keys").write_text(f"{KEY}-file")
    arguments = ["--engine", f"mine={engine_dir}", "--port", "81", "--devices", "0,2", "--allowed-hosts", "a.org"]
    arguments += ["--api-keys-file", str(tmp_path / "keys")]
    assert main(["--check", *arguments]) == 0
    printed = capsys.readouterr().out
    assert KEY not in printed and "2, not shown" in printed and "# FEWSTEP_API_KEYS" in printed
    assert "port = 81                            # --port\n" in printed
    assert "# mine: 8x8x1, 3 classes, steps 1, 2, 3, 4, 5, 6, 8, onnxruntime-cpu: it runs" in printed
    (tmp_path / "printed.toml").write_text(printed)
    again = resolve(["--config", str(tmp_path / "printed.toml")], {"FEWSTEP_API_KEYS": KEY})
    assert again.settings == resolve(arguments).settings


@pytest.mark.parametrize(
    "host", ["a..b", "a" * 64 + ".example", "none.invalid", "\udcff", "a\0b", "http://127.0.0.1", "[::1]", "192.0.2.1"]
)
@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_host_that_is_none_is_refused_in_one_line(
    host: str, check: list[str], engine_dir: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--engine", str(engine_dir), f"--host={host}", "--port", "0", *check]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: cannot listen on ") and "--host" in err


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", ("127.0.0.1", "::1")),
        ("::1", ("::1",)),
        ("0.0.0.0", ("127.0.0.1",)),
        ("localhost", ("127.0.0.1",)),
    ],
)
def test_a_host_is_reached_by_every_address_it_stands_for(host: str, reached: tuple[str, ...]):
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with bind(Settings(TINY, host=host, port=0)) as listener:
        for address in reached:
            socket.create_connection((address, listener.getsockname()[1]), timeout=10).close()


def test_check_refuses_an_engine_that_would_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_engine(tmp_path / "engine")
    (tmp_path / "engine" / "network.onnx").write_bytes(b"x")
    assert main(["--check", "--engine", str(tmp_path / "engine")]) == 2
    assert "is not the file its manifest describes" in capsys.readouterr().err


@pytest.mark.parametrize("stdout", ["/dev/full", "a closed pipe"])
def test_an_output_that_takes_nothing_is_said_in_a_sentence(engine_dir: Path, stdout: str):
    if stdout == "/dev/full":
        out = os.open(stdout, os.O_WRONLY)
    else:
        reading, out = os.pipe()
        os.close(reading)
    command = [sys.executable, "-m", "server", "--check", "--engine", str(engine_dir)]
    done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S)
    os.close(out)
    assert done.returncode == 2
    assert done.stderr.startswith("error: stdout cannot be written: ") and done.stderr.count("\n") == 1
