"""`fewstep COMMAND`: every command explains itself, and runs the program that it is named after."""

import subprocess
import sys
from pathlib import Path

import pytest

from fewstep import application
from fewstep.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fewstep", *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself(command: str):
    done = ran(command, "--help")
    assert done.returncode == 0 and f"fewstep {command}" in done.stdout.splitlines()[0], done.stderr


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)


def test_serve_takes_the_servers_options_and_its_exit_status():
    checked = ran("serve", "--check", "--model", "fashion", "--port", "81")
    assert checked.returncode == 0 and "# fashion: 32x32x1" in checked.stdout and "port = 81" in checked.stdout
    refused = ran("serve", "--max-quue", "3")
    assert refused.returncode == 2 and refused.stderr.startswith(
        "there is no flag --max-quue; the nearest is --max-queue"
    )


def test_export_refuses_as_its_program_does(tmp_path: Path):
    refused = ran("export", "--model", str(tmp_path), "--out", str(tmp_path / "engine"))
    assert refused.returncode == 2 and refused.stderr.startswith("export: ")


def test_bench_asks_the_first_question_unless_another_is_named():
    assert ran("bench", "latency", "--images", "0").stderr == ran("bench", "--images", "0").stderr != ""
    unknown = ran("bench", "speed")
    assert unknown.returncode == 2 and "(choose from 'latency', 'quality', 'panel')" in unknown.stderr


def test_a_checkout_has_no_private_folder_and_names_its_own_programs():
    assert application.ROOT == ROOT and not application.INSTALLED
    assert application.command_of("server") == "python -m server"
