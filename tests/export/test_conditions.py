"""Engines of networks with conditions: parity on every backend that runs them, and a sentence on the others."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from msgspec import structs

from export.build import export_checkpoint, verify_engine
from export.diffusers.folder import write_folder
from export.engine import load_engine
from export.manifest import BACKENDS, WITH_CONDITIONS, read_manifest
from export.plans import make_plan
from fewstep.card import CheckpointError
from fewstep.checkpoint import at_resolution, load_denoiser
from fewstep.conditions import Condition, guidance_weight, low_image
from fewstep.noise import noise_for
from fewstep.pixels import to_pixels
from fewstep.samplers import sample_dpdm
from fewstep.unet_config import UNetConfig
from server.scheduler.loading import LoadOptions
from server.scheduler.local import LocalService
from server.scheduler.request import Given
from server.scheduler.validate import image_request
from tests.export.conftest import TINY, make_checkpoint

# Every way into a network, of convolutions alone, so that one export shows them all.
TAKING = UNetConfig(
    8, 1, classes=10, width=8, mult=(1, 2), blocks=1, inner_attention=False, precond="residual", sigma_data=0.5,
    conditions=(guidance_weight(4.0), Condition("text", (5,), -1.0, 1.0, default=0.0), low_image(1, 2)),
)  # fmt: skip
SIDE = 16  # of the engine's images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of images of 8x8, and in `engine/` its engine for 16x16."""
    made = make_checkpoint(tmp_path_factory.mktemp("taking"), TAKING)
    export_checkpoint(made, made / "engine", "taking", threads=1, resolution=SIDE)
    return made


def test_conditions_are_inputs_of_the_file_and_described_in_the_manifest(folder: Path):
    manifest = read_manifest(folder / "engine")
    inputs = [value.name for value in onnx.load(folder / "engine" / manifest.network).graph.input]
    assert inputs == list(manifest.inputs) == ["x", "c_noise", "onehot", "guidance", "text", "low"]
    assert manifest.image_shape == (1, SIDE, SIDE)
    assert manifest.conditions == (*TAKING.conditions[:2], low_image(1, 4))


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino-f32", "openvino", "torch"])
def test_every_backend_makes_the_images_of_eager_pytorch(folder: Path, backend: str):
    try:
        proof = verify_engine(folder / "engine", folder, backend, threads=1, buckets=(1, 8))
    except CheckpointError as error:
        if "is not installed" in str(error) or "no bfloat16" in str(error):
            pytest.skip(str(error))
        raise
    bfloat16 = proof.facts["precision"] == "bfloat16"
    assert max(gap.mean for gap in proof.parity.values()) < (2.0 if bfloat16 else 0.01)


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - set(WITH_CONDITIONS)))
def test_a_backend_without_conditions_says_so_and_names_those_with(folder: Path, backend: str):
    for load in (lambda engine: load_engine(engine, backend=backend), lambda engine: make_plan(engine, backend)):
        with pytest.raises(CheckpointError, match=rf"takes guidance, text, low, and backend {backend}.*onnxruntime"):
            load(folder / "engine")


def test_what_cannot_be_exported_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="takes guidance; an engine with adapters"):
        export_checkpoint(folder, tmp_path / "engine", adapters=True)
    with pytest.raises(CheckpointError, match="takes guidance, which the pipeline has no argument for"):
        write_folder(folder, tmp_path / "folder")
    attending = make_checkpoint(tmp_path / "attending", TINY)
    with pytest.raises(CheckpointError, match="has attention and makes images of 8 pixels a side alone"):
        export_checkpoint(attending, tmp_path / "engine", resolution=SIDE)
    assert not (tmp_path / "engine").exists()


def test_the_network_counts_its_further_inputs(folder: Path):
    engine = load_engine(folder / "engine", threads=1)
    rows = np.zeros((1, 1, SIDE, SIDE), np.float32), np.zeros(1, np.float32), np.zeros((1, 10), np.float32)
    with pytest.raises(ValueError, match="takes guidance, text, low; 0 further arrays were given"):
        engine.network(*rows)


def test_images_of_a_service_are_those_of_the_sampler_with_their_conditions(folder: Path):
    denoiser, card = at_resolution(*load_denoiser(folder), SIDE)
    labels, noise = torch.tensor([3]), noise_for([7], card.image_shape)
    low = np.random.default_rng(0).uniform(-1, 1, (1, 1, 4, 4)).astype(np.float32)
    options = LoadOptions(mode="exact", capacity=2, threads=1)
    with LocalService.open({"taking": folder / "engine"}, options) as service:
        asked = image_request(
            service.manifests["taking"], seeds=[7, 7], label=3, guidance=[1.0, 4.0], steps=2, format="pixels",
            pictured=("low",),
        )  # fmt: skip
        images = service.submit(structs.replace(asked, conditions=(*asked.conditions, Given.of("low", low)))).result()
    for weight, found in zip((1.0, 4.0), images.images, strict=True):
        bound = denoiser.given(guidance=torch.full((1,), weight), low=torch.from_numpy(low))
        call = lambda x, sigma, bound=bound: bound(x, sigma, labels)  # noqa: E731
        sample = sample_dpdm(call, lambda step: torch.from_numpy(noise(step)), card.levels[2])
        assert np.abs(to_pixels(sample.images.numpy())[0].astype(int) - found).max() <= 1
    assert np.abs(images.images[0].astype(int) - images.images[1]).max() > 3, "the weight has a say"
