"""Every number on the trainer's command line has a range: exit 2 with a sentence, and nothing is written."""

import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from fewstep.ranges import RangeError
from tests.trainer.tiny import run_options
from trainer.__main__ import _parser, main
from trainer.critics.classifier import ClassifierConfig
from trainer.levels.calibration import CalibrationConfig
from trainer.settings import (
    AdamConfig,
    AdversarialConfig,
    AdversaryConfig,
    ConsistencyConfig,
    NoiseDistribution,
    ProgressiveConfig,
    StudentConfig,
    TeacherConfig,
)

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
    found = []
    for command in REQUIRED:
        parser = _parser()
        for word in command.split():
            actions = [action for action in parser._actions if action.choices and word in action.choices]
            parser = actions[0].choices[word]
        for action in parser._actions:
            if action.option_strings and action.type not in (None, Path, str):
                found.append((command, action.option_strings[0]))
    return found


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
        parser = _parser()
        for word in command.split():
            parser = next(a for a in parser._actions if a.choices and word in a.choices).choices[word]
        assert not [action for action in parser._actions if action.type in (int, float)]


@pytest.mark.parametrize(("flag", "said"), [("--budget=4", "no unit; write 4s, 4m or 4h"), ("--images=0", "from 1 up")])
def test_zero_images_and_a_budget_without_a_unit_are_refused(flag, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trainer", "teacher", "--recipe", "digits", "--out", str(tmp_path / "x"), flag])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert said in capsys.readouterr().err


CONFIGS = (
    AdamConfig(), NoiseDistribution(), TeacherConfig(), AdversaryConfig(), StudentConfig(), ConsistencyConfig(),
    ProgressiveConfig(), AdversarialConfig(), CalibrationConfig(), ClassifierConfig(8, 1, 10, 0.5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (config, field.name) for config in CONFIGS for field in fields(config)
        if isinstance(value := getattr(config, field.name), int | float) and not isinstance(value, bool)
        and not is_dataclass(value)
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_every_number_of_every_configuration_has_a_range(config, name):
    with pytest.raises((RangeError, ValueError)):
        replace(config, **{name: float("nan")})


@pytest.mark.parametrize(
    "changes", [{"images": 0}, {"batch": 0}, {"seed": -1}, {"budget_s": 0.0}, {"checkpoint_s": -1}, {"images": 1.5}]
)
def test_options_of_a_run_have_ranges_too(changes, tmp_path):
    with pytest.raises(RangeError, match="must be"):
        run_options(tmp_path, **changes)
