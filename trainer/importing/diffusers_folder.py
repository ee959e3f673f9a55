"""diffusers' folders: a UNet2DModel and its scheduler, as a teacher (a DDPM) or a student (a consistency model).

Three layouts: a pipeline (unet_ema/config.json or unet/config.json, scheduler/scheduler_config.json), both files side
by side, or a bare unet folder with the scheduler beside it or above. Weights are
safetensors; nothing here needs diffusers.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.card import CheckpointError, file_sha256
from fewstep.consistency import consistency_levels
from fewstep.ddpm_network import DDPMConfig, UNet2D, log_sigmas
from fewstep.schedule import SIGMA_MAX
from trainer.importing.imported import Imported

CONFIG_FILE = "config.json"
SCHEDULER_FILE = "scheduler_config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PIPELINE_FILE = "model_index.json"

# Options of UNet2DModel that become fields of DDPMConfig, with what diffusers takes a missing one for.
_READ: dict[str, Any] = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "downsample_padding": 1, "dropout": 0.0,
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "num_class_embeds": None,
    "downsample_type": "conv", "upsample_type": "conv",
}  # fmt: skip
# Options that are understood with these values only. None is what a missing one means.
_FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False, None),
    "time_embedding_type": ("positional", None),
    "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1, None),
    "act_fn": ("silu", "swish", None),
    "class_embed_type": (None,),
}
# Of learned time embeddings, which are refused; and of diffusers' EMAModel, which writes its own options beside them.
_IGNORED = (
    "num_train_timesteps", "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step",
    "use_ema_warmup",
)  # fmt: skip
# Kinds of levels -> whether they attend, and what changes the size; None: what downsample_type or upsample_type says.
_DOWN = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
}
_UP = {"UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, "resnet")}
_Kinds = dict[str, tuple[bool, str | None]]

# Schedulers that sample the model a DDPM trains; their betas and prediction_type mean the same.
_SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
_CONSISTENCY = "CMStochasticIterativeScheduler"
_STEPS = range(1, 9)  # that a consistency model is given levels for
_DEPRECATED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names of old files


def import_diffusers(folder: Path, sigma_data: float | None = None) -> Imported:
    """The model in a diffusers folder, in [-1, 1] pixels, under EDM preconditioning.

    A DDPM is a teacher, with this sigma_data (0.5); a consistency model is a student with its own.
    Raises CheckpointError naming the unsupported option or the missing file.
    """
    unet, scheduler_file = _locate(folder)
    scheduler = _read_json(scheduler_file)
    config = ddpm_config(_read_json(unet / CONFIG_FILE), scheduler, sigma_data)
    weights = _weights(unet, config)
    origin = {
        "file": f"{folder.resolve().name}/{(unet / WEIGHTS_FILE).relative_to(folder)}",
        "sha256": file_sha256(unet / WEIGHTS_FILE),
        "format": "diffusers folder",
        "class": "UNet2DModel",
    }
    if config.prediction != "consistency":
        return Imported(config, weights, config.sigma_data, origin)
    top = float(scheduler.get("sigma_max", SIGMA_MAX))
    levels = {steps: consistency_levels(steps, config.sigma_data, top) for steps in _STEPS}
    return Imported(config, weights, config.sigma_data, origin, role="student", levels=levels)


def _locate(folder: Path) -> tuple[Path, Path]:
    """The folder of the U-Net, and the scheduler's file."""
    if (folder / PIPELINE_FILE).is_file():
        parts = _read_json(folder / PIPELINE_FILE)
        if latent := [name for name in ("vae", "vqvae") if parts.get(name)]:
            raise CheckpointError(
                f"{folder} makes latents for its {latent[0]}; only pixel-space models can be imported"
            )
    inside = [folder / name for name in ("unet_ema", "unet") if (folder / name / CONFIG_FILE).is_file()]
    unet = inside[0] if inside else folder  # unet_ema is preferred: the average is used for sampling
    if not (unet / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} holds neither unet/{CONFIG_FILE} nor {CONFIG_FILE}: it is no diffusers folder")
    above = unet.parent.parent  # of unet_ema in a training run's checkpoint-N: the pipeline
    places = [unet, unet / "scheduler", unet.parent, unet.parent / "scheduler", above / "scheduler"]
    for place in places if unet == folder else places[2:]:
        if (place / SCHEDULER_FILE).is_file():
            return unet, place / SCHEDULER_FILE
    raise CheckpointError(
        f"{folder} holds no scheduler/{SCHEDULER_FILE}: without it the noise levels of the network are not known"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


def ddpm_config(unet: dict[str, Any], scheduler: dict[str, Any], sigma_data: float | None = None) -> DDPMConfig:
    """Both configurations of diffusers as ours. Raises CheckpointError naming an option that is not supported."""
    if unet.get("_class_name") != "UNet2DModel":
        raise CheckpointError(f"the network is a {unet.get('_class_name')}; only UNet2DModel can be imported")
    _refuse_unsupported(unet)
    options = _READ | unet
    side = options["sample_size"]
    if isinstance(side, list) and len(side) == 2 and side[0] == side[1]:
        side = side[0]
    if type(side) is not int:
        raise CheckpointError(f"sample_size is {side!r} in {CONFIG_FILE}; set it to the side of the square images")
    if options["out_channels"] != options["in_channels"]:
        raise CheckpointError(
            f"in_channels is {options['in_channels']} and out_channels {options['out_channels']}; learned variances "
            "and further inputs are not supported"
        )
    scale_shift = options["resnet_time_scale_shift"] == "scale_shift"
    groups = options["norm_num_groups"]
    middle_groups = options["attn_norm_num_groups"] or (0 if scale_shift else groups)
    try:
        config = DDPMConfig(
            resolution=side,
            channels=options["in_channels"],
            widths=tuple(options["block_out_channels"]),
            down_attention=_attention("down_block_types", options["down_block_types"], _DOWN),
            up_attention=_attention("up_block_types", options["up_block_types"], _UP),
            residual_resize=_residual_resize(options),
            classes=options["num_class_embeds"] or 0,
            blocks=options["layers_per_block"],
            middle_attention=bool(options["add_attention"]),
            head_width=options["attention_head_dim"] or 0,
            groups=groups,
            middle_groups=middle_groups,
            eps=float(options["norm_eps"]),
            scale_shift=scale_shift,
            dropout=float(options["dropout"]),
            sines_first=not options["flip_sin_to_cos"],
            freq_shift=float(options["freq_shift"]),
            down_padding=options["downsample_padding"],
            **_schedule(scheduler, sigma_data),
        )
        if config.prediction != "consistency":
            log_sigmas(config)
        return config
    except (TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{CONFIG_FILE} describes no network that can be built ({error})") from error


def _refuse_unsupported(unet: dict[str, Any]) -> None:
    for name, value in unet.items():
        if name in _FIXED and value not in _FIXED[name]:
            raise CheckpointError(f"{name} is {value!r} in {CONFIG_FILE}; only {_FIXED[name][0]!r} is supported")
        known = name.startswith("_") or name in _READ or name in _FIXED or name in _IGNORED
        if not known and value is not None:
            raise CheckpointError(f"{name} in {CONFIG_FILE} is an option this importer does not know")
    kind = unet.get("resnet_time_scale_shift", "default")
    if kind not in ("default", "scale_shift"):
        raise CheckpointError(f"resnet_time_scale_shift is {kind!r}; only 'default' and 'scale_shift' are supported")


def _attention(option: str, kinds: list[str], known: _Kinds) -> tuple[bool, ...]:
    for kind in kinds:
        if kind not in known:
            raise CheckpointError(f"{option} has {kind}; only {', '.join(known)} are supported")
    return tuple(known[kind][0] for kind in kinds)


def _residual_resize(options: dict[str, Any]) -> bool:
    """Whether residual blocks change the size, at every level, where one does. The last level of each side has none."""
    found = set()
    for side, known in (("down", _DOWN), ("up", _UP)):
        otherwise = options[f"{side}sample_type"] or "conv"
        if otherwise not in ("conv", "resnet"):
            raise CheckpointError(f"{side}sample_type is {otherwise!r}; only 'conv' and 'resnet' are supported")
        found |= {known[kind][1] or otherwise for kind in options[f"{side}_block_types"][:-1]}
    if len(found) > 1:
        raise CheckpointError(
            "some levels change the size by a convolution and some by a residual block; only one for all is supported"
        )
    return found == {"resnet"}


def _consistency(scheduler: dict[str, Any], sigma_data: float | None) -> dict[str, Any]:
    """The fields of DDPMConfig of a consistency model."""
    if sigma_data is not None:
        raise CheckpointError("--sigma-data is for other networks; a consistency model was trained with its own")
    if (noise := scheduler.get("s_noise", 1.0)) != 1:
        raise CheckpointError(f"s_noise is {noise!r} in {SCHEDULER_FILE}; only 1.0 is supported")
    fields: dict[str, Any] = {"prediction": "consistency"}
    for name, otherwise in (("sigma_min", 0.002), ("sigma_data", 0.5), ("sigma_max", SIGMA_MAX)):
        value = scheduler.get(name, otherwise)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(f"{name} is {value!r} in {SCHEDULER_FILE}, which is no positive number")
        fields[name] = float(value)
    top = fields.pop("sigma_max")
    if top <= 10 * fields["sigma_data"]:
        raise CheckpointError(f"sigma_max is {top} in {SCHEDULER_FILE}; it must be more than 10 sigma_data")
    return fields


def _schedule(scheduler: dict[str, Any], sigma_data: float | None) -> dict[str, Any]:
    """The fields of DDPMConfig that the scheduler decides."""
    kind = scheduler.get("_class_name")
    if kind == _CONSISTENCY:
        return _consistency(scheduler, sigma_data)
    if kind not in _SCHEDULERS:
        raise CheckpointError(
            f"the scheduler is a {kind}; supported are those of DDPM-type models, as DDPMScheduler, and {_CONSISTENCY}"
        )
    for name in ("trained_betas", "rescale_betas_zero_snr", "use_flow_sigmas"):
        if scheduler.get(name):
            raise CheckpointError(f"{name} in {SCHEDULER_FILE} is not supported")
    for name in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps"):
        if name not in scheduler:  # what a missing one means differs from scheduler to scheduler
            raise CheckpointError(f"{SCHEDULER_FILE} lacks {name}")
    prediction = scheduler.get("prediction_type", "epsilon")
    if scheduler.get("predict_epsilon") is False:  # as old files say it
        prediction = "sample"
    if prediction == "consistency":
        raise CheckpointError(f"a {kind} predicts no consistency; the scheduler of such a model is {_CONSISTENCY}")
    return {
        "betas": scheduler["beta_schedule"],
        "beta_start": float(scheduler["beta_start"]),
        "beta_end": float(scheduler["beta_end"]),
        "timesteps": int(scheduler["num_train_timesteps"]),
        "prediction": prediction,
        "sigma_data": 0.5 if sigma_data is None else sigma_data,
    }


def _weights(unet: Path, config: DDPMConfig) -> dict[str, Tensor]:
    """The state dict of DDPMNetwork(config). Raises CheckpointError on a missing or misshapen tensor."""
    path = unet / WEIGHTS_FILE
    if not path.is_file():
        pickled = path.with_suffix(".bin").name
        hint = (
            f", only {pickled}, which is a pickle; convert it with diffusers: UNet2DModel.from_pretrained(...)"
            ".save_pretrained(..., safe_serialization=True)"
            if (unet / pickled).is_file()
            else ""
        )
        raise CheckpointError(f"{unet} holds no {WEIGHTS_FILE}{hint}")
    try:
        tensors = {_current(name): tensor for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is truncated ({error})") from error
    with torch.device("meta"):
        expected = UNet2D(config).state_dict()
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(f"{path} lacks {missing[0]} ({len(missing)} of {len(expected)} tensors are missing)")
    if superfluous := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"{path} has {superfluous[0]}, for which its {CONFIG_FILE} has no place")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{name} in {path} is {tensor.dtype} {list(tensor.shape)} where {CONFIG_FILE} asks for "
                f"{list(expected[name].shape)}"
            )
    return {f"unet.{name}": tensor.float() for name, tensor in tensors.items()}


def _current(name: str) -> str:
    *path, layer, tensor = name.split(".")
    return ".".join([*path, _DEPRECATED.get(layer, layer), tensor]) if "attentions" in path else name
