"""Checks of a posterior's run: of what is asked for, of the run that it continues, and of the monitors at its end."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.card import CheckpointError, file_sha256
from fewstep.precond import Denoiser
from fewstep.ranges import RangeError
from trainer.rewards.checked import RewardError
from trainer.rewards.named import Reward
from trainer.run.state import read_facts

PROBED = 2  # images on which a reward is tried
ERRORS = 4.0  # standard errors that a mean must lie below another to be lower
SOUND_ESS = 0.5  # from here up the samples are the posterior's, nearly, whatever the ELBO of the prior
CONTENTS = {"reward_sha256": "--reward", "data_sha256": "--data"}  # of the identity of a run -> the flag


def check_counts(batch: int, evaluated: int, groups: int, log_z: str) -> None:
    """Raise RangeError where a group gets less than the two trajectories that a mean with a spread needs."""
    if log_z == "vargrad" and batch < 2 * groups:
        raise RangeError(
            f"--batch {batch} gives some of {groups} groups less than two trajectories; choose --batch "
            f"{2 * groups} or more, or --log-z learned"
        )
    if evaluated < 2 * groups:
        raise RangeError(
            f"--evaluate {evaluated} gives some of {groups} groups less than two trajectories; choose --evaluate "
            f"{2 * groups} or more"
        )


@torch.no_grad()
def probe(reward: Reward, denoiser: Denoiser, noise: Tensor, sigma: float) -> None:
    """Try the reward on what the prior makes of noise [2, C, H, W] at the level sigma, in one network call.

    Raises RewardError.
    """
    y = torch.arange(len(noise), device=noise.device)
    levels = noise.new_full((len(noise),), sigma)
    images = denoiser(sigma * noise, levels, y % denoiser.classes if denoiser.classes else None)
    reward.log_reward(images, y % max(reward.groups or denoiser.classes, 1))


def content_sha256(paths: Sequence[Path]) -> str:
    """Of the bytes of files, and of the names and bytes of all files below folders; "" for no path."""
    if not paths:
        return ""
    found = hashlib.sha256()
    for path in paths:
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else ""
            found.update(f"{name}\0{file_sha256(file)}\0".encode())
    return found.hexdigest()


def same_run(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the run in `out` has this identity. Raises CheckpointError where a file's content has changed."""
    stored = read_facts(out)["identity"]
    for name, flag in CONTENTS.items():
        if name in stored and stored[name] != identity[name]:
            raise CheckpointError(
                f"{flag} is not what the run in {out} was trained with: its content has changed since; restore it, or "
                "choose another --out"
            )
    return stored == identity


def check_above_floor(monitors: Mapping[str, float], reward: Reward, evaluated: int) -> None:
    """Raise RewardError when no image of the prior or the posterior has a log r above the floor."""
    if max(monitors["log_reward"], monitors["prior_log_reward"]) <= reward.floor + 1e-4:
        raise RewardError(
            f"every one of {2 * evaluated:,} images of the prior and the posterior is at the floor of the reward, log "
            f"r = {reward.floor:g}: there is nothing to learn. Give a reward that some image of the prior has"
        )


def diverged(monitors: Mapping[str, float], beta: float) -> bool:
    """Whether the posterior is worse than an untrained adapter, whose ELBO is beta times the prior's mean log r.

    Both are means of samples, so the ELBO must be lower by some standard errors; and where the effective sample size is
    large, the samples are the posterior's: weak rewards leave no room between the two.
    """
    untrained, error = beta * monitors["prior_log_reward"], beta * monitors["prior_log_reward_error"]
    margin = ERRORS * (error**2 + monitors["elbo_error"] ** 2) ** 0.5
    sound = monitors["elbo"] >= untrained - margin or monitors["ess"] >= SOUND_ESS  # neither, where they are NaN
    return not sound
