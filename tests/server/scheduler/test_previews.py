"""Previews: the denoised images of the calls that were asked about, from both slot tables."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from fewstep.noise import noise_for
from fewstep.pixels import Pixels, from_pixels, to_pixels
from fewstep.precond import Denoiser
from server.scheduler import device_slots, slots
from server.scheduler.device_slots import DeviceSlotTable
from server.scheduler.request import ImageRequest
from server.scheduler.slots import Image, ImageKey, Slots, SlotTable, Start
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, GaussianNetwork
from tests.server.scheduler.test_device_slots import Device

RNG = np.random.default_rng(0)
PICTURE = from_pixels(RNG.integers(0, 256, (1, *SHAPE[1:], SHAPE[0]), np.uint8))[0]
KEPT = RNG.random((1, *SHAPE[1:])) < 0.5


def in_numpy(network: GaussianNetwork) -> Slots:
    return SlotTable(network, SHAPE, CLASSES, SIGMA_DATA, (4, 8))


def on_device(network: GaussianNetwork, memory_format: torch.memory_format = torch.contiguous_format) -> Slots:
    device = Device(network, (4, 8), memory_format=memory_format)
    return DeviceSlotTable(device, shape=SHAPE, classes=CLASSES, sigma_data=SIGMA_DATA)


def channels_last(network: GaussianNetwork) -> Slots:
    return on_device(network, torch.channels_last)


TABLES = pytest.mark.parametrize("table_of", [in_numpy, on_device, channels_last])


def denoised(image: Image) -> list[np.ndarray]:
    """`sample_dpdm` by hand, with the known pixels of an edit put back: D of every call, [1, C, H, W] each."""
    denoiser, noise, images = Denoiser(GaussianNetwork(), SIGMA_DATA, CLASSES), noise_for([image.seed], SHAPE), []
    x = 0 if image.start is None else image.start.image[None]
    for step, sigma in enumerate(image.sigmas):
        x = denoiser(x + np.float32(sigma) * noise(step), np.array([sigma], np.float32), np.array([image.label]))
        if image.start and image.start.known is not None:
            x = np.where(image.start.known, image.start.image, x)
        images.append(x)
    return images


def assert_close(pixels: Pixels, image: np.ndarray) -> None:
    """The two ways round differently, so a value on the border of two bytes may take either."""
    (expected,), exact = to_pixels(image), (image[0] * 127.5 + 128).transpose(1, 2, 0)
    border = np.abs(exact - np.round(exact)) < 1e-2
    np.testing.assert_array_equal(pixels[~border], expected[~border])
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def run(table: Slots, images: Iterable[Image]) -> tuple[dict, dict]:
    """Previews by request and call, and finished images by request. An image is admitted with every tick."""
    previews, finished, waiting = {}, {}, list(images)
    while waiting or table.requests():
        table.admit([waiting.pop(0)] if waiting else [])
        tick = table.tick()
        for key, call, pixels in tick.previews:
            assert (key.request, call) not in previews
            previews[key.request, call] = pixels
        finished |= {key.request: pixels for key, pixels in tick.finished}
    return previews, finished


STARTS = (None, Start(PICTURE, KEPT), None, Start(-PICTURE), Start(PICTURE, ~KEPT), None, Start(PICTURE), None)
IMAGES = [
    Image(ImageKey(n, 0), 50 + n, n % CLASSES, LEVELS[8 - n][n % 2 :] or LEVELS[1], start)
    for n, start in enumerate(STARTS)
]


@TABLES
@pytest.mark.parametrize("calls", [range(1, 9), (1, 4), (3,)], ids=str)
@pytest.mark.parametrize("askers", [(), (0, 1, 3, 4, 7), range(8)], ids=str)
def test_previews_are_the_denoised_images_of_the_calls_and_images_that_asked(table_of, askers, calls):
    wanted = {n: [call for call in range(1, len(IMAGES[n].sigmas)) if call in calls] for n in askers}
    images = [replace(image, previews=wanted.get(n, ())) for n, image in enumerate(IMAGES)]
    previews, finished = run(table_of(GaussianNetwork()), images)
    expected = {(n, call): denoised(IMAGES[n])[call - 1] for n in askers for call in wanted[n]}
    assert previews.keys() == expected.keys()
    for name, pixels in previews.items():
        assert pixels.dtype == np.uint8
        assert_close(pixels, expected[name])
    _, undisturbed = run(table_of(GaussianNetwork()), IMAGES)
    assert finished.keys() == undisturbed.keys() == set(range(8))
    for n, pixels in finished.items():
        np.testing.assert_array_equal(pixels, undisturbed[n])
        assert_close(pixels, denoised(IMAGES[n])[-1])


@TABLES
def test_a_row_that_is_not_finite_has_no_preview_and_one_after_an_eviction_has_its_own(table_of):
    network = GaussianNetwork()
    table = table_of(network)
    table.admit([Image(ImageKey(n, 0), n, 0, LEVELS[4], previews=(2,)) for n in range(4)])
    table.tick()
    table.evict(1)
    network.before = lambda x, c_noise: x.__setitem__(0, np.nan)
    tick = table.tick()
    assert tick.broken == (ImageKey(0, 0),)
    assert sorted((key.request, call) for key, call, _ in tick.previews) == [(2, 2), (3, 2)]
    for key, call, pixels in tick.previews:
        assert_close(pixels, denoised(Image(key, key.request, 0, LEVELS[4]))[call - 1])


@TABLES
def test_calls_that_are_only_told_make_no_image(table_of, monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []  # rows that became pixels

    def counted(real):
        return lambda images: made.append(len(images)) or real(images)

    monkeypatch.setattr(slots, "to_pixels", counted(slots.to_pixels))
    monkeypatch.setattr(device_slots, "to_pixels_reference", counted(device_slots.to_pixels_reference))
    images = [Image(ImageKey(0, 0), 50, 0, LEVELS[4], previews=(2,), reported=(1, 3))]
    images += [Image(ImageKey(n, 0), 50 + n, 0, LEVELS[n], reported=range(1, n)) for n in (3, 1)]
    previews, finished = run(table := table_of(GaussianNetwork()), images)
    shown = previews.pop((0, 2))
    assert_close(shown, denoised(images[0])[1])
    assert previews == dict.fromkeys([(0, 1), (0, 3), (3, 1), (3, 2)]) and len(finished) == 3
    assert sum(made) == 1 + (len(finished) if isinstance(table, SlotTable) else 0)


@pytest.mark.parametrize(
    ("count", "calls", "spread"),
    [
        (None, 4, [1, 2, 3]), (0, 8, []), (1, 4, [1]), (2, 4, [1, 2]), (3, 4, [1, 2, 3]), (2, 8, [1, 4]),
        (3, 8, [1, 3, 5]), (7, 8, [1, 2, 3, 4, 5, 6, 7]), (3, 3, [1, 2]), (3, 1, []),
    ],
)  # fmt: skip
def test_previews_are_spread_over_the_calls_of_each_image(count: int | None, calls: int, spread: list[int]):
    request = ImageRequest(
        "tiny", calls, (1, 2), (0, 0), LEVELS[calls], previews="images", preview_count=count, every_call=True,
        schedules=(LEVELS[calls], LEVELS[1]),
    )  # fmt: skip
    assert list(request.previewed(0)) == spread and list(request.previewed(1)) == []
    assert sorted([*request.previewed(0), *request.reported(0)]) == list(range(1, calls))
    quiet = replace(request, every_call=False)
    assert list(quiet.previewed(0)) == spread and not quiet.reported(0)


@TABLES
def test_previews_are_the_callers_own(table_of):
    table = table_of(GaussianNetwork())
    table.admit([Image(ImageKey(0, 0), 1, 0, LEVELS[4], previews=(1,))])
    ((_, _, pixels),) = table.tick().previews
    kept = pixels.copy()
    table.tick()
    np.testing.assert_array_equal(pixels, kept)
