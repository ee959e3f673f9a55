"""Writes a student as a folder of diffusers; `fewstep.diffusers_folder` reads it back.

    DIR/model_index.json, pipeline.py                the pipeline, its levels and classes
    DIR/network/config.json, fewstep_network.py, diffusion_pytorch_model.safetensors
    DIR/fewstep.json                                 the card, from which the checkpoint is made again
    DIR/README.md                                    a model card by Hugging Face's template

A Python file is several of fewstep's, one after the other: diffusers runs it with `trust_remote_code=True`, does not
follow the imports of what it imports, and fewstep need not be installed.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save as save_tensors

import fewstep.conditions
import fewstep.network
import fewstep.noise
import fewstep.older_precond
import fewstep.residual_precond
import fewstep.unet_config
from export.diffusers.readme import model_card
from fewstep.card import Card, CheckpointError, card_to_json, write_atomically
from fewstep.checkpoint import load_checkpoint, network_config
from fewstep.diffusers_folder import CARD, PREFIX, WEIGHTS
from fewstep.outputs import check_folder
from fewstep.unet_config import UNetConfig, config_fields

HERE = Path(__file__).parent
# In the order in which they need each other.
NETWORK = (
    fewstep.conditions.__file__, fewstep.unet_config.__file__, fewstep.older_precond.__file__,
    fewstep.residual_precond.__file__, fewstep.network.__file__, HERE / "network.py",
)  # fmt: skip
OURS = r"^(from fewstep(\.\w+)* import (\([^)]*\)|[^\n]*)|import fewstep[^\n]*)\n"  # an import, of any number of lines
PIPELINE = (fewstep.noise.__file__, HERE / "pipeline.py")


def write_folder(model: Path, out: Path) -> Card:
    """The student in `model` as a folder of diffusers at `out`. Returns the card.

    Raises CheckpointError when `model` is no student of a network that can be written so, or `out` holds a model.
    """
    check_new(out)
    weights, card = load_checkpoint(model)
    config = _config(card, model)
    index = {
        "_class_name": ["pipeline", "FewstepPipeline"],
        "network": ["fewstep_network", "FewstepNetwork"],
        "levels": {str(steps): list(sigmas) for steps, sigmas in card.levels.items()},
        "sigma_data": card.sigma_data,
        "class_names": list(card.class_names),
    }
    files = {
        Path("pipeline.py"): _one_file(PIPELINE),
        Path("network", "fewstep_network.py"): _one_file(NETWORK),
        Path("network", "config.json"): _json({"_class_name": "FewstepNetwork", **config_fields(config)}),
        Path(CARD): card_to_json(card),
        Path("README.md"): model_card(card, out.resolve().name),
        Path("model_index.json"): _json(index),  # last: without it there is no such folder
    }
    tensors = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in weights.items()}
    contents = {Path(WEIGHTS): save_tensors(tensors, {"format": "pt"})}
    contents |= {path: text.encode() for path, text in files.items()}
    _check_free(out, contents)
    for path, content in contents.items():
        write_atomically(out / path, content)
    return card


def _check_free(out: Path, contents: Mapping[Path, bytes]) -> None:
    """Raise CheckpointError if a file that would be written exists with other content.

    Files with the same content are from an export that was interrupted.
    """
    for path, content in contents.items():
        if (out / path).is_dir() or ((out / path).exists() and (out / path).read_bytes() != content):
            raise CheckpointError(
                f"--out {out} already holds another {path}, which is left as it is; name another folder"
            )


def check_new(out: Path) -> None:
    """Raise CheckpointError when `out` holds a model, or cannot be written."""
    check_folder(out)
    if (out / "model_index.json").exists():
        raise CheckpointError(
            f"--out {out} already holds a model_index.json, which is left as it is; name another folder"
        )


def _config(card: Card, model: Path) -> UNetConfig:
    config = network_config(card)
    if card.role != "student":
        raise CheckpointError(f"{model} is a {card.role}; a student is sampled by the pipeline")
    if not isinstance(config, UNetConfig):
        raise CheckpointError(
            f"{model} has a network of the family {config.family!r}; the folder holds a U-Net of EDM's"
        )
    if config.extra:
        raise CheckpointError(f"{model} takes a latent beside the image, which the pipeline does not make")
    if config.conditions:
        raise CheckpointError(f"{model} takes {config.conditions[0].name}, which the pipeline has no argument for")
    return config


def _one_file(sources: Iterable[str | Path]) -> str:
    """The files one after the other, without their imports of fewstep's files: those come before."""
    texts = [Path(source).read_text("utf-8") for source in sources]
    return "\n\n".join(re.sub(OURS, "", text, flags=re.MULTILINE) for text in texts)


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
