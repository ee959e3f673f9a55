"""EDM2's pickles: an imported file computes what its tensors do, and what cannot be imported is refused by name."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.build import export_checkpoint
from export.engine import load_engine
from fewstep.card import CheckpointError, read_card
from fewstep.checkpoint import load_denoiser
from tests.trainer.importing.edm2_reference import Reference2
from tests.trainer.importing.edm_pickles import Persistent, module_state, write
from tests.trainer.tiny import run_options
from trainer.commands import train_student
from trainer.data.format import ImageSet
from trainer.importing import command
from trainer.importing.edm_weights import import_edm
from trainer.importing.imported import Provenance, save_imported
from trainer.options import Distillation


def snapshot(network: Reference2, encoder: str = "StandardRGBEncoder", **change: Any) -> dict[str, Any]:
    """The dictionary that EDM2 pickles, with weights in half precision as published. change: of the arguments."""
    half = {name: tensor.half() for name, tensor in network.t.items()}
    state = module_state(half, "raise SystemExit('code of a pickle ran')")
    unet = Persistent("UNet", "raise SystemExit", **state | {"_init_kwargs": network.kw | change})
    logvar = Persistent("MPConv", "", **module_state({"weight": torch.zeros(1, 8)}, ""))
    ema = Persistent(
        "Precond", "raise SystemExit", _modules=OrderedDict(unet=unet, logvar_linear=logvar), _buffers=OrderedDict(),
        _parameters=OrderedDict(), _init_args=(), _init_kwargs={}, sigma_data=0.5, use_fp16=True, label_dim=4,
    )  # fmt: skip
    return {
        "ema": ema,
        "encoder": Persistent(encoder, "raise SystemExit"),
        "dataset_kwargs": {"path": "/data/img64.zip", "max_size": 1281167},
    }


@pytest.mark.parametrize("change", [{}, {"label_dim": 0}, {"attn_resolutions": [4], "clip_act": 256}], ids=str)
@torch.no_grad()
def test_the_imported_denoiser_computes_what_the_published_tensors_do(change: dict[str, Any], tmp_path: Path):
    network = Reference2(**change)
    command.run([str(write(tmp_path / "net.pkl", snapshot(network))), "--out", str(tmp_path / "out")])
    denoiser, card = load_denoiser(tmp_path / "out")
    classes = network.kw["label_dim"]
    assert (card.role, card.sigma_data, denoiser.classes, card.network["family"]) == ("teacher", 0.5, classes, "edm2")

    network.t = {name: tensor.half().float() for name, tensor in network.t.items()}
    sigma = torch.tensor([0.002, 0.5, 3.0, 80.0])
    x = (
        torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        * (sigma**2 + 0.25).sqrt()[:, None, None, None]
    )
    labels = torch.tensor([0, 3, 1, -1])  # the last row has no class
    total, s = (sigma**2 + 0.25)[:, None, None, None], sigma[:, None, None, None]
    raw = network(x / total.sqrt(), sigma.log() / 4, torch.eye(5)[labels][:, :classes])
    expected = 0.25 / total * x + 0.5 * s / total.sqrt() * raw
    assert raw.abs().mean() > 0.1, "a network that returns zeros proves nothing"
    torch.testing.assert_close(denoiser(x, sigma, labels), expected, rtol=1e-4, atol=1e-4)


def test_the_card_says_where_it_is_from_and_the_engine_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command.run([str(write(tmp_path / "net.pkl", snapshot(Reference2()))), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "a teacher of 16x16 RGB, 4 classes, from a UNet" in said and "dropped logvar" in said
    card = read_card(tmp_path / "out")
    assert (card.dataset.name, card.dataset.images) == ("img64", 1281167)
    assert card.training["imported"]["format"] == "EDM2 pickle"

    manifest = export_checkpoint(tmp_path / "out", tmp_path / "engine", threads=1)
    assert manifest.parity["solver"]["max"] < 0.5
    engine, denoiser = load_engine(tmp_path / "engine", threads=1), load_denoiser(tmp_path / "out")[0]
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16), dtype=np.float32)
    c_noise, onehot = np.array([-1.5, 0.2, 1.1], np.float32), np.eye(4, dtype=np.float32)[:3]
    with torch.no_grad():
        expected = denoiser.network(*map(torch.from_numpy, (x, c_noise, onehot))).numpy()
    np.testing.assert_allclose(engine.network(x, c_noise, onehot), expected, atol=1e-4 * np.abs(expected).max())


def test_a_student_is_distilled_of_such_a_teacher(thumbnails: ImageSet, tmp_path: Path):
    network = Reference2(img_resolution=8, img_channels=1, label_dim=10, attn_resolutions=[4])
    save_imported(tmp_path / "teacher", import_edm(write(tmp_path / "net.pkl", snapshot(network))), Provenance())
    order = Distillation(tmp_path / "teacher", switches={"auxiliary_sees_level": False})
    assert train_student(run_options(tmp_path / "student", images=16), thumbnails, order)
    student, card = load_denoiser(tmp_path / "student")
    assert (card.network["family"], card.role) == ("edm2", "student") and card.levels
    before: Any = load_denoiser(tmp_path / "teacher")[0].network
    after: Any = student.network
    gaps = {name: float((after.state_dict()[name] - value).abs().max()) for name, value in before.state_dict().items()}
    assert gaps["out_gain"] > 0 and max(gaps.values()) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample_filter": [1, 3, 3, 1]}, r"resample_filter = \[1, 3, 3, 1\]; only \[1, 1\]"),
        ({"img_resolution": 15}, "resolution 15 is not a multiple"),
        ({"img_resolution": None}, "img_resolution = None, which makes no sense"),
        ({"dropout": 2}, "dropout = 2, which makes no sense"),
        ({"mlp": True}, "argument mlp, which this importer does not know"),
        ({"num_blocks": 2}, r"lacks enc\.16x16_block1\."),
        ({"attn_resolutions": []}, r"has dec\.8x8_block0\.attn_proj\.weight, for which"),
        ({"label_dim": 3}, r"emb_label\.weight is torch\.float16 .* arguments ask for"),
        ({"channel_mult_noise": 3}, r"emb_fourier\.\w+ is torch\.float16 .* arguments ask for"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path):
    path = write(tmp_path / "net.pkl", snapshot(Reference2(), **change))
    with pytest.raises(CheckpointError, match=message) as refusal:
        import_edm(path)
    assert str(path) in str(refusal.value)


def test_models_of_latents_and_unknown_networks_are_refused(tmp_path: Path):
    latent = write(tmp_path / "net.pkl", snapshot(Reference2(), "StabilityVAEEncoder"))
    with pytest.raises(CheckpointError, match="makes latents for its StabilityVAEEncoder; only pixel-space"):
        import_edm(latent)
    with pytest.raises(CheckpointError, match="--sigma-data is for other networks"):
        import_edm(write(tmp_path / "net.pkl", snapshot(Reference2())), 0.4)
    content = snapshot(Reference2())
    content["ema"].meta["state"]["_modules"] = OrderedDict(unet=Persistent("DiT", ""))
    with pytest.raises(CheckpointError, match="holds a network of class DiT inside Precond; known is UNet"):
        import_edm(write(tmp_path / "net.pkl", content))
