"""An image is made again from its PNG alone: `fewstep remake`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.manifest import read_student
from fewstep.__main__ import main
from fewstep.pixels import KEYWORD, encode, text_of, with_text
from server.http.png_text import recipe, with_texts
from server.remake import RemakeError, remake
from server.scheduler.loading import LoadOptions
from server.scheduler.local import LocalService
from server.scheduler.validate import image_request


@pytest.fixture(scope="module")
def made(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images as the server answers them: with levels of the model, with others, and in a mixed request."""
    folder, manifest = tmp_path_factory.mktemp("images"), read_student(engine_dir, "tiny")
    fields = {
        "plain": {"steps": 4},
        "levels": {"sigmas": [80.0, 2.5]},
        "mixed": {"steps": [8, 2]},
        "between": {"seed_to": 9, "mix": 0.3},
    }
    with LocalService.open({"tiny": engine_dir}, LoadOptions(mode="exact")) as service:
        for name, asked in fields.items():
            request = image_request(manifest, seed=7, label="coat", **asked)
            images = service.submit(request).result().images
            (folder / f"{name}.png").write_bytes(with_texts(request, images, manifest, edited=False)[-1])
    return folder


@pytest.mark.parametrize("name", ["plain", "levels", "mixed", "between"])
def test_the_image_made_again_has_the_same_bytes(made: Path, engine_dir: Path, name: str, capsys: Any):
    path = made / f"{name}.png"
    assert main(["remake", str(path), "--engine", str(engine_dir)]) == 0
    assert capsys.readouterr().out == f"wrote {made / f'{name}.remade.png'}: the same bytes\n"
    assert path.with_suffix(".remade.png").read_bytes() == path.read_bytes()


def test_other_pixels_are_counted(made: Path, engine_dir: Path, tmp_path: Path):
    text = text_of((made / "plain.png").read_bytes(), KEYWORD) or ""
    path = tmp_path / "gray.png"
    path.write_bytes(with_text(encode(np.full((8, 8, 1), 128, np.uint8), "png"), KEYWORD, text))
    assert "values differ, by" in remake(path, tmp_path / "out.png", engine_dir)


def changed(**fields: Any) -> str:
    return json.dumps(
        {"model": "tiny", "checkpoint": "c" * 12, "noise_version": 1, "seed": 7, "label": 2, "steps": 4} | fields
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not say what it was made of"),
        ("{", "damaged"),
        ("[1]", "damaged"),
        ("{}", "damaged"),
        (changed(model="../../etc"), "damaged"),
        (changed(seed="x"), "damaged"),
        (changed(steps=[4, 2]), "damaged"),
        (changed(edit=True), "began at a picture"),
        (changed(checkpoint=""), "damaged"),
        (changed(checkpoint="dddd"), 'the checkpoint "dddd", and tiny has "cccc"; --engine'),
        (changed(sigmas=3), "damaged"),
        (changed(sigmas=[1, 2]), "each below the one before"),
        (changed(sigmas=[10**400]), "cannot make: sigmas must be"),
        (changed(sigmas=[float("nan")]), "cannot make: sigmas must be"),
        (changed(sigmas=[80.0, 10**400]), "cannot make: sigmas must be"),
        (changed(seed=10**400), "cannot make: seed must be"),
        (changed(steps=10**400), "cannot make: steps must be"),
        (changed(label=10**400), "cannot make: tiny has no class"),
        (changed(noise_version=10**400), "the noise version 10"),
        (changed(noise_version=2), "the noise version 2, and tiny has 1"),
        (changed(seed=-1), "cannot make: seed must be"),
        (changed(label=7), "cannot make: tiny has no class 7"),
    ],
)
def test_what_cannot_be_made_again_is_said_in_a_sentence(
    engine_dir: Path, tmp_path: Path, text: str | None, words: str
):
    png = encode(np.zeros((8, 8, 1), np.uint8), "png")
    path = tmp_path / "image.png"
    path.write_bytes(png if text is None else with_text(png, KEYWORD, text))
    with pytest.raises(RemakeError, match=words):
        remake(path, tmp_path / "out.png", engine_dir)
    assert not (tmp_path / "out.png").exists()


def test_a_missing_file_or_model_ends_in_one_line(tmp_path: Path, capsys: Any):
    assert main(["remake", str(tmp_path / "none.png")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.png'} cannot be read: No such file or directory\n"
    path = tmp_path / "image.png"
    path.write_bytes(with_text(encode(np.zeros((8, 8, 1), np.uint8), "png"), KEYWORD, changed(model="absent")))
    assert main(["remake", str(path)]) == 2
    assert capsys.readouterr().err == 'error: there is no model "absent" here; --engine DIR names its engine\n'


def test_a_file_without_an_end_is_refused(tmp_path: Path):
    with pytest.raises(
        RemakeError, match="/dev/zero has more than 67108864 bytes; no image of this server has as many"
    ):
        remake(Path("/dev/zero"), tmp_path / "out.png")


def test_a_file_that_cannot_be_written_ends_in_a_sentence(made: Path, engine_dir: Path, tmp_path: Path, capsys: Any):
    out = tmp_path / "absent" / "x.png"
    assert main(["remake", str(made / "plain.png"), "--engine", str(engine_dir), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: --out {out} cannot be written: there is no folder {out.parent}\n"
    assert main(["remake", str(made / "plain.png"), "--engine", str(engine_dir), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --out {tmp_path} is a folder; name the file to write\n"


def test_a_recipe_names_what_a_request_asked_for(engine_dir: Path):
    manifest = read_student(engine_dir, "tiny")
    request = image_request(manifest, seeds=[3, 4], labels=[0, 1], steps=[2, 4])
    assert json.loads(changed(seed=4, label=1)) == recipe(request, 1, manifest, edited=False)
