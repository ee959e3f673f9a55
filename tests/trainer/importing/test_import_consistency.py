"""Consistency models of diffusers: what is imported samples what they sample there; the rest is refused by name."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers import scheduling_consistency_models
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler

from export.build import export_checkpoint
from export.engine import load_engine
from fewstep.card import Card, CheckpointError, read_card
from fewstep.checkpoint import load_denoiser
from fewstep.consistency import consistency_levels, sample_consistency
from fewstep.ddpm_network import DDPMNetwork
from fewstep.noise_torch import noise_for
from fewstep.samplers import sample_dpdm
from tests.trainer.importing.test_import_diffusers import edit
from trainer.importing import command
from trainer.importing.diffusers_folder import ddpm_config, import_diffusers

# The layout of the published ImageNet-64 models, made small.
PUBLISHED: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), "downsample_type": "resnet",
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"), "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4, "attention_head_dim": 8, "num_class_embeds": 3,
}  # fmt: skip


def make(folder: Path, **scheduler: Any) -> UNet2DModel:
    """A small random folder as diffusers saves it; returns its network."""
    torch.manual_seed(0)
    network = UNet2DModel(**PUBLISHED).eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    network.save_pretrained(folder / "unet")
    given = {"num_train_timesteps": 201, "clip_denoised": False}
    CMStochasticIterativeScheduler(**given | scheduler).save_pretrained(folder / "scheduler")
    index = {"_class_name": "ConsistencyModelPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return network


def imported(folder: Path) -> tuple[Any, Card]:
    command.run([str(folder), "--out", str(folder.parent / "student")])
    return load_denoiser(folder.parent / "student")


@pytest.mark.parametrize(
    ("scheduler", "timesteps"),
    [({}, [0]), ({}, [22, 0]), ({"sigma_min": 0.02, "sigma_data": 0.3}, [150, 90, 0])],
    ids=str,
)
@torch.no_grad()
def test_multistep_sampling_is_that_of_diffusers(
    scheduler: dict[str, Any], timesteps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    network = make(tmp_path / "pipe", **scheduler)
    denoiser, card = imported(tmp_path / "pipe")
    theirs: Any = CMStochasticIterativeScheduler.from_pretrained(tmp_path / "pipe" / "scheduler")
    theirs.set_timesteps(timesteps=timesteps)
    noise, labels = noise_for(range(3), (3, 8, 8)), torch.tensor([0, 2, 1])
    x, sigmas = noise(0) * theirs.init_noise_sigma, theirs.sigmas.tolist()[:-1]
    for step, t in enumerate(theirs.timesteps, start=1):
        monkeypatch.setattr(scheduling_consistency_models, "randn_tensor", lambda *_, at=step, **__: noise(at))
        x = theirs.step(network(theirs.scale_model_input(x, t), t, class_labels=labels).sample, t, x).prev_sample
    end = scheduler.get("sigma_min", 0.002)
    ours = sample_consistency(partial(denoiser, labels=labels), noise, sigmas, end)
    assert (card.role, card.sigma_data, ours.nfe) == ("student", scheduler.get("sigma_data", 0.5), len(timesteps))
    assert x.abs().mean() > 0.05, "a network that returns zeros proves nothing"
    torch.testing.assert_close(ours.images, x, rtol=1e-4, atol=1e-4)


def test_it_is_a_student_whose_engine_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make(tmp_path / "pipe")
    denoiser, card = imported(tmp_path / "pipe")
    assert "a student of 8x8 RGB, 3 classes" in capsys.readouterr().out
    assert list(card.levels) == [*range(1, 9)] and card.levels[2] == consistency_levels(2)
    assert read_card(tmp_path / "student").training["imported"]["class"] == "UNet2DModel"
    manifest = export_checkpoint(tmp_path / "student", tmp_path / "engine", threads=1)
    assert (manifest.role, manifest.classes, list(manifest.levels)) == ("student", 3, [*range(1, 9)])
    engine, noise = load_engine(tmp_path / "engine", threads=1), noise_for([5], (3, 8, 8))
    eager = sample_dpdm(partial(denoiser, labels=torch.tensor([1])), noise, card.levels[4]).images
    served = sample_dpdm(
        partial(engine.denoiser, labels=np.array([1])), lambda step: noise(step).numpy(), manifest.levels[4]
    )
    np.testing.assert_allclose(served.images, eager, atol=1e-3)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("scheduler/scheduler_config", {"s_noise": 1.1}, r"s_noise is 1\.1 .*only 1\.0"),
        ("scheduler/scheduler_config", {"sigma_data": 0}, "sigma_data is 0 .*no positive number"),
        ("scheduler/scheduler_config", {"sigma_max": 4.0}, r"sigma_max is 4\.0 .*more than 10 sigma_data"),
        ("scheduler/scheduler_config", {"sigma_min": 2.0}, r"sigma_min 2\.0 does not lie between 0 and 1"),
        ("unet/config", {"downsample_type": "fir"}, "downsample_type is 'fir'; only 'conv' and 'resnet'"),
        ("unet/config", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "some levels change the size by a convolution"),
    ],
    ids=str,
)
def test_what_cannot_be_imported_is_refused_by_name(file: str, options: dict[str, Any], message: str, tmp_path: Path):
    make(tmp_path / "pipe")
    edit(tmp_path / "pipe" / f"{file}.json", **options)
    with pytest.raises(CheckpointError, match=message):
        import_diffusers(tmp_path / "pipe")


def test_its_sigma_data_is_its_own(tmp_path: Path):
    make(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="--sigma-data is for other networks; a consistency model"):
        import_diffusers(tmp_path / "pipe", 0.5)


def test_options_of_the_published_imagenet_models_are_read():
    published = PUBLISHED | {
        "_class_name": "UNet2DModel", "sample_size": 64, "block_out_channels": [192, 384, 576, 768],
        "layers_per_block": 3, "norm_num_groups": 32, "attn_norm_num_groups": 32, "attention_head_dim": 64,
        "down_block_types": ["ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3], "num_class_embeds": 1000,
        "up_block_types": [*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    }  # fmt: skip
    scheduler = {"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 201}
    config = ddpm_config(published, scheduler)
    assert config.residual_resize and config.prediction == "consistency"
    published.pop("_class_name")
    with torch.device("meta"):
        ours = {name: tensor.shape for name, tensor in DDPMNetwork(config).unet.state_dict().items()}
        theirs = {name: tensor.shape for name, tensor in UNet2DModel(**published).state_dict().items()}
    assert ours == theirs and sum(shape.numel() for shape in ours.values()) > 295e6
