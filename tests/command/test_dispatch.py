"""`fewstep COMMAND`: every command explains itself, and runs the program that it is named after."""

import subprocess
import sys
from pathlib import Path

import pytest

from fewstep import __version__, application
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", ["--help", "trainer --help"])
def test_a_help_that_cannot_be_written_is_one_line(words: str):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fewstep", *words.split()], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr == "error: stdout cannot be written: No space left on device\n"


def test_serve_takes_the_servers_options_and_its_exit_status():
    checked = ran("serve", "--check", "--model", "fashion", "--port", "81", "--backend", "onnxruntime-cpu")
    assert checked.returncode == 0 and "# fashion: 32x32x1" in checked.stdout and "port = 81" in checked.stdout
    refused = ran("serve", "--max-quue", "3")
    assert refused.returncode == 2 and refused.stderr.startswith(
        "error: there is no flag --max-quue; the nearest is --max-queue"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", f"no command is named; choose {', '.join(COMMANDS)} (fewstep --help)"),
        ("serv", "there is no command 'serv'; did you mean serve? (fewstep --help)"),
        ("bench qqq", "there is no command 'qqq'; choose latency, quality, panel, serve, plan (fewstep bench --help)"),
        ("bench plan", "--rate, --mix and --p99 are required; `fewstep bench plan --help` lists the flags"),
        ("bench serve --rate 3", "--base-url is required; `fewstep bench serve --help` lists the flags"),
        ("bench --image 3", "there is no flag --image; did you mean --images?"),
        ("bench quality --images 0", "--images: 0 is not a whole number from 1 up"),
        ("generate", "--out is required; `fewstep generate --help` lists the flags"),
        ("generate --out x", "--seeds or --inputs is required; `fewstep generate --help` lists the flags"),
        ("generate --seeds 1", "--out is required; `fewstep generate --help` lists the flags"),
        ("generate --seed 1 --out x --seeds 2", "there is no flag --seed; did you mean --seeds?"),
        ("generate --seeds 1 --out", "--out needs a value; `fewstep generate --help` lists the flags"),
        ("remake a.png b.png", "'b.png' belongs to no flag; `fewstep remake --help` lists the flags"),
        ("remake a.png --qqq=1", "there is no flag --qqq; `fewstep remake --help` lists the flags"),
        ("export", "--model and --out are required; `fewstep export --help` lists the flags"),
        ("serve --qqq=1", "there is no flag --qqq; `fewstep serve --help` lists the flags"),
        ("trainer teach", "there is no command 'teach'; did you mean teacher? (fewstep trainer --help)"),
        ("trainer publish --model x", "--out is required; `fewstep trainer publish --help` lists the flags"),
    ],
)
def test_what_cannot_be_read_is_one_line(words: str, sentence: str):
    done = ran(*words.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {sentence}\n")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fewstep {__version__}\n"


def test_export_refuses_as_its_program_does(tmp_path: Path):
    refused = ran("export", "--model", str(tmp_path), "--out", str(tmp_path / "engine"))
    assert refused.returncode == 2 and refused.stderr.startswith("error: ")


def test_bench_asks_the_first_question_unless_another_is_named():
    assert ran("bench", "latency", "--images", "0").stderr == ran("bench", "--images", "0").stderr != ""


def test_a_checkout_has_no_private_folder():
    assert application.ROOT == ROOT and not application.INSTALLED
