"""Images that begin at an image: the fields, the levels, and what a slot makes of them."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.editing import repaint, vary
from fewstep.noise import noise_for
from fewstep.pixels import Pixels, from_pixels, to_pixels
from fewstep.precond import Denoiser
from server.http.dialects.edits import Edit, body_bytes, edits_served
from server.http.dialects.native import MIN_BODY_LIMIT, GenerateRequest, body_limit, parse_request
from server.http.errors import ApiError
from server.http.pictures import PREFIX, max_base64
from server.scheduler.slots import Image, ImageKey, SlotTable, Start, buckets_for
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, GaussianNetwork, manifest, png

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (8, 8, 1), np.uint8)
MASK = RNG.choice(np.array([0, 127, 128, 255], np.uint8), (8, 8, 1))
KEPT = MASK[..., 0] < 128
START = Start(from_pixels(PICTURE[None])[0], KEPT[None])
VARIED = Start(START.image)


def parse(body: dict[str, Any], **changes: Any) -> GenerateRequest:
    models = {"tiny": manifest(**changes)}
    return parse_request(json.dumps(body).encode(), models, max_images=64, max_timeout_s=60.0).decoded(models)


def test_without_an_image_there_is_no_edit_and_all_calls_are_made():
    for body in ({}, {"image": None, "mask": None, "strength": None}):
        request = parse({"steps": 3, **body})
        assert (request.edit, request.calls) == (None, 3)


def test_an_edit_carries_pixels_and_what_is_known_of_them():
    edit = parse({"image": PREFIX + png(PICTURE), "mask": png(MASK)}).edit
    assert edit == Edit(SHAPE, PICTURE.tobytes(), KEPT.tobytes(), 1.0)
    assert edit is not None
    start = edit.start()
    np.testing.assert_array_equal(to_pixels(start.image[None])[0], PICTURE)
    assert start.known is not None and (start.known == KEPT[None]).all()


def test_a_colour_mask_is_taken_by_its_brightness():
    painted = np.repeat(MASK, 3, axis=2)
    assert (
        parse({"image": png(PICTURE), "mask": png(painted)}).edit
        == parse({"image": png(PICTURE), "mask": png(MASK)}).edit
    )


@pytest.mark.parametrize(("mask", "expected"), [({}, 0.5), ({"mask": png(MASK)}, 1.0)])
def test_strength_has_a_default_with_and_without_a_mask(mask: dict[str, str], expected: float):
    edit = parse({"image": png(PICTURE), **mask}).edit
    assert edit is not None and edit.strength == expected


@pytest.mark.parametrize(
    ("strength", "steps", "calls"),
    [(1, 1, 1), (1, 8, 8), (0.5, 4, 2), (0.5, 5, 3), (0.51, 4, 3), (0.001, 8, 1), (1 / 3, 3, 1), (0.7, 1, 1)],
)
def test_the_last_calls_are_made_rounded_up(strength: float, steps: int, calls: int):
    assert parse({"image": png(PICTURE), "strength": strength, "steps": steps}).calls == calls


WRONG = [
    ({"mask": png(MASK)}, "mask", "missing_image", "mask needs image"),
    ({"strength": 0.5}, "strength", "missing_image", "strength needs image"),
    ({"image": 3}, "image", "wrong_type", "not 3"),
    ({"image": [png(PICTURE)]}, "image", "wrong_type", "must be a PNG as base64"),
    ({"image": "/etc/passwd"}, "image", "invalid_image", "image is not base64"),
    ({"image": "http://127.0.0.1/boot.png"}, "image", "invalid_image", "image is not base64"),
    ({"image": png(PICTURE[:7])}, "image", "invalid_image", "8x7 pixels; this model's images have 8x8"),
    ({"image": png(PICTURE), "mask": png(MASK[:, :7])}, "mask", "invalid_image", "mask has 7x8 pixels"),
    ({"image": png(PICTURE), "mask": True}, "mask", "wrong_type", "not true"),
    ({"image": png(PICTURE), "strength": 0}, "strength", "out_of_range", "above 0 and at most 1, not 0"),
    ({"image": png(PICTURE), "strength": 1.5}, "strength", "out_of_range", "not 1.5"),
    ({"image": png(PICTURE), "strength": 10**400}, "strength", "out_of_range", "not 1000"),
    ({"image": png(PICTURE), "strength": float("nan")}, "strength", "out_of_range", "not NaN"),
    ({"image": png(PICTURE), "strength": True}, "strength", "wrong_type", "not true"),
]


@pytest.mark.parametrize(("body", "param", "code", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_what_is_wrong_is_said(body: dict[str, Any], param: str, code: str, words: str):
    with pytest.raises(ApiError) as caught:
        parse(body)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert words in caught.value.message and len(caught.value.message) < 200


def test_the_body_limit_follows_from_the_largest_model_and_yields_to_the_setting():
    small, large = manifest(), manifest()
    object.__setattr__(large, "resolution", 512)
    assert body_limit(0, {"small": small}) == MIN_BODY_LIMIT
    assert body_limit(0, {"small": small, "large": large}) == body_bytes(large) > 2 * max_base64(512) > 2_000_000
    assert body_limit(9_999, {"large": large}) == 9_999
    assert edits_served(large, body_bytes(large)) and not edits_served(large, MIN_BODY_LIMIT)


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
def test_in_exact_mode_no_row_knows_whether_others_are_edits(company: list, head_start: int):
    """An edit among ordinary rows and an ordinary row among edits: the same bytes as alone."""
    (seed, steps, start), *others = company
    alone = table_of(16, exact=True)
    alone.admit([image(0, steps, start, seed=seed)])
    crowd = table_of(16, exact=True)
    crowd.admit([image(number, k, begun, seed=s) for number, (s, k, begun) in enumerate(others, start=1)])
    for _ in range(head_start):
        crowd.tick()
    crowd.admit([image(0, steps, start, seed=seed)])
    np.testing.assert_array_equal(drain(crowd)[0], drain(alone)[0])


def test_edits_move_up_with_their_slots_when_others_leave():
    table = table_of(4)
    table.admit([image(0, 1), image(1, 8), image(2, 8, START), image(3, 2)])
    table.tick()
    table.evict(1)
    assert len(table.starts) == len(table.keys) == 2
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
