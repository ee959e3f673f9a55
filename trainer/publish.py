"""A checkpoint to publish: the same weights in half precision, which takes half the bytes."""

from dataclasses import replace
from pathlib import Path

import torch

from fewstep.card import write_atomically
from fewstep.checkpoint import load_checkpoint, save_checkpoint
from fewstep.outputs import check_folder
from trainer.model_card import FILE, model_card


def publish(model: Path, out: Path) -> None:
    """Copy model.safetensors (as float16) and card.json, and write README.md.

    Raises CheckpointError when `model` is no checkpoint, or `out` holds a model.

    The copy has a hash of its own, and `published_from` in its card is the hash of the original. A student of either is
    recognised as a student of both (`fewstep.card.distilled_from`).
    """
    check_folder(out)
    weights, card = load_checkpoint(model)
    half = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
    note = {**card.training, "published_from": card.weights}
    saved = save_checkpoint(out, half, replace(card, training=note))
    write_atomically(out / FILE, model_card(saved, out.resolve().name).encode())
