"""benchmarks/grids.py: a row for each count of calls, in the order asked for, and the student's own pixels."""

import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import grids
from benchmarks.generators import load_sampled
from benchmarks.harness import ROOT
from benchmarks.methods import dpdm_method


def draw(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["grids.py", "--threads", "1", *arguments])
    grids.main()


def test_the_picture_shows_the_students_pixels_and_the_teachers_below(monkeypatch, tmp_path):
    out = tmp_path / "made" / "grid.png"
    draw(monkeypatch, "--columns", "2", "--lines", "1", "--solver", "euler:2", "--out", str(out))
    picture = np.asarray(Image.open(out))
    assert picture.shape == (5 * 32 + 4 * grids.GAP, grids.MARGIN + 64, 3)  # 1, 2, 4 and 8 calls, and the solver
    network = load_sampled(ROOT / "models" / "fashion", threads=1)
    own = grids.pixels(network, dpdm_method(network.levels), 2, 2)
    top = 32 + grids.GAP
    assert (picture[top : top + 32, grids.MARGIN :, 0] == np.concatenate([*own[..., 0]], axis=1)).all()


@pytest.mark.parametrize(("arguments", "said"), [
    (["--out", "grid.jpeg"], "must end in .png or .webp"),
    (["--solver", "heun:4", "--out", "grid.png"], "write NAME:CALLS"),
    (["--solver", "nobody:4", "--out", "grid.png"], "with a name of euler"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_a_sentence(monkeypatch, tmp_path, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        draw(monkeypatch, *arguments)
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
