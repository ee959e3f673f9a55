"""Images that begin at an image: what a slot makes of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.editing import repaint, vary
from fewstep.noise import noise_for
from fewstep.pixels import Pixels, from_pixels, to_pixels
from fewstep.precond import Denoiser
from server.scheduler.slots import Image, ImageKey, SlotTable, Start, buckets_for
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, GaussianNetwork

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (8, 8, 1), np.uint8)
MASK = RNG.choice(np.array([0, 127, 128, 255], np.uint8), (8, 8, 1))
KEPT = MASK[..., 0] < 128
START = Start(from_pixels(PICTURE[None])[0], KEPT[None])
VARIED = Start(START.image)


def table_of(capacity: int, exact: bool = False) -> SlotTable:
    return SlotTable(GaussianNetwork(), SHAPE, CLASSES, SIGMA_DATA, buckets_for(capacity, exact))


def drain(table: SlotTable) -> dict[int, Pixels]:
    finished = {}
    while table.requests():
        finished |= {key.request: pixels for key, pixels in table.tick().finished}
    return finished


def image(request: int, steps: int, start: Start | None = None, calls: int | None = None, seed: int = 0) -> Image:
    return Image(ImageKey(request, 0), seed, 1, LEVELS[steps][-(calls or steps) :], start)


def sampled(start: Start, sigmas: tuple[float, ...], seed: int) -> np.ndarray:
    """What the samplers make of one edit, without any server: [1, C, H, W]."""
    denoiser, labels = Denoiser(GaussianNetwork(), SIGMA_DATA, CLASSES), np.array([1])
    given, draw = start.image[None], noise_for([seed], SHAPE)
    if start.known is None:
        return vary(lambda x, sigma: denoiser(x, sigma, labels), given, draw, sigmas).images
    return repaint(lambda x, sigma: denoiser(x, sigma, labels), given, start.known[None], draw, sigmas).images


@pytest.mark.parametrize("start", [VARIED, START], ids=["varied", "repainted"])
@pytest.mark.parametrize("steps", range(1, 9))
def test_a_slot_ends_in_the_image_of_the_sampler(start: Start, steps: int):
    """From every level of every list, all in one table."""
    table = table_of(8)
    table.admit([image(calls, steps, start, calls, seed=11 + calls) for calls in range(1, steps + 1)])
    for calls, pixels in drain(table).items():
        expected = sampled(start, LEVELS[steps][-calls:], 11 + calls) * 127.5 + 128
        border = np.abs(expected - np.round(expected))[0].transpose(1, 2, 0) < 1e-3
        np.testing.assert_array_equal(pixels[~border], to_pixels((expected - 128) / 127.5)[0][~border])


def test_a_varied_image_under_noise_is_what_the_gaussian_pair_makes_of_it():
    """One call at one level: x0 -> mean + shrink (x0 + sigma eps - mean), where the class is the mean (0 here)."""
    (sigma,) = LEVELS[1]
    table = table_of(1)
    table.admit([image(0, 1, VARIED, seed=3)])
    noisy = VARIED.image + sigma * noise_for([3], SHAPE)(0)[0]
    expected = to_pixels((noisy * SIGMA_DATA / np.hypot(SIGMA_DATA, sigma))[None])[0]
    assert np.abs(drain(table)[0].astype(int) - expected).max() <= 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**63 - 1), st.integers(1, 8), st.data())
def test_known_pixels_come_back_byte_for_byte_and_the_others_do_not(seed: int, steps: int, data: st.DataObject):
    calls = data.draw(st.integers(1, steps))
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=64, max_size=64))).reshape(1, 8, 8)
    table = table_of(2)
    table.admit([image(0, steps, Start(START.image, kept), calls, seed), image(1, steps, None, seed=seed)])
    pixels = drain(table)[0]
    np.testing.assert_array_equal(pixels[kept[0]], PICTURE[kept[0]])
    if (~kept).sum() > 8:
        assert (pixels[~kept[0]] != PICTURE[~kept[0]]).any()


rows = st.tuples(st.integers(0, 99), st.integers(1, 8), st.sampled_from([None, VARIED, START]))


@settings(deadline=None, max_examples=25)
@given(st.lists(rows, min_size=2, max_size=15), st.integers(0, 4))
def test_in_exact_mode_no_row_knows_whether_others_are_edits(requests: list, head_start: int):
    """An edit among ordinary rows and an ordinary row among edits: the same bytes as alone."""
    (seed, steps, start), *others = requests
    alone = table_of(16, exact=True)
    alone.admit([image(0, steps, start, seed=seed)])
    mixed = table_of(16, exact=True)
    mixed.admit([image(number, k, begun, seed=s) for number, (s, k, begun) in enumerate(others, start=1)])
    for _ in range(head_start):
        mixed.tick()
    mixed.admit([image(0, steps, start, seed=seed)])
    np.testing.assert_array_equal(drain(mixed)[0], drain(alone)[0])


def test_edits_move_up_with_their_slots_when_others_leave():
    table = table_of(4)
    table.admit([image(0, 1), image(1, 8), image(2, 8, START), image(3, 2)])
    table.tick()
    table.evict(1)
    assert len(table.images) == 2
    pixels = drain(table)[2]
    np.testing.assert_array_equal(pixels[KEPT], PICTURE[KEPT])


def test_a_row_that_breaks_takes_its_edit_with_it():
    network = GaussianNetwork()
    table = SlotTable(network, SHAPE, CLASSES, SIGMA_DATA, (4,))
    table.admit([image(0, 2, VARIED), image(1, 2, START, seed=9)])
    network.before = lambda x, c_noise: x.__setitem__(0, np.nan)
    assert table.tick().broken == (ImageKey(0, 0),)
    network.before = lambda x, c_noise: None
    expected = to_pixels(sampled(START, LEVELS[2], 9))[0]
    assert np.abs(drain(table)[1].astype(int) - expected).max() <= 1
