"""EDM's pickles as teachers: their DDPM++, NCSN++ and ADM networks, tensor by tensor, into `fewstep.network.UNet`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.card import CheckpointError, file_sha256
from fewstep.network import UNet
from fewstep.older_precond import BETA_D, BETA_MIN, C_1, C_2, STEPS
from fewstep.unet_config import Precond, UNetConfig
from trainer.importing.edm2_weights import EDM2, import_edm2
from trainer.importing.edm_facts import check_argument, dataset_of, sigma_data_of
from trainer.importing.edm_pickle import SavedObject, module_tensors, read_edm_pickle, submodule
from trainer.importing.imported import Imported

_SHARED = {"img_resolution": None, "in_channels": None, "out_channels": None, "label_dim": 0, "augment_dim": 0}
# What the two classes take, with what a missing argument means (Karras et al. 2022, Table 7).
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "SongUNet": _SHARED | {
        "model_channels": 128, "channel_mult": [1, 2, 2, 2], "channel_mult_emb": 4, "num_blocks": 4,
        "attn_resolutions": [16], "dropout": 0.10, "label_dropout": 0.0, "embedding_type": "positional",
        "channel_mult_noise": 1, "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
    },
    "DhariwalUNet": _SHARED | {
        "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_emb": 4, "num_blocks": 3,
        "attn_resolutions": [32, 16, 8], "dropout": 0.10, "label_dropout": 0.0,
    },
}  # fmt: skip
_ADM_HEAD_WIDTH = 64

# The preconditioning of each class, and the constants that it is known with.
_PRECONDITIONINGS: dict[str, tuple[Precond, dict[str, float]]] = {
    "EDMPrecond": ("edm", {}),
    "VPPrecond": ("vp", {"beta_d": BETA_D, "beta_min": BETA_MIN, "M": STEPS}),
    "VEPrecond": ("ve", {}),
    "iDDPMPrecond": ("iddpm", {"C_1": C_1, "C_2": C_2, "M": STEPS}),
}

_AUGMENT = "map_augment.weight"
_FILTER = ".resample_filter"


def import_edm(path: Path, sigma_data: float | None = None) -> Imported:
    """The teacher in a network pickle of EDM or EDM2. Raises CheckpointError naming what was found in its place.

    sigma_data: of the preconditioning around a VP, VE or iDDPM network, which has none of its own (0.5); an EDM network
    was trained with its own.
    """
    data = read_edm_pickle(path)
    precond = data.get("ema")
    if not isinstance(precond, SavedObject):
        raise CheckpointError(
            f"{path} holds no EDM network under 'ema', only {', '.join(map(repr, data)) or 'nothing'}"
        )
    if precond.class_name not in (EDM2, *_PRECONDITIONINGS):
        known = f"{', '.join(_PRECONDITIONINGS)} and EDM2's {EDM2}"
        raise CheckpointError(f"{path} holds a network of class {precond.class_name}; {known} can be imported")
    kind, constants = _PRECONDITIONINGS.get(precond.class_name, ("edm", {}))
    if kind == "edm" and sigma_data is not None:
        raise CheckpointError("--sigma-data is for other networks; an EDM network was trained with its own")
    if precond.class_name == EDM2:
        return import_edm2(path, data, precond)
    for name, value in constants.items():
        if (found := precond.state.get(name, value)) != value:
            raise CheckpointError(f"{path}: {precond.class_name} has {name} = {found!r}; only {value} can be imported")
    sigma_data = sigma_data_of(precond, path) if kind == "edm" else sigma_data or 0.5
    model = submodule(precond, "model")
    if model is None or model.class_name not in _ARGUMENTS:
        found = f"a network of class {model.class_name}" if model else "no network"
        raise CheckpointError(f"{path} holds {found} inside {precond.class_name}; known are {', '.join(_ARGUMENTS)}")
    try:
        config = edm_config(model, kind, sigma_data)
        weights, dropped = edm_weights(config, module_tensors(model))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    origin = {"file": path.name, "sha256": file_sha256(path), "format": "EDM pickle", "class": model.class_name}
    if dropped:
        origin["dropped"] = f"{dropped}: read only together with augmentation labels, which sampling never gives"
    name, images = dataset_of(data.get("dataset_kwargs"))
    return Imported(config, weights, sigma_data, origin, name, images)


def edm_config(model: SavedObject, precond: Precond = "edm", sigma_data: float = 0.5) -> UNetConfig:
    """The configuration of a saved SongUNet or DhariwalUNet, from the arguments it was built with."""
    defaults = _ARGUMENTS[model.class_name]
    given = model.state.get("_init_kwargs")
    if not isinstance(given, dict) or model.state.get("_init_args"):
        raise CheckpointError(f"the {model.class_name} does not say with which arguments it was built")
    if unknown := sorted(map(str, given.keys() - defaults.keys())):
        raise CheckpointError(f"{model.class_name} has the argument {unknown[0]}, which this importer does not know")
    args = defaults | given
    for name, value in args.items():
        check_argument(model.class_name, name, value, defaults[name])
    fourier = args.get("embedding_type") == "fourier"
    predicted = (args["in_channels"] or 0) * (2 if precond == "iddpm" else 1)  # iDDPM predicts variances, too
    fixed = {
        "out_channels": predicted, "channel_mult_emb": 4, "decoder_type": "standard",
        "channel_mult_noise": 2 if fourier else 1,
    }  # fmt: skip
    allowed = {"embedding_type": ("positional", "fourier"), "encoder_type": ("standard", "residual")}
    for name, values in {**{name: (value,) for name, value in fixed.items()}, **allowed}.items():
        if name in args and args[name] not in values:
            expected = " or ".join(map(repr, values))
            raise CheckpointError(f"{model.class_name} has {name} = {args[name]!r}; only {expected} can be imported")
    song = model.class_name == "SongUNet"
    try:
        return UNetConfig(
            resolution=args["img_resolution"],
            channels=args["in_channels"],
            classes=args["label_dim"],
            width=args["model_channels"],
            mult=tuple(args["channel_mult"]),
            blocks=args["num_blocks"],
            attention=tuple(args["attn_resolutions"]),
            dropout=float(args["dropout"]),
            style="song" if song else "adm",
            embedding="fourier" if fourier else "positional",
            encoder=args["encoder_type"] if song else "standard",
            resample=tuple(args["resample_filter"]) if song else (1, 1),
            head_width=0 if song else _ADM_HEAD_WIDTH,
            precond=precond,
            sigma_data=sigma_data,
        )
    except ValueError as error:
        raise CheckpointError(f"{model.class_name}: {error}") from error


def edm_weights(config: UNetConfig, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Our state dict out of published tensors, and the name of what was dropped ("" for nothing).

    Raises CheckpointError on a missing, superfluous or misshapen tensor, and on another resampling filter.
    """
    with torch.device("meta"):
        expected = UNet(config).state_dict()
    modules = published_modules(config)
    names = {ours: published_name(ours, modules) for ours in expected}
    if missing := [name for name in names.values() if name not in tensors]:
        raise CheckpointError(f"the network lacks {missing[0]} ({len(missing)} of {len(names)} tensors are missing)")
    rest = [name for name in tensors.keys() - set(names.values()) if not name.endswith(_FILTER)]
    if superfluous := sorted(set(rest) - {_AUGMENT}):
        raise CheckpointError(f"the network has {superfluous[0]}, for which this configuration has no place")
    _check_filters(config, tensors)
    weights = {}
    for ours, published in names.items():
        tensor = tensors[published]
        if config.precond == "iddpm" and ours.startswith("out_conv.") and len(tensor) == 2 * config.channels:
            tensor = tensor[: config.channels]  # the other half predicts variances, which D does not need
        if tensor.shape != expected[ours].shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{published} is {tensor.dtype} {list(tensor.shape)} where the network's arguments ask for "
                f"{list(expected[ours].shape)}"
            )
        weights[ours] = _reorder(ours, tensor.float(), config).contiguous()
    return weights, _AUGMENT if rest else ""


