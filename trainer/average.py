"""One checkpoint from several of one kind: the mean of their weights.

A student under a divergence that is itself learnt goes to and fro around where it settles; the mean of a few snapshots
is nearer to that than each of them. Stochastic weight averaging (Izmailov et al. 2018) and EDM2's averages after the
fact (Karras et al. 2024, Section 3.1) rest on the same observation.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewstep.card import Card, CheckpointError
from fewstep.checkpoint import load_checkpoint, save_checkpoint
from fewstep.outputs import check_folder

COST = ("images", "seconds")
PROGRESS = (*COST, "environment")  # of a card's training: what may differ between snapshots of one run


def average(models: Sequence[Path], out: Path) -> None:
    """Save the mean of the checkpoints in `models` with the card of the first, which then names all of them and counts
    the images and seconds of every run behind them.

    Raises CheckpointError when one is no checkpoint, or of another network, role or parent than the first,
    or when `out` holds a model.
    """
    if len(models) < 2:
        raise CheckpointError("an average needs two checkpoints or more: --model DIR DIR ...")
    check_folder(out)
    first, card = load_checkpoint(models[0])
    cards = [card]
    total = {name: tensor.double() for name, tensor in first.items()}
    for model in models[1:]:
        weights, other = load_checkpoint(model)
        for fact in ("role", "network", "sigma_data", "parent"):
            if getattr(other, fact) != getattr(card, fact):
                raise CheckpointError(f"{model} has another {fact} than {models[0]}: they have no common average")
        for name, tensor in weights.items():
            total[name] += tensor.double()
        cards.append(other)
    mean = {name: (tensor / len(models)).float() for name, tensor in total.items()}
    # What was measured on the first does not hold for the mean.
    save_checkpoint(out, mean, replace(card, training=_training(cards), metrics={}))


def _training(cards: Sequence[Card]) -> dict[str, Any]:
    """The first card's settings, and the cost of all runs where all cards tell theirs.

    Snapshots of one run are known by their equal settings; the last of them counts.
    """
    runs: dict[str, tuple[float, ...]] = {}
    for card in cards:
        settings = {name: value for name, value in card.training.items() if name not in PROGRESS}
        run = json.dumps(settings, sort_keys=True)
        cost = tuple(card.training[name] for name in COST if name in card.training)
        runs[run] = max(cost, runs.get(run, cost))
    names = [card.weights for card in cards]
    training = {name: value for name, value in cards[0].training.items() if name not in COST}
    training |= {"average_of": names}
    if all(len(cost) == len(COST) for cost in runs.values()):
        training |= dict(zip(COST, map(sum, zip(*runs.values(), strict=True)), strict=True))
    if training.get("start") in names:
        training["start"] = None  # what the first continues is counted
    return training
