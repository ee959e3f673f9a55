"""Runs of `fewstep generate` with the tiny engine."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fewstep.__main__ import main
from fewstep.conditions import low_image
from fewstep.pixels import encode
from tests.server.conftest import write_engine


class Ran(NamedTuple):
    code: int
    said: str  # on stdout
    errors: str  # on stderr


Generate = Callable[..., Ran]


@pytest.fixture
def generate(engine_dir: Path) -> Generate:
    def run(out: Path, *options: str, seeds: str | None = "0-99") -> Ran:
        said, errors = io.StringIO(), io.StringIO()
        listed = [] if seeds is None else ["--seeds", seeds]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            try:
                code = main(["generate", "--model", str(engine_dir), *listed, "--out", str(out), *options])
            except SystemExit as end:  # argparse, and missing extras
                code = int(end.code or 0)
        return Ran(code, said.getvalue(), errors.getvalue())

    return run


@pytest.fixture(scope="session")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that enlarges images of 4x4."""
    folder = tmp_path_factory.mktemp("models") / "enlarging"
    write_engine(folder, "enlarging", conditions=(low_image(1, 4),))
    return folder


def write_pictures(folder: Path, count: int, seed: int = 1) -> None:
    """Pictures of that size: 0000.png and so on."""
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1), np.uint8)
    for number, image in enumerate(pixels):
        (folder / f"{number:04d}.png").write_bytes(encode(image, "png"))


def contents(out: Path) -> dict[str, bytes]:
    """Every file of an output by its name, hidden ones included."""
    files = sorted(out.rglob("*")) if out.is_dir() else [out]
    return {str(path.relative_to(out.parent)): path.read_bytes() for path in files if path.is_file()}
