"""Command lines from dataclasses: what the help shows, what is read, and the sentences for what is not."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from fewstep.command_line import (
    DURATION,
    FlagsOf,
    Flat,
    Positional,
    Switch,
    arg,
    duration,
    exclusive,
    one_of,
    parse,
    show_duration,
    whole_numbers,
)
from fewstep.ranges import SHARE, Range, RangeError, check_given, check_ranges
from fewstep.subcommands import subcommand

LENGTH = exclusive("length")
EARLIER = {"--pace": "is called --rate today", "quickest": "is called quick today"}


@dataclass(frozen=True)
class Method:
    rate: Annotated[float, Range(0, 1, above=True)] = 0.25
    """Share of what is taken."""
    kind: Literal["plain", "quick"] = "plain"
    """How it is done."""
    slowly: Annotated[Switch[bool], arg(name="method-slowly")] = False
    """Take time."""
    inner: float = 3.0  # has no flag


@dataclass(frozen=True)
class Place:
    out: Path
    """Where it goes."""
    count: Annotated[int | None, Range(1, 2_000, whole=True)] = None
    """How many (default: all)."""

    def __post_init__(self) -> None:
        check_ranges(self)


METHOD = FlagsOf(Method, ("rate", "kind", "slowly"), defaults=True)


@dataclass(frozen=True)
class Job:
    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """What it is called."""
    place: Flat[Place]
    method: Annotated[dict[str, Any], METHOD]
    """How it is done."""
    time_s: Annotated[float | None, DURATION, LENGTH, arg(name="time")] = None
    """Stop after this long."""
    turns: Annotated[int | None, LENGTH] = None
    """Stop after so many."""
    again: Switch[bool] = False
    """Once more."""
    loud: bool | None = None
    """Be heard, or not."""
    sizes: Annotated[tuple[int, ...], whole_numbers(Range(1, 8, whole=True), "1,2")] = ()
    """Some sizes."""
    colours: tuple[Annotated[str, one_of(("red", "blue"))], ...] = ()
    """Some colours."""
    share: Annotated[float, SHARE] = 0.5
    """How much."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_given(Method, self.method)


def job(line: str) -> Job:
    return parse(Job, line.split(), "job", "What a job does.\n  in two lines", EARLIER)


