"""Every number on the trainer's command line has a range: exit 2 with a sentence, and nothing is written."""

import argparse
import sys
from pathlib import Path

import pytest

from trainer.__main__ import _parser, main

REQUIRED = {
    "teacher": "--recipe digits --out {out}",
    "student": "--recipe digits --teacher {out} --out {out}",
    "classifier": "--recipe digits --out {out}",
    "calibrate": "--model {out} --teacher {out}",
    "import": "{out} --out {out}",
    "data digits": "--out {out}.zip",
    "data folder": "{out} --out {out}.zip",
    "data emoji": "--out {out}.zip",
}


def numeric_flags() -> list[tuple[str, str]]:
    """Every flag with a type that is a function of ours, of every command above."""
    return [
        (command, action.option_strings[0])
        for command in REQUIRED
        for action in subparser(command)._actions
        if action.option_strings and action.type not in (None, Path, str)
    ]


def subparser(command: str) -> argparse.ArgumentParser:
    parser = _parser()
    for word in command.split():
        kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parser = kinds[0].choices[word]
    return parser


@pytest.mark.parametrize(("command", "flag"), numeric_flags(), ids=" ".join)
@pytest.mark.parametrize("value", ["-1", "nan", "1e400", "many"])
def test_a_number_out_of_range_is_refused(command, flag, value, tmp_path, monkeypatch, capsys):
    line = f"{command} {REQUIRED[command]} {flag}={value}".format(out=tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["trainer", *line.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert flag in (said := capsys.readouterr().err) and value in said
    assert list(tmp_path.iterdir()) == []


def test_no_flag_takes_a_number_without_a_range():
    flags = {flag for _, flag in numeric_flags()}
    assert {"--images", "--budget", "--batch", "--seed", "--lr", "--alpha", "--limit", "--sigma-data"} <= flags
    for command in REQUIRED:
        assert not [action for action in subparser(command)._actions if action.type in (int, float)]
