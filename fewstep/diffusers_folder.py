"""A student that `export.diffusers` wrote as a folder of diffusers, read back as a checkpoint."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from fewstep.card import Card, CheckpointError, card_from_json
from fewstep.checkpoint import save_checkpoint
from fewstep.outputs import check_folder

CARD = "fewstep.json"
WEIGHTS = Path("network", "diffusion_pytorch_model.safetensors")
PREFIX = "unet."  # of the network's tensors in the component of diffusers


def is_folder(folder: Path) -> bool:
    return (folder / CARD).is_file() and (folder / WEIGHTS).is_file()


def read_folder(folder: Path, out: Path) -> Card:
    """The checkpoint of such a folder, with the weights it has now. Raises CheckpointError."""
    check_folder(out)
    card = card_from_json((folder / CARD).read_text("utf-8", errors="replace"), folder / CARD)
    try:
        tensors = load_tensors((folder / WEIGHTS).read_bytes())
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is not a safetensors file ({error})") from error
    return save_checkpoint(out, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}, card)
