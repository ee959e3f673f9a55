"""A teacher of Fashion-MNIST that is told no class: the prior of `benchmarks/posterior_classes.py`.

It begins at the shipped teacher, whose network is given the mean of its ten class embeddings in place of one. The bias
of the layer behind the embedding takes that mean, so the network without classes computes what the shipped one does at
the vector (1/10, ..., 1/10). That is no conditional mean yet: `fewstep trainer teacher --init` goes on from there, on
the same images without their labels.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.harness import ROOT
from fewstep.card import CARD_FILE, read_card
from fewstep.checkpoint import load_denoiser, save_checkpoint
from fewstep.network import UNet
from trainer.data.format import read_image_set, write_image_set

RECIPE = "fashion"


def make_prior(teacher: Path, data: Path, images: int, work: Path) -> Path:
    """The folder of the prior, in `work`, after so many training images; what is there already is not made again."""
    begun, plain, out = work / "begun", work / "plain.zip", work / "prior"
    if not (begun / CARD_FILE).exists():
        begin(teacher, begun)
    if not plain.exists():
        labelled = read_image_set(data)
        none = np.full_like(labelled.labels, -1)
        write_image_set(plain, replace(labelled, name=f"{labelled.name}-plain", labels=none, class_names=()))
    if not (out / CARD_FILE).exists() or read_card(out).training["images"] < images:
        command = [
            sys.executable, "-m", "fewstep", "trainer", "teacher", "--recipe", RECIPE, "--init", begun, "--data", plain,
            "--images", images, "--precision", "fp32", "--compile", "off", "--checkpoint-every", "1m",
            "--out", out,
        ]  # fmt: skip
        resume = ["--resume"] if out.exists() else []
        subprocess.run([*map(str, command), *resume], cwd=ROOT, check=True)
    return out


def begin(teacher: Path, out: Path) -> None:
    """Write the shipped teacher as one without classes."""
    denoiser, card = load_denoiser(teacher)
    assert isinstance(denoiser.network, UNet)
    save_checkpoint(
        out, without_classes(denoiser.network),
        replace(card, network={**card.network, "classes": 0}, class_names=(), metrics={}),
    )  # fmt: skip


def without_classes(network: UNet) -> dict[str, Tensor]:
    """The weights of the network without classes that equals this one at the vector (1/10, ..., 1/10).

    For networks whose class embedding is added to the features of the noise level, ahead of a linear layer (song).
    """
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    label = {part: weights.pop(f"embedding.label.{part}") for part in ("weight", "bias")}
    mean = label["weight"].mean(dim=1) * network.config.classes**0.5 + label["bias"]
    weights["embedding.linear0.bias"] += weights["embedding.linear0.weight"] @ mean
    return weights
