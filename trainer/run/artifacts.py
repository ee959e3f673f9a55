"""Files of a checkpoint of a training run: the network part of the card, and the sample sheet."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fewstep
from fewstep.card import Card, write_atomically
from fewstep.checkpoint import NetworkModule
from fewstep.latent import latent_shape, with_latent
from fewstep.noise_torch import latent_for, noise_for
from fewstep.pixels import Pixels, encode, grid, to_pixels
from fewstep.precond import Denoiser
from fewstep.samplers import sample_dpdm, sample_heun
from fewstep.schedule import solver_sigmas
from fewstep.unet_config import config_fields
from trainer.run.sheet import add_titles

GRID_COLUMNS = 20
TEACHER_LEVELS = 10  # Heun levels of a teacher's grid: 19 calls
TEACHER_ROWS = 5
STUDENT_STEPS = (1, 2, 4, 8)  # the rows of a student's grid


def environment() -> dict[str, str]:
    return {"fewstep": fewstep.__version__, "torch": torch.__version__, "python": platform.python_version()}


def describe(network: NetworkModule) -> dict[str, Any]:
    """The network part of a card."""
    return config_fields(network.config)


def write_sheet(
    out: Path, network: nn.Module, card: Card, images: int, values: Mapping[str, Tensor] | None = None
) -> None:
    """A titled sample sheet under samples/, named after the images seen. values: conditions [GRID_COLUMNS, ...], a row
    for each column."""
    assert isinstance(network, NetworkModule)
    denoiser = Denoiser(network, card.sigma_data, network.config.classes, network.config.conditions)
    sheet = sample_sheet(denoiser.given(**(values or {})), card)
    side, names = card.image_shape[1], card.class_names
    columns = [names[column % len(names)] for column in range(GRID_COLUMNS)] if names else []
    calls = 2 * TEACHER_LEVELS - 1
    rows = [f"{k} step{'s' * (k > 1)}" for k in _steps(card)] or [f"{calls} calls"] + [""] * (TEACHER_ROWS - 1)
    title = f"{card.role} of {card.dataset.name}, {images:,} images seen in this run"
    page = add_titles(sheet, side, title, columns, rows)
    write_atomically(out / "samples" / f"{images:09d}.png", encode(page, "png"))


def _steps(card: Card) -> list[int]:
    return [k for k in STUDENT_STEPS if k in card.levels]


@torch.no_grad()
def sample_sheet(denoiser: Denoiser, card: Card, columns: int = GRID_COLUMNS) -> Pixels:
    """A student: a row for each of STUDENT_STEPS that it has, the same seeds in each. A teacher: five rows of seeds."""
    device = next(denoiser.network.parameters()).device  # pyright: ignore[reportFunctionMemberAccess]
    rows = []
    plans = [card.levels[k] for k in _steps(card)] or [()] * TEACHER_ROWS
    for row, levels in enumerate(plans):
        first = 0 if levels else row * columns
        labels = torch.arange(columns, device=device) % max(denoiser.classes, 1)
        seeds = range(first, first + columns)
        noise, latent = noise_for(seeds, card.image_shape, device), latent_for(seeds, latent_shape(card), device)
        bound = with_latent(denoiser, latent, labels if denoiser.classes else None)
        sample = (
            sample_dpdm(bound, noise, levels) if levels else sample_heun(bound, noise, solver_sigmas(TEACHER_LEVELS))
        )
        rows.append(to_pixels(sample.images.cpu().numpy()))
    return grid(np.concatenate(rows), columns)
