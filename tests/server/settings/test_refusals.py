"""What is no setting, and values that are not allowed, are named in one sentence."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.card import CheckpointError
from server.check import in_toml
from server.settings.settings import OPTIONS, Option, SettingsError
from server.settings.sources import resolve

NAMED = ["--engine", "tiny=/nowhere"]
KEY = "0123456789abcdef"


def refused(arguments: list[str] | None = None, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        resolve([*NAMED, *(arguments or [])], environment or {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--prot", "1"], {}, "there is no flag --prot; the nearest is --port"),
        (["--api-keys", KEY], {}, "there is no flag --api-keys; the nearest is --api-keys-file"),
        (["stray"], {}, "'stray' is not expected here"),
        (["--port"], {}, "expected one argument"),
        (["--port", "x"], {}, "--port must be a whole number, not 'x'"),
        (["--port", "70000"], {}, "--port must be from 0 to 65535, not 70000"),
        (["--port", "1e3"], {}, "--port must be a whole number, not '1e3'"),
        (["--port", ""], {}, "--port must be a whole number, not ''"),
        (["--timeout-s", "nan"], {}, "--timeout-s must be from 0.1 to 86400, not nan"),
        (["--grace-s", "inf"], {}, "--grace-s must be from 0 to 3600, not inf"),
        (["--host", ""], {}, "--host: '' is not an address or a host name"),
        (["--config", ""], {}, "--config must be a path in UTF-8, not ''"),
        (["--api-keys-file", ""], {}, "--api-keys-file must be a path in UTF-8, not ''"),
        (["--engine", "a="], {}, "--engine must be a path in UTF-8, not ''"),
        (["--engine", "a=/\udcff"], {}, "--engine must be a path in UTF-8"),
        (["--config", "/"], {}, "the settings file / cannot be read: Is a directory"),
        (["--api-keys-file", "/"], {}, "the file of API keys / cannot be read: Is a directory"),
        (["--config", "/dev/zero"], {}, "cannot be read: it has more than"),
        (["--devices", "0"], {"CUDA_VISIBLE_DEVICES": ""}, "there is no GPU 0: CUDA_VISIBLE_DEVICES= hides it"),
        (["--devices", "0"], {"CUDA_VISIBLE_DEVICES": "-1"}, "there is no GPU 0: CUDA_VISIBLE_DEVICES=-1 hides it"),
        (["--devices", "1"], {"CUDA_VISIBLE_DEVICES": "3,-1,4"}, "there is no GPU 1"),
        ([], {"FEWSTEP_PORT": "70000"}, "FEWSTEP_PORT must be from 0 to 65535"),
        ([], {"FEWSTEP_DEVICES": "0,0"}, "FEWSTEP_DEVICES names a GPU twice"),
        ([], {"FEWSTEP_API_KEYS": " , "}, "FEWSTEP_API_KEYS holds no API key"),
        (["--mode", "quick"], {}, "--mode must be one of fast, exact, not 'quick'"),
        (["--devices", "0,a"], {}, "--devices must be whole numbers with commas between them, not '0,a'"),
        (["--devices", "1,1"], {}, "names a GPU twice"),
        (["--metrics-public", "maybe"], {}, "--metrics-public must be true or false, not 'maybe'"),
        (["--cors-origins", "https://a.org/"], {}, "'https://a.org/' is not an origin as browsers send it"),
        (["--cors-origins", "https://A.org"], {}, "'https://A.org' is not an origin"),
        (["--cors-origins", "https://a.org:443"], {}, "'https://a.org:443' is not an origin"),
        (["--allowed-hosts", "http://a.org"], {}, "'http://a.org' is not a host name"),
        (["--allowed-hosts", "cafe:80"], {}, "'cafe:80' is not a host name"),
        (["--allowed-hosts", "b.org,[::1"], {}, "'[::1' is not a host name"),
        (["--allowed-hosts", "::/0"], {}, "'::/0' is not a host name"),
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
        ("port = 70000", "port in FILE must be from 0 to 65535, not 70000"),
        ("timeout_s = nan", "timeout_s in FILE must be from 0.1 to 86400, not nan"),
        (
            f"timeout_s = 0x{'f' * 5_000}",
            "timeout_s in FILE must be from 0.1 to 86400, not a number of that many digits",
        ),
        ("devices = [0, 0]", "devices in FILE names a GPU twice"),
        ('"" = 1', "'' in FILE is not a setting"),
        ("api_keys_file = 5", "api_keys_file in FILE must be a string, not 5"),
        ('api_keys_file = ""', "api_keys_file in FILE must be a path in UTF-8, not ''"),
        ('host = ""', "host in FILE: '' is not an address or a host name"),
        ("port = ", "FILE is not valid TOML"),
        ("port = " + "[" * 5_000, "FILE is not valid TOML"),
        ("port = " + "9" * 5_000, "FILE is not valid TOML"),
        ("port = 1\nport = 2", "FILE is not valid TOML"),
        ("[server]\nport = 1", "'server' in FILE is not a setting"),
    ],
)
def test_a_wrong_settings_file_is_refused_in_a_sentence(text: str, words: str, tmp_path: Path):
    file = tmp_path / "settings.toml"
    file.write_text(text)
    assert words.replace("FILE", str(file)) in refused(["--config", str(file)])


def test_a_settings_file_is_utf8(tmp_path: Path):
    file = tmp_path / "settings.toml"
    file.write_bytes("port = 81".encode("utf-16"))
    assert "cannot be read: it is not UTF-8 text" in refused(["--config", str(file)])


@given(st.sampled_from(OPTIONS), st.text(st.characters(codec=None)) | st.floats().map(repr) | st.integers().map(str))
def test_any_text_is_a_value_or_a_sentence_that_names_the_setting(option: Option, text: str):
    for arguments, environment, name in (
        ([f"{option.flag}={text}"], {}, option.flag),
        ([], {option.variable: text}, option.variable),
    ):
        try:
            resolve([*NAMED, *arguments], environment)
        except SettingsError as error:
            assert name in str(error) or "could never be admitted" in str(error)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_settings_file_and_a_file_of_keys_or_a_sentence(content: bytes):
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        for flag in ("--config", "--api-keys-file"):
            try:
                resolve([*NAMED, flag, file.name], {})
            except SettingsError as error:
                assert str(error)


TOML_VALUES = st.recursive(
    st.integers() | st.floats() | st.booleans() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*(option.name for option in OPTIONS), "model", "engine", "api_keys_file"]), TOML_VALUES)
def test_any_value_of_a_key_is_one_or_a_sentence_that_names_it(name: str, value: Any):
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f"{name} = {toml(value)}")
        file.flush()
        try:
            resolve(["--config", file.name], {})
        except (SettingsError, CheckpointError) as error:
            assert str(error)


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


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return in_toml(value) if isinstance(value, str) else str(value).lower()
