"""Rows with conditions of their own share calls, in both slot tables; requests say them or are refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from fewstep.conditions import Conditions, guidance_weight, low_image
from fewstep.noise import noise_for
from fewstep.pixels import to_pixels
from fewstep.precond import Denoiser
from fewstep.samplers import sample_dpdm
from server.scheduler.device_slots import DeviceSlotTable
from server.scheduler.refusal import Refusal
from server.scheduler.request import Given, ImageRequest
from server.scheduler.row_independence import check_rows_independent
from server.scheduler.slots import Image, ImageKey, Slots, SlotTable, buckets_for
from server.scheduler.validate import check_request, image_request
from tests.server.fakes import CLASSES, LEVELS, SHAPE, SIGMA_DATA, manifest
from tests.server.scheduler.test_device_slots import Device

MODEL = manifest()
TAKEN = (guidance_weight(4.0), low_image(1, 2))
GUIDED, ENLARGING = replace(MODEL, conditions=TAKEN[:1]), replace(MODEL, conditions=TAKEN[1:])


class Conditioned:
    """A network whose output tells weight and low image, and which remembers how many rows each call had."""

    def __init__(self) -> None:
        self.weights: list[list[float]] = []

    def __call__(self, x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray, *given: np.ndarray) -> np.ndarray:
        weight, low = given
        self.weights.append(weight.tolist())
        scale = SHAPE[1] // low.shape[2]
        large = np.repeat(np.repeat(low, scale, axis=2), scale, axis=3)
        return 0.2 * weight[:, None, None, None] + large - 0.1 * x


def host(network: Conditioned) -> SlotTable:
    return SlotTable(network, SHAPE, CLASSES, SIGMA_DATA, buckets_for(4, exact=False), conditions=TAKEN)


def on_device(network: Conditioned) -> DeviceSlotTable:
    device = Device(network, buckets_for(4, exact=False), conditions=TAKEN)
    return DeviceSlotTable(device, shape=SHAPE, classes=CLASSES, sigma_data=SIGMA_DATA, conditions=TAKEN)  # pyright: ignore[reportArgumentType]


def low(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, TAKEN[1].shape).astype(np.float32)


def image(request: int, steps: int, weight: float | None) -> Image:
    given = {"low": low(request)} | ({} if weight is None else {"guidance": np.float32(weight)})
    return Image(ImageKey(request, 0), seed=request, label=0, sigmas=LEVELS[steps], given=given)  # pyright: ignore[reportArgumentType]


def expected(request: int, steps: int, weight: float) -> np.ndarray:
    denoiser = Denoiser(Conditioned(), SIGMA_DATA, CLASSES, TAKEN)
    bound = denoiser.given(low=low(request)[None], guidance=np.full(1, weight, np.float32))
    return to_pixels(sample_dpdm(bound, noise_for([request], SHAPE), LEVELS[steps]).images)[0]


@pytest.mark.parametrize("table_of", [host, on_device])
def test_rows_with_other_weights_and_pictures_share_every_call(table_of: Callable[[Conditioned], Slots]):
    network = Conditioned()
    table = table_of(network)
    rows = {1: (4, 1.5), 2: (1, 4.0), 3: (4, None), 4: (2, 3.0)}
    table.admit([image(request, *row) for request, row in rows.items()])
    made = dict(table.tick().finished)
    table.evict(1)  # the first row: all others move
    while table.requests():
        made |= dict(table.tick().finished)
    assert len(network.weights) == 4 and network.weights[0] == [1.5, 4.0, 1.0, 3.0]
    for request, (steps, weight) in list(rows.items())[1:]:
        found = made[ImageKey(request, 0)].astype(int)
        assert np.abs(found - expected(request, steps, weight or 1.0)).max() <= 1


def test_exact_mode_notices_a_row_that_takes_the_condition_of_another():
    def mixing(x: np.ndarray, c_noise: np.ndarray, onehot: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x + weight.mean()

    check_rows_independent(lambda x, c, o, weight: x + weight[:, None, None, None], SHAPE, CLASSES, 4, None, TAKEN[:1])
    with pytest.raises(Exception, match="exact mode is not possible"):
        check_rows_independent(mixing, SHAPE, CLASSES, 4, None, TAKEN[:1])


def test_a_request_has_a_weight_for_all_images_or_for_each():
    assert image_request(GUIDED, seed=1).given(0) is None  # the default of the network
    (given,) = image_request(GUIDED, seed=1, images=3, guidance=2.5).conditions
    assert [float(given.row(index)) for index in range(3)] == [2.5] * 3
    each = image_request(GUIDED, seeds=[7, 7], guidance=[1, 4.0])
    assert [float(each.given(index)["guidance"]) for index in range(2)] == [1.0, 4.0]  # pyright: ignore[reportOptionalSubscript]
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(each), type=ImageRequest)
    assert again == each


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (MODEL, {"guidance": 2.0}, "takes no guidance weight; leave guidance out"),
        (MODEL, {"pictured": ("low",)}, "enlarges no images; leave upscale out"),
        (GUIDED, {"guidance": 0.5}, "guidance must be from 1 to 4, not 0.5"),
        (GUIDED, {"guidance": math.nan}, "guidance must be from 1 to 4"),
        (GUIDED, {"guidance": [1.0, 2.0], "images": 3}, "guidance has 2 entries, but n is 3"),
        (ENLARGING, {}, "enlarges images of 2x2: send the picture to enlarge as upscale"),
        (replace(MODEL, conditions=(replace(TAKEN[1], name="mask"),)), {}, "needs mask, which no field"),
    ],
)
def test_what_a_model_cannot_be_given_is_refused(model, fields: dict, message: str):
    with pytest.raises(Refusal, match=message):
        image_request(model, **fields)


@pytest.mark.parametrize(
    ("conditions", "given", "message"),
    [
        ((), [Given.of("guidance", np.ones(1))], "takes no .guidance"),
        (TAKEN[:1], [Given.of("guidance", np.ones(1))] * 2, "takes no .guidance., or the request has it twice"),
        (TAKEN[:1], [Given.of("guidance", np.ones(3))], r"has the shape \(\) for each image"),
        (TAKEN[:1], [Given.of("guidance", np.array([9.0]))], "guidance must be from 1 to 4, not 9"),
        (TAKEN[1:], [Given.of("low", np.zeros((1, 1, 3, 3)))], r"has the shape \(1, 2, 2\)"),
        (TAKEN[1:], [Given("low", (1, 2, 2), b"abc")], r"has the shape \(1, 2, 2\)"),
        (TAKEN[1:], [Given.of("low", np.full((1, 1, 2, 2), math.inf))], "low must be from -1 to 1"),
        (TAKEN[1:], [], "enlarges images of 2x2"),
    ],
)
def test_a_request_made_by_hand_is_checked(conditions: Conditions, given: Sequence[Given], message: str):
    served = {"tiny": replace(MODEL, name="tiny", conditions=conditions)}
    request = ImageRequest("tiny", 1, (0, 1), (0, 0), LEVELS[1], conditions=tuple(given))
    with pytest.raises(Refusal, match=message):
        check_request(request, served)
