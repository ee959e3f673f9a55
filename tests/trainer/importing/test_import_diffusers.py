"""diffusers folders: what is imported samples what diffusers samples, and what cannot be is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file, save_file

from export.build import export_checkpoint
from export.engine import load_engine
from fewstep.card import CheckpointError
from fewstep.checkpoint import load_denoiser
from fewstep.noise_torch import noise_for
from fewstep.samplers import sample_euler, sample_heun
from fewstep.schedule import solver_sigmas
from tests.trainer.tiny import run_options
from trainer.commands import train_teacher
from trainer.data.format import ImageSet, sigma_data
from trainer.importing.diffusers_folder import import_diffusers
from trainer.importing.imported import Provenance, save_imported

LAST = "mid_block.resnets.1.conv2.weight"


def make_pipeline(folder: Path, scheduler: Any = None, **options: Any) -> UNet2DModel:
    """A small random pipeline folder as diffusers saves it; returns its network."""
    torch.manual_seed(0)
    given = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    network = UNet2DModel(**given | options).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    network.save_pretrained(folder / "unet")
    (scheduler or DDPMScheduler()).save_pretrained(folder / "scheduler")
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPM"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return network


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    make_pipeline(tmp_path / "pipe")
    return tmp_path / "pipe"


def edit(path: Path, **options: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def imported(pipeline: Path, sigma_data: float = 0.5) -> Any:
    out = pipeline.parent / f"teacher-{sigma_data}"
    save_imported(out, import_diffusers(pipeline, sigma_data), Provenance())
    return load_denoiser(out)[0]


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ({}, {}),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"num_class_embeds": 3}),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, {"add_attention": False}),
        ({"num_train_timesteps": 100}, {"resnet_time_scale_shift": "scale_shift", "attention_head_dim": None}),
        ({}, {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6, "dropout": 0.1}),
        ({}, {"in_channels": 3, "out_channels": 3, "attn_norm_num_groups": 2, "attention_head_dim": 4}),
    ],
    ids=lambda value: ",".join(value) or "default",
)
@torch.no_grad()
def test_the_denoiser_is_what_the_network_predicts(scheduler: dict[str, Any], options: dict[str, Any], tmp_path: Path):
    theirs = DDPMScheduler(**scheduler)
    network = make_pipeline(tmp_path / "pipe", theirs, **options)
    denoiser = imported(tmp_path / "pipe", 0.5)
    channels, classes = options.get("in_channels", 1), options.get("num_class_embeds", 0)
    labels = torch.tensor([0, 2]) if classes else None
    bar = theirs.alphas_cumprod.double()
    for step in (0, 20, len(bar) // 2, len(bar) - 1):
        sigma = ((1 - bar[step]) / bar[step]).sqrt().float()
        noisy = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(step))
        x = noisy * (1 + sigma**2).sqrt()
        expected = x - sigma * network(noisy, step, class_labels=labels).sample
        torch.testing.assert_close(
            denoiser(x, sigma.expand(2), labels), expected, rtol=0, atol=1e-5 * max(1.0, float(sigma))
        )


@torch.no_grad()
def test_euler_walks_the_path_of_their_ddim(tmp_path: Path):
    # DDIM with eta 0 is Euler on the probability-flow ODE in x / sqrt(1 + sigma^2); sigmas are those of its timesteps.
    theirs = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    network = make_pipeline(tmp_path / "pipe", theirs)
    denoiser = imported(tmp_path / "pipe")
    theirs.set_timesteps(20)
    bar = theirs.alphas_cumprod.double()
    sigmas = [*((1 - bar) / bar).sqrt()[theirs.timesteps].tolist(), 0.0]
    noise = noise_for(range(4), (1, 8, 8))
    x = sigmas[0] * noise(0) / (1 + sigmas[0] ** 2) ** 0.5
    for t in theirs.timesteps:
        x = theirs.step(network(x, t).sample, int(t), x, eta=0.0).prev_sample  # pyright: ignore[reportAttributeAccessIssue]
    ours = sample_euler(denoiser, noise, sigmas)
    assert ours.nfe == 20
    assert x.std() > 0.1
    torch.testing.assert_close(ours.images, x, rtol=2e-4, atol=2e-4 * float(x.abs().max()))


@torch.no_grad()
def test_heun_from_80_agrees_with_a_fine_euler_walk(pipeline: Path):
    denoiser = imported(pipeline)
    noise = noise_for(range(2), (1, 8, 8))
    heun = sample_heun(denoiser, noise, solver_sigmas(20)).images
    fine = sample_euler(denoiser, noise, solver_sigmas(100)).images
    assert heun.isfinite().all()
    assert (heun - fine).abs().mean() < 0.02 * fine.abs().mean()


@torch.no_grad()
def test_sigma_data_is_a_choice_that_does_not_change_the_denoiser(pipeline: Path):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for sigma in (0.05, 1.0, 60.0):
        level = torch.full((2,), sigma)
        a, b = (imported_once(pipeline, spread)(x * (1 + sigma), level) for spread in (0.5, 0.66))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, sigma))


def imported_once(pipeline: Path, sigma_data: float) -> Any:
    folder = pipeline.parent / f"teacher-{sigma_data}"
    return load_denoiser(folder)[0] if folder.exists() else imported(pipeline, sigma_data)


def test_an_imported_teacher_exports_and_its_engine_agrees(tmp_path: Path):
    make_pipeline(tmp_path / "pipe", num_class_embeds=3)
    denoiser = imported(tmp_path / "pipe")
    manifest = export_checkpoint(tmp_path / "teacher-0.5", tmp_path / "engine", threads=1)
    assert (manifest.classes, manifest.role, manifest.class_names) == (3, "teacher", ("class 0", "class 1", "class 2"))
    assert manifest.parity["solver"]["max"] < 0.5
    engine = load_engine(tmp_path / "engine", threads=1)
    rng = np.random.default_rng(0)
    for batch in (1, 5):  # levels inside the table, below it and above it
        x = rng.standard_normal((batch, 1, 8, 8), dtype=np.float32)
        c_noise = (np.log([0.001, 0.3, 5, 80, 400]) / 4).astype(np.float32)[:batch]
        onehot = np.eye(5, dtype=np.float32)[:batch, :3]
        with torch.no_grad():
            expected = denoiser.network(*map(torch.from_numpy, (x, c_noise, onehot))).numpy()
        np.testing.assert_allclose(engine.network(x, c_noise, onehot), expected, atol=1e-4 * np.abs(expected).max())


def test_every_layout_gives_the_same_weights(pipeline: Path, tmp_path: Path):
    whole = import_diffusers(pipeline)
    assert whole.origin["file"] == "pipe/unet/diffusion_pytorch_model.safetensors"
    flat = Path(shutil.copytree(pipeline / "unet", tmp_path / "flat"))
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", flat)
    beside = Path(shutil.copytree(flat, tmp_path / "beside" / "unet"))
    (beside / "scheduler_config.json").rename(beside.parent / "scheduler_config.json")
    for folder in (pipeline / "unet", flat, beside, beside.parent):
        other = import_diffusers(folder)
        assert other.config == whole.config
        assert all(torch.equal(other.weights[name], tensor) for name, tensor in whole.weights.items())


def test_attention_names_of_old_files_and_half_precision_are_read(pipeline: Path):
    whole = import_diffusers(pipeline)
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(path).items():
        for current, former in old.items():
            name = name.replace(f".{current}.", f".{former}.")
        tensors[name] = tensor.bfloat16()
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path)
    again = import_diffusers(pipeline)
    assert again.weights.keys() == whole.weights.keys()
    for name, tensor in again.weights.items():
        assert torch.equal(tensor, whole.weights[name].bfloat16().float())


def test_old_schedulers_say_what_they_predict_in_another_way(pipeline: Path):
    path = pipeline / "scheduler" / "scheduler_config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "prediction_type"}
    path.write_text(json.dumps(kept))
    assert import_diffusers(pipeline).config.prediction == "epsilon"  # pyright: ignore[reportAttributeAccessIssue]
    path.write_text(json.dumps(kept | {"predict_epsilon": False}))
    assert import_diffusers(pipeline).config.prediction == "sample"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel; only UNet2DModel"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'.*only 'positional'"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"center_input_sample": True}, "center_input_sample is True"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"mid_block_type": None}, "mid_block_type is None"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor is 1.4"),
        ({"downsample_type": "fir"}, "downsample_type is 'fir'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types has SkipDownBlock2D"),
        ({"up_block_types": ["AttnUpBlock2D", 3]}, "up_block_types has 3"),
        ({"out_channels": 2}, "in_channels is 1 and out_channels 2; learned variances"),
        ({"in_channels": 4, "out_channels": 4}, r"conv_in\.weight|4 image channels"),
        ({"sample_size": None}, "sample_size is None"),
        ({"sample_size": [8, 16]}, r"sample_size is \[8, 16\]"),
        ({"sample_size": 9}, "resolution 9 is not a multiple"),
        ({"norm_num_groups": None}, "describes no network that can be built"),
        ({"block_out_channels": "wide"}, "describes no network that can be built"),
        ({"flux_capacitor": 1.21}, "flux_capacitor .* is an option this importer does not know"),
        ({"layers_per_block": 2}, r"lacks .* tensors are missing"),
        ({"add_attention": False}, "has mid_block.attentions.0.* for which its config.json has no place"),
        ({"num_class_embeds": 4}, r"lacks class_embedding\.weight \(1 of"),
        ({"block_out_channels": [8, 24]}, "where config.json asks for"),
    ],
    ids=str,
)
def test_an_unsupported_network_is_refused_by_name(pipeline: Path, options: dict[str, Any], message: str):
    edit(pipeline / "unet" / "config.json", **options)
    with pytest.raises(CheckpointError, match=message):
        import_diffusers(pipeline)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "is a ScoreSdeVeScheduler; supported are"),
        ({"beta_schedule": "sigmoid"}, "betas 'sigmoid' is none of linear, scaled_linear, squaredcos_cap_v2"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas .* is not supported"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr .* is not supported"),
        ({"prediction_type": "flow_prediction"}, "prediction 'flow_prediction' is none of"),
        ({"prediction_type": "consistency"}, "a DDPMScheduler predicts no consistency"),
        ({"beta_start": 0.0}, "no noise levels that rise"),
        ({"beta_end": None}, "describes no network that can be built"),
    ],
    ids=str,
)
def test_an_unsupported_schedule_is_refused_by_name(pipeline: Path, options: dict[str, Any], message: str):
    edit(pipeline / "scheduler" / "scheduler_config.json", **options)
    with pytest.raises(CheckpointError, match=message):
        import_diffusers(pipeline)


def test_a_folder_with_something_missing_or_damaged_is_refused_in_words(pipeline: Path, tmp_path: Path):
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:1000], content[:-4], b"<html>", b""):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a safetensors file, or is truncated"):
            import_diffusers(pipeline)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"only diffusion_pytorch_model\.bin, which is a pickle; convert it"):
        import_diffusers(pipeline)
    edit(pipeline / "model_index.json", vqvae=["diffusers", "VQModel"])
    with pytest.raises(CheckpointError, match="makes latents for its vqvae; only pixel-space"):
        import_diffusers(pipeline)
    (pipeline / "model_index.json").unlink()
    (pipeline / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json is not readable JSON"):
        import_diffusers(pipeline)
    (pipeline / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no scheduler/scheduler_config\.json"):
        import_diffusers(pipeline)
    with pytest.raises(CheckpointError, match="it is no diffusers folder"):
        import_diffusers(tmp_path)


def test_whole_numbers_are_no_weights(pipeline: Path):
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {LAST: tensors[LAST].int()}, path)
    with pytest.raises(CheckpointError, match=rf"{LAST} in .* is torch\.int32"):
        import_diffusers(pipeline)


def test_an_imported_teacher_is_trained_further(pipeline: Path, thumbnails: ImageSet, tmp_path: Path):
    """teacher --init: the images have ten classes, the network knows none."""
    before = imported(pipeline, sigma_data(thumbnails.images)).network.state_dict()
    folder = next(tmp_path.glob("teacher-*"))
    assert train_teacher(run_options(tmp_path / "on", images=16), thumbnails, folder, lr=1e-4)
    continued, card = load_denoiser(tmp_path / "on")
    assert card.network["family"] == "ddpm" and card.class_names == () and continued.classes == 0
    after: Any = continued.network
    gaps = [float((after.state_dict()[name] - value).abs().max()) for name, value in before.items()]
    assert 0 < max(gaps) < 1e-3


EMA = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 5, "power": 0.75}
EMA |= {"update_after_step": 0, "use_ema_warmup": True}


def test_the_average_of_a_training_run_is_taken_where_there_is_one(pipeline: Path, tmp_path: Path):
    """accelerate's checkpoints: checkpoint-N/unet and unet_ema, the scheduler two folders above."""
    step = pipeline / "checkpoint-500"
    shutil.copytree(pipeline / "unet", step / "unet")
    shutil.copytree(pipeline / "unet", step / "unet_ema")
    edit(step / "unet_ema" / "config.json", **EMA)
    file = step / "unet_ema" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(weights, file)
    expected = {f"unet.{name}": tensor for name, tensor in weights.items()}
    for folder in (step, step / "unet_ema"):
        found = import_diffusers(folder)
        assert found.weights.keys() == expected.keys()
        assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.items())
        assert "unet_ema" in found.origin["file"]
    shutil.rmtree(pipeline / "unet")
    (step / "unet_ema").rename(pipeline / "unet_ema")
    assert "unet_ema" in import_diffusers(pipeline).origin["file"]
