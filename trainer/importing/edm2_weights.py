"""EDM2's pickles as teachers: a `Precond` around a `UNet`, tensor by tensor, into `fewstep.edm2_network`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.card import CheckpointError, file_sha256
from fewstep.edm2_network import EDM2Config, EDM2Network
from trainer.importing.edm_facts import check_argument, dataset_of, sigma_data_of
from trainer.importing.edm_pickle import SavedObject, module_tensors, submodule
from trainer.importing.imported import Imported

EDM2, UNET = "Precond", "UNet"  # classes of the published files
_PIXELS = "StandardRGBEncoder"  # of models that make images; others decode latents
# What UNet takes, with what a missing argument means (Karras et al. 2024, Appendix B).
_ARGUMENTS: dict[str, Any] = {
    "img_resolution": None, "img_channels": None, "label_dim": 0, "model_channels": 192, "channel_mult": [1, 2, 3, 4],
    "channel_mult_noise": None, "channel_mult_emb": None, "num_blocks": 3, "attn_resolutions": [16, 8],
    "label_balance": 0.5, "concat_balance": 0.5, "resample_filter": [1, 1], "channels_per_head": 64, "dropout": 0.0,
    "res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256,
}  # fmt: skip
_OPTIONAL = ("channel_mult_noise", "channel_mult_emb", "clip_act")  # may be None


def import_edm2(path: Path, data: dict[str, Any], precond: SavedObject) -> Imported:
    """The teacher of a pickle that was read; `precond` is its network. Raises CheckpointError naming what is wrong."""
    encoder = data.get("encoder")
    if isinstance(encoder, SavedObject) and encoder.class_name != _PIXELS:
        raise CheckpointError(
            f"{path} makes latents for its {encoder.class_name}; only pixel-space models can be imported"
        )
    unet = submodule(precond, "unet")
    if unet is None or unet.class_name != UNET:
        found = f"a network of class {unet.class_name}" if unet else "no network"
        raise CheckpointError(f"{path} holds {found} inside {EDM2}; known is {UNET}")
    try:
        config = edm2_config(unet)
        weights = edm2_weights(config, module_tensors(unet))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    origin = {"file": path.name, "sha256": file_sha256(path), "format": "EDM2 pickle", "class": unet.class_name}
    if any(name.startswith("logvar") for name in module_tensors(precond)):
        origin["dropped"] = "logvar: the uncertainty that weights the training loss, which sampling never reads"
    name, images = dataset_of(data.get("dataset_kwargs"))
    return Imported(config, weights, sigma_data_of(precond, path), origin, name, images)


def edm2_config(unet: SavedObject) -> EDM2Config:
    """The configuration of a saved UNet, from the arguments it was built with."""
    given = unet.state.get("_init_kwargs")
    if not isinstance(given, dict) or unet.state.get("_init_args"):
        raise CheckpointError(f"the {UNET} does not say with which arguments it was built")
    if unknown := sorted(map(str, given.keys() - _ARGUMENTS.keys())):
        raise CheckpointError(f"{UNET} has the argument {unknown[0]}, which this importer does not know")
    args = _ARGUMENTS | given
    for name, value in args.items():
        if value is not None or name not in _OPTIONAL:
            check_argument(UNET, name, value, _ARGUMENTS[name])
    if list(args["resample_filter"]) != [1, 1]:
        raise CheckpointError(f"{UNET} has resample_filter = {args['resample_filter']!r}; only [1, 1] can be imported")
    width, widest = args["model_channels"], max(args["channel_mult"])
    try:
        return EDM2Config(
            resolution=args["img_resolution"],
            channels=args["img_channels"],
            classes=args["label_dim"],
            width=width,
            mult=tuple(args["channel_mult"]),
            blocks=args["num_blocks"],
            attention=tuple(args["attn_resolutions"]),
            noise_width=width * (args["channel_mult_noise"] or args["channel_mult"][0]),
            embedding_width=width * (args["channel_mult_emb"] or widest),
            head_width=args["channels_per_head"],
            dropout=float(args["dropout"]),
            label_balance=float(args["label_balance"]),
            concat_balance=float(args["concat_balance"]),
            residual_balance=float(args["res_balance"]),
            attention_balance=float(args["attn_balance"]),
            clip=float(args["clip_act"] or 0),
        )
    except ValueError as error:
        raise CheckpointError(f"{UNET}: {error}") from error


def edm2_weights(config: EDM2Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of EDM2Network(config), in float32. Raises CheckpointError on a tensor that does not fit."""
    with torch.device("meta"):
        expected = EDM2Network(config).state_dict()
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(f"the network lacks {missing[0]} ({len(missing)} of {len(expected)} tensors are missing)")
    if superfluous := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"the network has {superfluous[0]}, for which this configuration has no place")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} where the network's arguments ask for "
                f"{list(expected[name].shape)}"
            )
    return {name: tensors[name].float().contiguous() for name in expected}
