"""An average of another width of a finished run, from the averages that the run stored (trainer.run.ema)."""

from dataclasses import replace
from pathlib import Path

from fewstep.card import CheckpointError
from fewstep.checkpoint import load_checkpoint, load_denoiser, save_checkpoint
from fewstep.outputs import check_folder
from trainer.run.ema import FOLDER, Profile, combine_averages, gamma_of, stored_before


def average(run: Path, width: float, out: Path) -> None:
    """Save the average of this width of the run in `run`, with its card, which then states the width.

    Raises CheckpointError when `run` is no checkpoint, stores no averages from before its end, or when `out` holds a
    model.
    """
    check_folder(out)
    _, card = load_checkpoint(run)
    images = card.training.get("images", 0)
    stored = stored_before(run, images + 1)
    if not stored:
        raise CheckpointError(f"{run / FOLDER} holds no averages of this run; runs of earlier versions stored none")
    denoiser, _ = load_denoiser(run)
    network = denoiser.network
    made = combine_averages(network, stored, Profile(gamma_of(width), images))  # pyright: ignore[reportArgumentType]
    training = {**card.training, "ema_width": width, "average_of": card.weights}
    save_checkpoint(out, made.state_dict(), replace(card, training=training, metrics={}))