def published_modules(config: UNetConfig) -> dict[str, str]:
    """Our modules -> the published ones: encoder.3 -> enc.16x16_block1."""
    sides = [f"{config.resolution >> level}x{config.resolution >> level}" for level in range(len(config.mult))]
    inner, outer = sides[-1], sides[0]
    encoder, decoder = [], []
    for side in sides:
        encoder += [f"enc.{side}_down"] if side != outer else []
        encoder += [f"enc.{side}_block{index}" for index in range(config.blocks)]
    for side in reversed(sides):
        decoder += [f"dec.{side}_up"] if side != inner else []
        decoder += [f"dec.{side}_block{index}" for index in range(config.blocks + 1)]
    lists = {
        "encoder": encoder,
        "feeders": [f"enc.{side}_aux_residual" for side in sides[1:]],
        "middle": [f"dec.{inner}_in0", f"dec.{inner}_in1"],
        "decoder": decoder,
    }
    last = f"dec.{outer}_aux" if config.style == "song" else "out"
    return {f"{kind}.{index}": name for kind, names in lists.items() for index, name in enumerate(names)} | {
        "stem": f"enc.{outer}_conv", "out_norm": f"{last}_norm", "out_conv": f"{last}_conv",
        "embedding.linear0": "map_layer0", "embedding.linear1": "map_layer1", "embedding.label": "map_label",
        "embedding.freqs": "map_noise.freqs",
    }  # fmt: skip


def published_name(name: str, modules: dict[str, str]) -> str:
    """encoder.3.conv0.conv.bias -> enc.16x16_block1.conv0.bias"""
    ours = next(module for module in modules if f"{name}.".startswith(f"{module}."))
    inside = name[len(ours) :].replace("attention.norm", "norm2").split(".")
    return ".".join([modules[ours], *(part for part in inside if part not in ("", "attention", "conv"))])


def _reorder(name: str, tensor: Tensor, config: UNetConfig) -> Tensor:
    """Published tensors that are ordered otherwise than ours."""
    if ".qkv." in name:  # published [head][channel][q, k, v], ours [q, k, v][head][channel]
        width = len(tensor) // 3
        heads = width // config.head_width if config.head_width else 1
        return tensor.unflatten(0, (heads, width // heads, 3)).movedim(2, 0).flatten(0, 2)
    if config.embedding == "fourier":  # published with the sines first, ours with the cosines
        half = config.width
        if name == "embedding.linear0.weight":
            return tensor.roll(half, dims=1)
        if name.startswith("embedding.label."):
            return tensor.roll(half, dims=0)
    return tensor


def _check_filters(config: UNetConfig, tensors: dict[str, Tensor]) -> None:
    """The published buffers repeat what the arguments say; a file where they do not computes something else."""
    line = torch.tensor(config.resample, dtype=torch.float32)
    expected = torch.outer(line, line) / line.sum() ** 2
    for name, tensor in tensors.items():
        if not name.endswith(_FILTER):
            continue
        if tensor.shape[-2:] != expected.shape or not torch.allclose(tensor.float(), expected):
            raise CheckpointError(f"{name} is not the filter {list(config.resample)} of the network's arguments")
