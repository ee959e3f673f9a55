"""The sample sheet of a checkpoint: a student of either kind is sampled as it will be served."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from fewstep.card import Card, Dataset
from fewstep.checkpoint import load_denoiser, save_checkpoint
from fewstep.latent import latent_shape, with_latent
from fewstep.network import UNet
from fewstep.noise_torch import latent_for, noise_for
from fewstep.pixels import grid, to_pixels
from fewstep.precond import Denoiser
from fewstep.samplers import sample_dpdm
from fewstep.schedule import student_levels
from fewstep.unet_config import UNetConfig
from trainer.run.artifacts import sample_sheet, write_sheet

LEVELS = {k: student_levels(k) for k in (1, 2)}
COLUMNS = 3


def random_student(extra: int) -> tuple[UNet, Card]:
    """A network whose weights are random also where a fresh one has zeros."""
    config = UNetConfig(resolution=8, channels=2, classes=4, width=8, mult=(1,), blocks=1, extra=extra)
    torch.manual_seed(0)
    network = UNet(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        spread = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter += spread * torch.randn_like(parameter)
    dataset = Dataset("random", "0" * 64, "MIT", 0)
    return network, Card("student", asdict(config), 0.5, "", dataset, levels=LEVELS)


@pytest.mark.parametrize("extra", [0, 2])
def test_a_row_holds_the_images_of_its_step_count(extra: int):
    network, card = random_student(extra)
    network_denoiser = Denoiser(network, card.sigma_data, 4)
    rows = []
    for levels in LEVELS.values():
        latent = latent_for(range(COLUMNS), (extra, 8, 8))
        bound = with_latent(network_denoiser, latent, torch.arange(COLUMNS))
        rows.append(sample_dpdm(bound, noise_for(range(COLUMNS), (2, 8, 8)), levels).images.numpy())
    expected = grid(to_pixels(np.concatenate(rows)), COLUMNS)
    np.testing.assert_array_equal(sample_sheet(network_denoiser, card, COLUMNS), expected)


def test_an_ncvsd_student_leaves_a_checkpoint_like_any_other(tmp_path):
    network, card = random_student(extra=1)
    written = save_checkpoint(tmp_path, network.state_dict(), card)
    write_sheet(tmp_path, network, card, 64)
    assert (tmp_path / "samples" / "000000064.png").stat().st_size > 0
    denoiser, read = load_denoiser(tmp_path)
    assert read.weights == written.weights
    assert latent_shape(read) == (1, 8, 8)
    x, sigma, z = torch.zeros(1, 2, 8, 8), torch.ones(1), torch.ones(1, 1, 8, 8)
    same = with_latent(Denoiser(network, 0.5, 4), lambda step: z)(x, sigma)
    torch.testing.assert_close(with_latent(denoiser, lambda step: z)(x, sigma), same)