def test_what_is_given_is_read_and_the_rest_is_as_in_the_dataclass():
    assert job("a --out x") == Job("a", Place(Path("x")), {})
    assert job("a --out x --method-slowly").method == {"slowly": True}
    read = job("--out=x --count 3 a --rate 0.5 --time 2m --again --no-loud --sizes 1,8 --colours red blue --share 1")
    assert read == Job("a", Place(Path("x"), 3), {"rate": 0.5}, 120.0, None, True, False, (1, 8), ("red", "blue"), 1.0)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "NAME and --out are required; `job --help` lists the flags"),
        ("a", "--out is required; `job --help` lists the flags"),
        ("a --uot x", "there is no flag --uot; did you mean --out?"),
        ("a --out x --contu 3", "there is no flag --contu; did you mean --count?"),
        ("a --out x --qqq=1", "there is no flag --qqq; `job --help` lists the flags"),
        ("a --out x b", "'b' belongs to no flag; `job --help` lists the flags"),
        ("a --out", "--out needs a value; `job --help` lists the flags"),
        ("a --out x --pace 0.1", "--pace is called --rate today"),
        ("a --out x --kind quickest", "--kind quickest is called quick today"),
        ("a --out x --kind slow", "--kind: 'slow' is none of plain, quick"),
        ("a --out x --colours red grey", "--colours: 'grey' is none of red, blue"),
        ("a --out x --time 1m --turns 2", "--time and --turns exclude each other; give one of them"),
        ("a --out x --time 4", "--time: '4' has no unit; write 4s, 4m or 4h"),
        (
            "a --out x --sizes 1,9",
            "--sizes: '1,9' is not a list of numbers, each a whole number from 1 to 8; write 1,2",
        ),
        ("a --out x --count None", "--count: 'None' is not a whole number"),
        ("a --out x --count 2.5", "--count: '2.5' is not a whole number"),
        ("a --out x --count 0", "--count must be a whole number from 1 to 2,000, not 0"),
        ("a --out x --share -0.5", "--share must be a number from 0 to 1, not -0.5"),
        ("a --out x --share nan", "--share must be a number from 0 to 1, not nan"),
        ("a --out x --rate 0", "--rate must be a number above 0 and at most 1, not 0"),
    ],
)
def test_what_cannot_be_read_ends_in_one_sentence_and_status_2(line: str, sentence: str, capsys):
    with pytest.raises(SystemExit) as stop:
        job(line)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_the_help_shows_the_docstring_the_range_and_the_default_of_every_field(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        job("a --help")
    assert stop.value.code == 0
    said = " ".join((text := capsys.readouterr().out).split())
    assert text.startswith("usage: job [-h] ") and "\n\nWhat a job does.\n  in two lines\n\n" in text
    for words in (
        "--out PATH Where it goes. (required)",
        "--count N How many. (a whole number from 1 to 2000; default: all)",
        "--rate X Share of what is taken. (a number above 0 and at most 1; default: 0.25)",
        "--kind {plain,quick} How it is done. (default: plain)",
        "--again Once more.",
        "--method-slowly Take time.",
        "--loud, --no-loud Be heard, or not.",
        "--share X How much. (a number from 0 to 1; default: 0.5)",
    ):
        assert words in said
    assert (
        "None" not in said
        and "--no-method-slowly" not in said
        and "│" not in text
        and "--inner" not in said
        and "has no flag" not in said
    )


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("30m", 1800)])
def test_a_duration_is_read_as_it_is_shown(text: str, seconds: float):
    assert duration(text) == seconds == duration(show_duration(seconds))


@pytest.mark.parametrize("text", ["4", "0s", "-1s", "soon", "1d", "1e400s", ""])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(ValueError, match="write"):
        duration(text)


def test_a_field_out_of_range_is_named_by_its_flag():
    @dataclass(frozen=True)
    class Renamed:
        time_s: Annotated[float, Range(1), arg(name="time")] = 2.0

    with pytest.raises(RangeError, match=r"^--time must be a number from 1 up, not 0.5$"):
        check_given(Renamed, {"time_s": 0.5})


COMMANDS = {"make": "makes it", "mend": "repairs it"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no command is named; choose make, mend (tool --help)"),
        (["mak", "x"], "there is no command 'mak'; did you mean make? (tool --help)"),
        (["--out", "x"], "there is no command '--out'; choose make, mend (tool --help)"),
    ],
)
def test_a_command_that_is_not_there_is_refused(arguments: list[str], sentence: str, capsys):
    with pytest.raises(SystemExit, match="2"):
        subcommand(arguments, "tool", COMMANDS, "What it does.")
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_the_commands_are_listed_in_their_order(capsys):
    assert subcommand(["mend", "--help"], "tool", COMMANDS, "What it does.") == ("mend", ["--help"])
    with pytest.raises(SystemExit, match="0"):
        subcommand(["--help"], "tool", COMMANDS, "What it does.")
    usage, _, opening, _, *listed = capsys.readouterr().out.splitlines()
    assert (usage, opening) == ("usage: tool COMMAND ...", "What it does.")
    assert listed[:2] == ["  make  makes it", "  mend  repairs it"]


@pytest.mark.parametrize(
    "command", ["trainer", "trainer student", "trainer data folder", "fewstep train", "export", "fewstep bench panel"]
)
def test_the_help_of_a_command_loads_nothing_heavy(command: str):
    watch = "import runpy, sys\ntry: runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)\n"
    watch += "finally: print(sorted({'torch', 'scipy', 'sklearn', 'onnxruntime'} & set(sys.modules)), file=sys.stderr)"
    words = [sys.executable, "-c", watch, *command.split(), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stderr == "[]\n" and done.stdout.startswith("usage: ")
