"""Every number on the trainer's command line has a range: exit 2 with a sentence, and nothing is written."""

import pytest

from tests.trainer.flags import numeric_flags
from trainer.__main__ import main
from trainer.calibrate import CalibrateCommand
from trainer.data.command import FLAGS
from trainer.importing.command import ImportCommand
from trainer.options import AverageCommand, ClassifierCommand, StudentCommand, TeacherCommand

COMMANDS = {
    "teacher": (TeacherCommand, "--recipe digits --out {out}"),
    "student": (StudentCommand, "--recipe digits --teacher {out} --out {out}"),
    "classifier": (ClassifierCommand, "--recipe digits --out {out}"),
    "calibrate": (CalibrateCommand, "--model {out} --teacher {out}"),
    "import": (ImportCommand, "{out} --out {out}"),
    "average": (AverageCommand, "--model {out} --out {out}"),
    **{f"data {kind}": (FLAGS[kind], "--out {out}.zip") for kind in ("digits", "emoji")},
    **{f"data {kind}": (FLAGS[kind], "{out} --out {out}.zip") for kind in ("folder", "edm-zip")},
}
FLAGS_OF_NUMBERS = [
    (name, flag) for name, (command, _) in COMMANDS.items() for flag, _ in numeric_flags(command)
]  # fmt: skip


@pytest.mark.parametrize(("command", "flag"), FLAGS_OF_NUMBERS, ids=" ".join)
@pytest.mark.parametrize("value", ["-1", "nan", "1e400", "many"])
def test_a_number_out_of_range_is_refused(command, flag, value, tmp_path, capsys):
    line = f"{command} {COMMANDS[command][1]} {flag}={value}".format(out=tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert flag in said and value in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_flags_of_numbers_are_found():
    flags = {flag for _, flag in FLAGS_OF_NUMBERS}
    assert {"--images", "--budget", "--batch", "--seed", "--lr", "--alpha", "--limit", "--sigma-data"} <= flags
    assert {"--steps", "--further", "--width", "--snapshot-every"} <= flags and len(FLAGS_OF_NUMBERS) > 40
