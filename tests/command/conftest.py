"""A folder of mixed pictures, and a run of it with a tiny network."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from fewstep.__main__ import main
from tests.command.tiny_command import tiny_recipe
from tests.trainer.tiny import draw_little
from trainer.recipes.by_name import RECIPES

KINDS = (("RGB", "png"), ("L", "jpg"), ("RGBA", "png"), ("RGB", "JPG"), ("P", "gif"), ("RGB", "webp"))


@pytest.fixture(scope="module", autouse=True)
def small_sheets() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        draw_little(patch)
        yield


class Made(NamedTuple):
    photos: Path
    out: Path
    code: int
    said: str  # on stdout
    progress: str  # on stderr

    def again(self, *options: str) -> "Made":
        return command(self.photos, self.out, *options)


def command(photos: Path | str, out: Path, *options: str) -> Made:
    said, progress = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(progress):
        try:
            code = main(["train", str(photos), "--out", str(out), *options])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
    return Made(Path(photos), out, code, said.getvalue(), progress.getvalue())


@pytest.fixture(scope="session")
def mixed_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of two kinds and several sizes, modes and formats, in two class folders."""
    root, rng = tmp_path_factory.mktemp("pictures") / "my photos", np.random.default_rng(0)
    for kind, name in enumerate(("cats & dogs", "bricks")):
        (root / name).mkdir(parents=True)
        for number in range(12):
            size = (int(rng.integers(30, 60)), int(rng.integers(30, 60)))
            pixels = rng.integers(0, 128, (size[1], size[0], 3)) + 127 * kind
            picture = Image.fromarray(pixels.astype(np.uint8))
            mode, suffix = KINDS[number % len(KINDS)]
            picture.convert(mode).save(root / name / f"{number}.{suffix}", "JPEG" if suffix.lower() == "jpg" else None)
    return root


@pytest.fixture(scope="session", autouse=True)
def _tiny():
    before = RECIPES["photos"]
    tiny_recipe()
    yield
    RECIPES["photos"] = before


@pytest.fixture(scope="session")
def made(mixed_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return command(mixed_pictures, tmp_path_factory.mktemp("runs") / "mine", "--budget", "2s")
