"""Flags win over the environment, it wins over the settings file, and that over the defaults."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.card import CheckpointError
from server.settings.settings import OPTIONS, Settings, SettingsError
from server.settings.sources import Resolved, nearest, resolve
from tests.server.conftest import write_engine

TINY = {"tiny": Path("/nowhere")}
NAMED = ["--engine", "tiny=/nowhere"]
KEY = "0123456789abcdef"
# Three values per setting, as a flag or a variable writes them, and as TOML reads them.
SAMPLES: dict[str, tuple[tuple[str, Any], ...]] = {
    "host": (("127.0.0.2", "127.0.0.2"), ("::1", "::1"), ("0.0.0.0", "0.0.0.0")),
    "port": (("1", 1), ("2", 2), ("3", 3)),
    "backend": (("torch", "torch"), ("openvino", "openvino"), ("tensorrt", "tensorrt")),
    "mode": (("exact", "exact"), ("fast", "fast"), ("exact", "exact")),
    "policy": (("deadline", "deadline"), ("fifo", "fifo"), ("deadline", "deadline")),
    "max_queue": (("100", 100), ("200", 200), ("300", 300)),
    "timeout_s": (("1.5", 1.5), ("2", 2), ("3", 3.0)),
    "drain_s": (("1.5", 1.5), ("2", 2), ("3", 3.0)),
    "grace_s": (("1.5", 1.5), ("2", 2), ("3", 3.0)),
    "page_runtime": (("a", "a"), ("/b/dist", "/b/dist"), ("./c", "./c")),
    "devices": (("0,1", [0, 1]), ("2", [2]), ("3", [3])),
    "max_body_bytes": (("2000", 2_000), ("3000", 3_000), ("4000", 4_000)),
    "body_share": (("0.5", 0.5), ("1", 1.0), ("0.125", 0.125)),
    "url_bytes": (("0", 0), ("2000000", 2_000_000), ("3000000", 3_000_000)),
    "log_level": (("debug", "debug"), ("info", "info"), ("error", "error")),
    "log_format": (("json", "json"), ("text", "text"), ("json", "json")),
    "metrics_public": (("true", True), ("no", False), ("on", True)),
    "cors_origins": (("https://a.org,http://b:3", ["https://a.org", "http://b:3"]), ("*", ["*"]), ("http://c", ["http://c"])),
    "trusted_proxies": (("127.0.0.1, ::1", ["127.0.0.1", "::1"]), ("10.0.0.0/8", ["10.0.0.0/8"]), ("::1", ["::1"])),
    "allowed_hosts": (("a.org, *.b.org", ["a.org", "*.b.org"]), ("*", ["*"]), ("[::1]", ["[::1]"])),
}  # fmt: skip
NUMBERS = (("4", 4), ("5", 5), ("6", 6))


def samples(name: str) -> tuple[tuple[str, Any], ...]:
    return SAMPLES.get(name, NUMBERS)


def settled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def resolve_three(name: str, given_by: tuple[str | None, str | None, Any], folder: Path) -> Resolved:
    flag, variable, key = given_by
    option = next(option for option in OPTIONS if option.name == name)
    file = folder / "settings.toml"
    file.write_text("" if key is None else f"{name} = {json.dumps(key)}\n")
    arguments = [*NAMED, "--config", str(file), *([option.flag, flag] if flag else [])]
    return resolve(arguments, {option.variable: variable} if variable else {})


@pytest.mark.parametrize("name", [option.name for option in OPTIONS])
def test_flags_win_over_the_environment_and_that_over_the_file(name: str, tmp_path: Path):
    (flag, by_flag), (variable, by_variable), (_, by_key) = samples(name)
    option = next(option for option in OPTIONS if option.name == name)
    file = tmp_path / "settings.toml"
    expected = [
        ((flag, variable, by_key), by_flag, option.flag),
        ((None, variable, by_key), by_variable, option.variable),
        ((None, None, by_key), by_key, f"{name} in {file}"),
        ((None, None, None), getattr(Settings(TINY), name), "default"),
    ]
    for given_by, value, source in expected:
        resolved = resolve_three(name, given_by, tmp_path)
        assert resolved.settings == replace(Settings(TINY), **{name: settled(value)})
        assert resolved.sources[name] == source


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "0", 0),
        ("port", " 08000\t", 8_000),
        ("timeout_s", "1e3", 1_000.0),
        ("drain_s", "-0.0", 0.0),
        ("metrics_public", "TRUE", True),
        ("metrics_public", " Off ", False),
        ("devices", " 0 , 1,", (0, 1)),
        ("devices", "", ()),
        ("host", " ::1 ", "::1"),
    ],
)
def test_unusual_texts_that_are_allowed(name: str, text: str, value: Any):
    option = next(option for option in OPTIONS if option.name == name)
    assert getattr(resolve([*NAMED, f"{option.flag}={text}"], {}).settings, name) == value
    if text.strip():
        assert getattr(resolve(NAMED, {option.variable: text}).settings, name) == value


def test_a_list_that_is_given_several_times_has_all_of_it():
    settings = resolve([*NAMED, "--allowed-hosts", "a.example,b.example", "--allowed-hosts=c.example"], {}).settings
    assert settings.allowed_hosts == ("a.example", "b.example", "c.example")
    for flag in ("--config", "--api-keys-file"):
        with pytest.raises(SettingsError, match=f"{flag} is given twice; name one file"):
            resolve([*NAMED, flag, "one", f"{flag}=two"], {})


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_files_of_every_editor_are_read(mark: bytes, ends: str, tmp_path: Path):
    keys, file = tmp_path / "keys", tmp_path / "settings.toml"
    keys.write_bytes(mark + ends.join([KEY, f"{KEY}-2", KEY, ""]).encode())
    file.write_bytes(mark + ends.join(["# über", "port = 81", 'api_keys_file = "keys"', ""]).encode())
    settings = resolve([*NAMED, "--config", str(file)], {"FEWSTEP_API_KEYS": f"{KEY}-2"}).settings
    assert (settings.port, settings.api_keys) == (81, (f"{KEY}-2", KEY))


def test_a_yes_no_flag_needs_no_value():
    assert resolve([*NAMED, "--metrics-public"], {}).settings.metrics_public
    assert not resolve([*NAMED, "--metrics-public", "false"], {"FEWSTEP_METRICS_PUBLIC": "1"}).settings.metrics_public


def test_an_empty_variable_and_foreign_ones_say_nothing():
    environment = {"FEWSTEP_PORT": "", "PATH": "/bin", "FEWSTEPS": "1"}
    assert resolve(NAMED, environment).settings == Settings(TINY)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20))
def test_the_nearest_word_is_one_of_those_there_are(word: str):
    known = [option.name for option in OPTIONS]
    assert nearest(word, known) in known
    assert all(nearest(name, known) == name for name in known)


def test_models_keep_the_order_in_which_they_are_named(tmp_path: Path):
    for name in ("one", "two", "a=b"):
        write_engine(tmp_path / name, name="same")
    one, two, odd = tmp_path / "one", tmp_path / "two", tmp_path / "a=b"
    arguments = ["--engine", f"second={two}", "--engine", str(one), "--engine", f"third={odd}"]
    assert list(resolve(arguments, {}).settings.engines.items()) == [("second", two), ("same", one), ("third", odd)]
    by_variable = {"FEWSTEP_ENGINE": f"x={two},{one}"}
    assert list(resolve([], by_variable).settings.engines) == ["x", "same"]
    assert list(resolve(["--engine", str(one)], by_variable).settings.engines) == ["same"], "sources do not mix"
    with pytest.raises(SettingsError, match="two models are called 'same'; give one another name"):
        resolve(["--engine", str(one), "--engine", str(two)], {})
    with pytest.raises(SettingsError, match="cannot be served as 'a b'"):
        Settings({"a b": one})
    with pytest.raises(CheckpointError, match="not a fewstep engine"):
        resolve(["--engine", "/nowhere"], {})


@pytest.mark.parametrize(
    "text", ['engine = "one"', 'engine = ["one"]', 'engine = ["same=one"]', '[engine]\nsame = "one"']
)
def test_a_settings_file_names_engines_relative_to_itself(text: str, tmp_path: Path):
    write_engine(tmp_path / "one", name="same")
    (tmp_path / "settings.toml").write_text(text)
    resolved = resolve(["--config", str(tmp_path / "settings.toml")], {})
    assert resolved.settings.engines == {"same": tmp_path / "one"}
    assert resolved.sources["engines"] == f"engine in {tmp_path / 'settings.toml'}"


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"# of the page\n{KEY}-file\n\n")
    environment = {"FEWSTEP_API_KEYS": f"{KEY}-a, {KEY}-b"}
    resolved = resolve([*NAMED, "--api-keys-file", str(file)], environment)
    assert resolved.settings.api_keys == (f"{KEY}-a", f"{KEY}-b", f"{KEY}-file")
    assert resolved.sources["api_keys"] == f"FEWSTEP_API_KEYS and {file}"
    assert KEY not in repr(resolved)
    (tmp_path / "settings.toml").write_text('api_keys_file = "keys"')
    assert resolve([*NAMED, "--config", str(tmp_path / "settings.toml")], {}).settings.api_keys == (f"{KEY}-file",)
