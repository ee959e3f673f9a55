"""One checkpoint from several of one kind: the mean of their weights.

A student under a divergence that is itself learnt goes to and fro around where it settles; the mean of a few snapshots
is nearer to that than each of them. Stochastic weight averaging (Izmailov et al. 2018) and EDM2's averages after the
fact (Karras et al. 2024, Section 3.1) rest on the same observation.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewstep.card import CheckpointError
from fewstep.checkpoint import load_checkpoint, save_checkpoint


def average(models: Sequence[Path], out: Path) -> None:
    """Save the mean of the checkpoints in `models` with the card of the first, which then names all of them.

    Raises CheckpointError when one is no checkpoint, or of another network, role or parent than the first.
    """
    if len(models) < 2:
        raise CheckpointError("an average needs two checkpoints or more: --model DIR DIR ...")
    first, card = load_checkpoint(models[0])
    names = [card.weights]
    total = {name: tensor.double() for name, tensor in first.items()}
    for model in models[1:]:
        weights, other = load_checkpoint(model)
        for fact in ("role", "network", "sigma_data", "parent"):
            if getattr(other, fact) != getattr(card, fact):
                raise CheckpointError(f"{model} has another {fact} than {models[0]}: they have no common average")
        for name, tensor in weights.items():
            total[name] += tensor.double()
        names.append(other.weights)
    mean = {name: (tensor / len(models)).float() for name, tensor in total.items()}
    # What was measured on the first does not hold for the mean.
    save_checkpoint(out, mean, replace(card, training={**card.training, "average_of": names}, metrics={}))
