"""Every setting has one description: the manual and --help have it, too."""

from dataclasses import fields
from pathlib import Path

import pytest

from server.__main__ import main
from server.settings.settings import OPTIONS, Option, Settings
from tests.server.conftest import ROOT

TINY = {"tiny": Path("/nowhere")}


def test_every_setting_has_an_option_and_every_option_is_a_setting():
    assert {field.name for field in fields(Settings)} - {"engines", "api_keys"} == {option.name for option in OPTIONS}


def test_the_manual_has_every_setting_as_the_program_describes_it():
    manual = (ROOT / "docs" / "operations.md").read_text("utf-8").splitlines()
    rows = [line for line in manual if line.startswith(tuple(f"| `{option.name}` |" for option in OPTIONS))]
    assert rows == [row(option) for option in OPTIONS]
    for name in ("model", "engine", "api_keys_file", "api_keys"):
        assert any(line.startswith(f"| `{name}` |") for line in manual), name


def row(option: Option) -> str:
    """Of the table in the manual."""
    allowed = ", ".join(f"`{choice}`" for choice in option.choices)
    if option.entry in (int, float):
        allowed = option.range.removeprefix("from ").replace("from ", "")
    return f"| `{option.name}` | {option.default_text} | {allowed} | {option.help} |"


def test_help_lists_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS:
        assert f"{option.help} (default: {option.default_text})" in said, option.name
    titles = [said.index(f" {group}: ") for group in ("server", "engines", "scheduling", "limits", "security", "logs")]
    assert titles == sorted(titles)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "127.9.9.9", "0x7f000001", "::1", "::ffff:127.0.0.1", "LocalHost", "localhost."]
)
def test_every_spelling_of_loopback_answers_to_loopback_names_only(host: str):
    settings = Settings(TINY, host=host)
    assert settings.loopback and "*" not in settings.hosts


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1", "example.org", "127.example.org"])
def test_other_hosts_are_not_loopback(host: str):
    assert not Settings(TINY, host=host).loopback and Settings(TINY, host=host).hosts == ("*",)
