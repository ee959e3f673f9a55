"""A missing extra ends every command in one line that installs it; --help works without any."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from fewstep import extras

ROOT = Path(__file__).parents[2]
# Runs a module or a script in a process that finds none of the modules which extras bring.
WITHOUT_EXTRAS = """
import runpy, sys
from fewstep.extras import EXTRAS

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
del sys.argv[0]
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_extras(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *shlex.split(command)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("-m trainer teacher --recipe fashion --out OUT", "train"),
        ("-m trainer student --recipe fashion --teacher DIR --out OUT", "train"),
        ("-m trainer classifier --recipe fashion --out OUT", "train"),
        ("-m trainer data digits --out OUT.zip", "train"),
        ("-m trainer data folder tests/fixtures --resolution 8 --out OUT.zip", "train"),
        ("-m trainer calibrate --model models/fashion --teacher DIR", "train"),
        ("-m trainer import models/fashion --out OUT", "train"),
        ("-m trainer average --model A --width 0.1 --out OUT", "train"),
        ("-m trainer publish --model A --out OUT", "train"),
        ("-m export --model models/fashion --out OUT", "train"),
        ("-m export verify models/fashion/engine", "train"),
        ("benchmarks/latency.py --smoke", "bench"),
        ("-m fewstep bench latency --smoke", "bench"),
        ("benchmarks/cold_start.py", "bench"),
        ("benchmarks/load/soak.py", "bench"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(command: str, extra: str):
    done = without_extras(command)
    assert done.returncode == extras.MISSING and done.stdout == ""
    line = rf"error: \w+ is not installed; it comes with \[{extra}\]: \S+ -m pip install -c \S+ -e '\.\[{extra}\]'\n"
    assert re.fullmatch(line, done.stderr), done.stderr


SUBCOMMANDS = ("teacher", "student", "classifier", "data", "data folder", "calibrate", "import", "average", "publish")
OF_FEWSTEP = ("train", "posterior", "serve", "generate", "export", "export verify", "remake",
              "bench", "bench latency", "bench quality", "bench panel")  # fmt: skip


@pytest.mark.parametrize(
    "command",
    ["-m trainer", *(f"-m trainer {name}" for name in SUBCOMMANDS), "-m export", "-m export verify", "-m export plan",
     "-m server", "-m fewstep", *(f"-m fewstep {name}" for name in OF_FEWSTEP)],
)  # fmt: skip
def test_help_needs_no_extra(command: str):
    done = without_extras(f"{command} --help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and done.stderr == ""


def test_an_error_of_another_kind_is_no_missing_extra():
    assert extras.explain(ModuleNotFoundError("no module", name="trainer.nowhere")) is None
    assert extras.explain(ImportError("undefined symbol", name="torch")) is None
    with pytest.raises(ModuleNotFoundError), extras.named():
        raise ModuleNotFoundError("no module", name="trainer.nowhere")


@pytest.mark.parametrize("module", sorted(extras.EXTRAS.keys() & packages_distributions().keys()))
def test_the_extra_that_is_named_requires_the_module(module: str):
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    required = " ".join(optional[extras.EXTRAS[module]])
    assert any(re.search(rf"\b{re.escape(name)}\b", required) for name in packages_distributions()[module])


def test_every_script_says_what_is_missing_before_it_imports_it():
    scripts = [
        path for path in (ROOT / "benchmarks").rglob("*.py") if '\nif __name__ == "__main__":' in path.read_text()
    ]
    assert len(scripts) > 10
    for path in scripts:
        _, _, code = path.read_text().split('"""', 2)
        assert code.startswith("\n\nfrom fewstep import extras\n\nextras.name_missing()\n"), path
