"""Flags, environment, settings file and defaults, in that order, and sentences for what is none of them."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.card import CheckpointError
from server.__main__ import main
from server.settings.options import OPTIONS
from server.settings.settings import Settings, SettingsError
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
    "devices": (("0,1", [0, 1]), ("2", [2]), ("3", [3])),
    "max_body_bytes": (("2000", 2_000), ("3000", 3_000), ("4000", 4_000)),
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


def refused(arguments: list[str] | None = None, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        resolve([*NAMED, *(arguments or [])], environment or {})
    return str(caught.value)


def test_every_setting_has_an_option_and_every_option_is_a_setting():
    assert {field.name for field in fields(Settings)} - {"engines", "api_keys"} == {option.name for option in OPTIONS}


def test_the_manual_has_every_setting():
    manual = (Path(__file__).parents[3] / "docs" / "operations.md").read_text("utf-8")
    for name in [*(option.name for option in OPTIONS), "model", "engine", "api_keys_file"]:
        assert f"\n| `{name}` |" in manual, name


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


def test_a_yes_no_flag_needs_no_value():
    assert resolve([*NAMED, "--metrics-public"], {}).settings.metrics_public
    assert not resolve([*NAMED, "--metrics-public", "false"], {"FEWSTEP_METRICS_PUBLIC": "1"}).settings.metrics_public


def test_an_empty_variable_and_foreign_ones_say_nothing():
    environment = {"FEWSTEP_PORT": "", "PATH": "/bin", "FEWSTEPS": "1"}
    assert resolve(NAMED, environment).settings == Settings(TINY)


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--prot", "1"], {}, "there is no flag --prot; the nearest is --port"),
        (["--api-keys", KEY], {}, "there is no flag --api-keys; the nearest is --api-keys-file"),
        (["stray"], {}, "'stray' is not expected here"),
        (["--port"], {}, "expected one argument"),
        (["--port", "x"], {}, "--port must be a whole number, not 'x'"),
        (["--port", "70000"], {}, "--port must be from 0 to 65535"),
        (["--mode", "quick"], {}, "--mode must be one of fast, exact, not 'quick'"),
        (["--devices", "0,a"], {}, "--devices must be whole numbers with commas between them, not 'a'"),
        (["--devices", "1,1"], {}, "names a GPU twice"),
        (["--metrics-public", "maybe"], {}, "--metrics-public must be true or false, not 'maybe'"),
        (["--cors-origins", "https://a.org/"], {}, "'https://a.org/' is not an origin such as"),
        (["--allowed-hosts", "http://a.org"], {}, "'http://a.org' is not a host name"),
        (["--config", "/nowhere.toml"], {}, "/nowhere.toml cannot be read: No such file"),
        ([], {"FEWSTEP_TIMEOUT": "1"}, "FEWSTEP_TIMEOUT is not a setting; the nearest is FEWSTEP_TIMEOUT_S"),
        ([], {"FEWSTEP_PORT": "tcp://10.0.0.1:80"}, "FEWSTEP_PORT must be a whole number"),
        ([], {"FEWSTEP_CONFIG": "/nowhere.toml"}, "/nowhere.toml cannot be read"),
    ],
)
def test_what_is_wrong_is_named_in_a_sentence(arguments: list[str], environment: dict[str, str], words: str):
    assert words in refused(arguments, environment)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "'prot' in FILE is not a setting; the nearest is port"),
        ("max-queue = 1", "'max-queue' in FILE is not a setting; the nearest is max_queue"),
        ('port = "8"', "port in FILE must be a whole number, not '8'"),
        ("port = true", "port in FILE must be a whole number, not True"),
        ("metrics_public = 1", "metrics_public in FILE must be true or false, not 1"),
        ('devices = ["0"]', "devices in FILE must be a list of whole numbers"),
        ('cors_origins = "*"', "cors_origins in FILE must be a list of strings, not '*'"),
        ('log_level = "loud"', "log_level in FILE must be one of debug, info, warning, error, not 'loud'"),
        ("model = 5", "model in FILE must be a string or a list of strings, not 5"),
        ("[engine]\na = 5", "engine in FILE must be a string or a list of strings"),
        ("port = ", "FILE is not valid TOML"),
        ("port = 1\nport = 2", "FILE is not valid TOML"),
        ("[server]\nport = 1", "'server' in FILE is not a setting"),
    ],
)
def test_a_wrong_settings_file_is_refused_in_a_sentence(text: str, words: str, tmp_path: Path):
    file = tmp_path / "settings.toml"
    file.write_text(text)
    assert words.replace("FILE", str(file)) in refused(["--config", str(file)])


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


@pytest.mark.parametrize("key", ["short-Secret", "a secret with spaces", "gehäuse-geheimnis", "tab\tin-the-Secret-x"])
def test_a_weak_key_is_refused_without_repeating_it(key: str):
    sentence = refused(environment={"FEWSTEP_API_KEYS": f"{KEY},{key}"})
    assert "API key 2 cannot be used" in sentence
    assert key not in sentence


def test_keys_are_refused_where_others_could_read_them(tmp_path: Path):
    settings_file = tmp_path / "settings.toml"
    settings_file.write_text(f'api_keys = ["{KEY}"]')
    sentence = refused(["--config", str(settings_file)])
    assert "put them into a file of their own" in sentence and KEY not in sentence
    (tmp_path / "empty").write_text("# nothing\n")
    assert "holds no API key" in refused(["--api-keys-file", str(tmp_path / "empty")])
    assert "cannot be read: No such file" in refused(["--api-keys-file", str(tmp_path / "none")])


def test_check_prints_a_settings_file_that_says_the_same(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FEWSTEP_API_KEYS", KEY)
    arguments = ["--engine", f"mine={engine_dir}", "--port", "81", "--devices", "0,2", "--allowed-hosts", "a.org"]
    assert main(["--check", *arguments]) == 0
    printed = capsys.readouterr().out
    assert KEY not in printed and "1, not shown" in printed and "# FEWSTEP_API_KEYS" in printed
    assert "port = 81                            # --port\n" in printed
    assert "# mine: 8x8x1, 3 classes, steps 1, 2, 3, 4, 5, 6, 8, onnxruntime-cpu: it runs" in printed
    (tmp_path / "printed.toml").write_text(printed)
    again = resolve(["--config", str(tmp_path / "printed.toml")], {"FEWSTEP_API_KEYS": KEY})
    assert again.settings == resolve(arguments).settings


def test_check_refuses_an_engine_that_would_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_engine(tmp_path / "engine")
    (tmp_path / "engine" / "network.onnx").write_bytes(b"x")
    assert main(["--check", "--engine", str(tmp_path / "engine")]) == 2
    assert "is not the file its manifest describes" in capsys.readouterr().err
