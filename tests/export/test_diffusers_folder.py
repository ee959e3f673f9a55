"""A student as a folder of diffusers: its pixels are fewstep's, without fewstep, and it can be read back."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from export.__main__ import main
from export.diffusers.folder import _one_file, write_folder
from fewstep.card import Card, CheckpointError, Dataset, read_card
from fewstep.checkpoint import load_checkpoint, load_denoiser, save_checkpoint
from fewstep.network import UNet
from fewstep.noise import noise_for
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from fewstep.unet_config import UNetConfig
from trainer.importing.command import run as run_import
from trainer.run.artifacts import describe

pytest.importorskip("diffusers")
LEVELS = {1: (2.0,), 3: (2.0, 0.7, 0.1)}


def student(folder: Path, classes: int = 3, channels: int = 3, role: str = "student", extra: int = 0) -> Path:
    torch.manual_seed(0)
    network = UNet(UNetConfig(8, channels, classes, width=16, mult=(1, 2), blocks=1, patch=2, extra=extra))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    names = ("one", "two", "three")[:classes]
    card = Card(role, describe(network), 0.6, "", Dataset("noise", "0" * 64, "CC0-1.0", 10), names, LEVELS)  # pyright: ignore[reportArgumentType]
    save_checkpoint(folder, network.state_dict(), card)
    return folder


def ours(model: Path, seeds: list[int], labels: list[int] | None, steps: int) -> np.ndarray:
    denoiser, card = load_denoiser(model)

    def noise(step: int) -> torch.Tensor:
        return torch.from_numpy(noise_for(seeds, card.image_shape)(step))

    with torch.no_grad():
        bound = partial(denoiser, labels=None if labels is None else torch.tensor(labels))
        return to_pixels(np.asarray(sample_dpdm(bound, noise, card.levels[steps]).images))


SAMPLE = """
import json, sys
import numpy as np
from diffusers import DiffusionPipeline
for folder, arguments, out in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    np.save(out, np.stack([np.atleast_3d(image) for image in pipe(**arguments).images]))
assert not any(name.split(".")[0] == "fewstep" for name in sys.modules), "fewstep is not needed"
"""


def test_the_pipeline_makes_our_pixels_without_fewstep(tmp_path: Path) -> None:
    """Students with classes and without: in one process, as diffusers takes seconds to import."""
    asked, expected = [], {}
    for classes, channels in ((3, 3), (0, 1)):
        folder, out = tmp_path / f"folder-{classes}", tmp_path / f"{classes}.npy"
        model = student(tmp_path / f"model-{classes}", classes, channels)
        assert main(["diffusers", "--model", str(model), "--out", str(folder)]) == 0
        seeds, labels = [7, 2**40, 3], [2, 0, 1] if classes else None
        asked.append([str(folder), {"seeds": seeds, "class_labels": labels, "num_inference_steps": 3}, str(out)])
        expected[out] = ours(model, seeds, labels, 3)
    environment = {"HF_HOME": str(tmp_path / "cache"), "PATH": "", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-P", "-c", SAMPLE, json.dumps(asked)], check=True, cwd=tmp_path, env=environment)
    for out, pixels in expected.items():
        np.testing.assert_allclose(np.load(out).astype(int), pixels.astype(int), atol=1)


def test_the_folder_becomes_the_same_checkpoint_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = student(tmp_path / "model")
    write_folder(model, tmp_path / "folder")
    run_import([str(tmp_path / "folder"), "--out", str(tmp_path / "back")])
    assert read_card(tmp_path / "back") == read_card(model)
    before, after = (load_checkpoint(folder)[0] for folder in (model, tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "the student of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "sentence"), [({"role": "teacher"}, "is a teacher"), ({"extra": 1}, "takes a latent beside the image")]
)
def test_what_the_pipeline_cannot_sample_is_refused(tmp_path: Path, fields: dict, sentence: str) -> None:
    model = student(tmp_path / "model", **fields)
    with pytest.raises(CheckpointError, match=sentence):
        write_folder(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_folder_that_holds_a_pipeline_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = student(tmp_path / "model")
    write_folder(model, tmp_path / "folder")
    before = {path: path.read_bytes() for path in (tmp_path / "folder").rglob("*") if path.is_file()}
    assert main(["diffusers", "--model", str(model), "--out", str(tmp_path / "folder")]) == 2
    assert "already holds a model_index.json" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "folder").rglob("*") if path.is_file()}


def test_files_of_somebody_else_are_left_and_an_interrupted_export_goes_on(tmp_path: Path) -> None:
    model, folder = student(tmp_path / "model"), tmp_path / "folder"
    write_folder(model, folder)
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "model_index.json").unlink()
    (folder / "pipeline.py").unlink()
    write_folder(model, folder)
    assert whole == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "model_index.json").unlink()
    (folder / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match=r"already holds another README\.md"):
        write_folder(model, folder)
    assert (folder / "README.md").read_text() == "mine" and not (folder / "model_index.json").exists()


def test_imports_of_our_files_are_left_out_however_many_lines_they_have(tmp_path: Path) -> None:
    text = """import numpy as np
from fewstep.noise import normals
from fewstep.network import (
    UNet,
    attention,
)
from fewstep.metrics.kid import kid
import fewstep.card
FROM = "from fewstep.noise import x"
"""
    (tmp_path / "file.py").write_text(text)
    assert _one_file([tmp_path / "file.py"]) == 'import numpy as np\nFROM = "from fewstep.noise import x"\n'
