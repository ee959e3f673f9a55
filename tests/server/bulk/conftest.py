"""Runs of `fewstep generate` with the tiny engine."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fewstep.__main__ import main


class Ran(NamedTuple):
    code: int
    said: str  # on stdout
    errors: str  # on stderr


Generate = Callable[..., Ran]


@pytest.fixture
def generate(engine_dir: Path) -> Generate:
    def run(out: Path, *options: str, seeds: str = "0-99") -> Ran:
        said, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            try:
                code = main(["generate", "--model", str(engine_dir), "--seeds", seeds, "--out", str(out), *options])
            except SystemExit as end:  # argparse, and missing extras
                code = int(end.code or 0)
        return Ran(code, said.getvalue(), errors.getvalue())

    return run


def contents(out: Path) -> dict[str, bytes]:
    """Every file of an output by its name, hidden ones included."""
    files = sorted(out.rglob("*")) if out.is_dir() else [out]
    return {str(path.relative_to(out.parent)): path.read_bytes() for path in files if path.is_file()}
