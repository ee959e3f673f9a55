"""Images whose noise is between that of two seeds, on both slot tables."""

from collections.abc import Callable

import numpy as np
import pytest

from fewstep.analytic import Gaussian
from fewstep.blend import Blend, evenly, weights
from fewstep.latent import with_latent
from fewstep.noise import latent_for, noise_for
from fewstep.pixels import Pixels, to_pixels
from fewstep.precond import Denoiser, Network
from fewstep.samplers import sample_dpdm
from server.scheduler.slots import Image, ImageKey, Slots, SlotTable, buckets_for
from tests.ncvsd import ncvsd_network
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, GaussianNetwork
from tests.server.scheduler.test_device_slots import Device, device_table

SEED, SEED_TO = 11, 2**63 - 1
NCVSD = ncvsd_network(Gaussian(0.0, SIGMA_DATA), SIGMA_DATA)
Make = Callable[[Network, int, int], Slots]


def on_host(network: Network, extra: int, classes: int) -> Slots:
    return SlotTable(network, SHAPE, classes, SIGMA_DATA, buckets_for(8, exact=False), extra)


def on_device(network: Network, extra: int, classes: int) -> Slots:
    return device_table(Device(network, buckets_for(8, exact=False), extra, classes), extra, classes)


TABLES = pytest.mark.parametrize("make", [on_host, on_device])


def drain(table: Slots) -> dict[int, Pixels]:
    finished = {}
    while table.requests():
        finished |= {key.request: pixels for key, pixels in table.tick().finished}
    return finished


def image(request: int, seed: int, steps: int, label: int, blend: Blend | None = None) -> Image:
    return Image(ImageKey(request, 0), seed, label, LEVELS[steps], blend=blend)


def close(pixels: Pixels, expected: Pixels) -> bool:
    """Up to rounding."""
    return int(np.abs(pixels.astype(int) - expected).max()) <= 1


def mixed(mix: float, shape: tuple[int, int, int], draws: Callable[..., Callable[[int], np.ndarray]]) -> Callable:
    own, other = draws([SEED], shape), draws([SEED_TO], shape)
    return lambda step: np.cos(mix * np.pi / 2) * own(step) + np.sin(mix * np.pi / 2) * other(step)


@TABLES
@pytest.mark.parametrize("steps", [1, 4])
def test_it_goes_from_the_image_of_one_seed_to_that_of_the_other(make: Make, steps: int):
    """In one batch with the two, and with an image of other steps that must not change."""
    table = make(GaussianNetwork(), 0, CLASSES)
    table.admit([
        image(0, SEED, steps, 2), image(1, SEED_TO, steps, 2), image(2, 5, 8, 1),
        *(image(3 + i, SEED, steps, 2, Blend(SEED_TO, mix)) for i, mix in enumerate((0.0, 0.3, 1.0))),
    ])  # fmt: skip
    made = drain(table)
    denoiser = Denoiser(GaussianNetwork(), SIGMA_DATA, CLASSES)
    between = sample_dpdm(
        lambda x, sigma: denoiser(x, sigma, np.array([2])), mixed(0.3, SHAPE, noise_for), LEVELS[steps]
    )
    alone = make(GaussianNetwork(), 0, CLASSES)
    alone.admit([image(2, 5, 8, 1)])
    assert close(made[3], made[0]) and close(made[5], made[1]) and not close(made[0], made[1])
    assert close(made[4], to_pixels(between.images)[0]) and not close(made[4], made[0])
    np.testing.assert_array_equal(made[2], drain(alone)[2])


@TABLES
def test_latents_are_mixed_likewise(make: Make):
    table = make(NCVSD, 1, 0)
    table.admit([image(0, SEED, 2, -1, Blend(SEED_TO, 0.6)), image(1, SEED, 2, -1, Blend(SEED_TO, 1.0))])
    table.admit([image(2, SEED_TO, 2, -1)])
    made = drain(table)
    denoiser = with_latent(Denoiser(NCVSD, SIGMA_DATA), mixed(0.6, SHAPE, latent_for))
    between = sample_dpdm(denoiser, mixed(0.6, SHAPE, noise_for), LEVELS[2])
    assert close(made[0], to_pixels(between.images)[0]) and close(made[1], made[2])


def test_the_variance_is_one_all_the_way():
    for mix in evenly(9):
        own, other = weights(mix)
        assert own**2 + other**2 == pytest.approx(1, abs=1e-12)
    assert (weights(0.0), weights(1.0), evenly(1), evenly(3)) == ((1, 0), (0, 1), (0.5,), (0, 0.5, 1))
