"""Guidance and pictures to be enlarged, in both dialects: what is taken, said and refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from starlette.datastructures import Headers

from fewstep.conditions import guidance_weight, low_image
from fewstep.pixels import encode, from_pixels
from server.http.dialects.native import Asked, NativeDialect, models_body
from server.http.dialects.native_schema import schemas
from server.http.dialects.openai import OpenAIDialect
from server.http.png_text import recipe
from server.http.service import ImageService
from server.remake import requested
from server.scheduler.refusal import Refusal
from server.settings.settings import Settings
from tests.server.fakes import manifest, png

GUIDED = replace(manifest("guided"), conditions=(guidance_weight(4.0),))
ENLARGING = replace(manifest("enlarging", classes=0), conditions=(low_image(1, 2),))
MODELS = {each.name: each for each in (manifest("plain"), GUIDED, ENLARGING)}
SETTINGS = Settings({name: Path("/nowhere") for name in MODELS})
NATIVE = NativeDialect(MODELS, SETTINGS, cast(ImageService, None))
OPENAI = OpenAIDialect(MODELS, SETTINGS, cast(ImageService, None))
SMALL = np.array([[0, 255], [100, 50]], np.uint8)[..., None]
LARGE = np.repeat(np.repeat(SMALL, 4, axis=0), 4, axis=1)


def native(**body: Any) -> Asked:
    return NATIVE.read(msgspec.json.encode(body))


def openai(data: Mapping[str, Any], picture: np.ndarray | None = None, **files: bytes) -> Any:
    pictures = files if picture is None else {"image": encode(picture, "png"), **files}
    return OPENAI.read(data, Headers({}), pictures or None)


def test_a_weight_is_taken_written_into_the_png_and_made_again_from_it():
    asked = native(model="guided", seeds=[5, 5], guidance=[1, 3.5])
    assert [float(asked.request.given(index)["guidance"]) for index in range(2)] == [1.0, 3.5]  # pyright: ignore[reportOptionalSubscript]
    said = recipe(asked.request, 1, GUIDED, edited=False)
    assert said["guidance"] == 3.5 and not asked.edited
    again = requested(Path("a.png"), said, GUIDED)
    assert again.conditions == native(model="guided", seed=5, guidance=3.5).request.conditions
    assert "guidance" not in recipe(native(model="guided").request, 0, GUIDED, edited=False)


def test_openais_guidance_scale_is_the_weight_where_there_is_one():
    assert openai({"model": "guided", "guidance_scale": 2.0}).request.condition("guidance")
    assert openai({"model": "plain", "guidance_scale": 7.5}).request.conditions == ()
    with pytest.raises(Refusal, match=r"guidance must be from 1 to 4, not 7\.5"):
        openai({"model": "guided", "guidance_scale": 7.5})


@pytest.mark.parametrize("sent", [SMALL, LARGE])  # of another size, a picture is made small
def test_a_picture_is_enlarged_in_both_dialects(sent: np.ndarray):
    orders = native(model="enlarging", upscale=png(sent)).order(), openai({"model": "enlarging"}, sent).order
    for order in orders:
        assert order.decode is not None
        pictures = order.decode()
        ((low,), edit) = pictures.conditions, pictures.edit
        assert edit is None and order.request.calls == 4
        np.testing.assert_allclose(low.row(3), from_pixels(SMALL[None])[0], atol=0 if sent is SMALL else 0.3)


def test_an_image_that_is_enlarged_may_begin_at_a_picture_of_its_own_size():
    order = native(model="enlarging", upscale=png(SMALL), image=png(LARGE), strength=0.5).order()
    assert order.decode is not None
    pictures = order.decode()
    assert pictures.edit is not None and len(pictures.conditions) == 1 and order.request.calls == 2


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"guidance": 2}, "plain takes no guidance weight; leave guidance out", "guidance"),
        ({"upscale": png(SMALL)}, "plain enlarges no images; leave upscale out", "upscale"),
        ({"model": "enlarging"}, "enlarging enlarges images of 2x2: send the picture to enlarge as upscale", "upscale"),
        ({"model": "guided", "guidance": 4.5}, "guidance must be from 1 to 4, not 4.5", "guidance"),
        ({"model": "guided", "guidance": [1, 2], "n": 3}, "guidance has 2 entries, but n is 3", "guidance"),
        ({"model": "guided", "guidance": []}, "guidance has 0 entries", "guidance"),
    ],
)
def test_a_body_that_does_not_fit_the_model_is_refused(body: dict[str, Any], message: str, param: str):
    with pytest.raises(Refusal, match=message) as caught:
        native(**body)
    assert caught.value.param == param and caught.value.kind == "invalid"


def test_a_damaged_picture_is_refused_by_the_name_of_its_field():
    order = native(model="enlarging", upscale=png(SMALL)[:40]).order()
    assert order.decode is not None
    with pytest.raises(Refusal, match="upscale is cut off") as caught:
        order.decode()
    assert caught.value.param == "upscale"


@pytest.mark.parametrize("extra", [{"mask": encode(LARGE, "png")}, {}])
def test_openais_edits_say_what_has_no_meaning_where_an_image_is_enlarged(extra: dict[str, bytes]):
    data = {"model": "enlarging"} if extra else {"model": "enlarging", "strength": 0.5}
    with pytest.raises(Refusal, match=r"enlarging enlarges the image; leave (mask|strength) out"):
        openai(data, SMALL, **extra)
    with pytest.raises(Refusal, match="image of /v1/images/edits"):
        openai({"model": "enlarging"})


def test_models_say_what_they_take_and_the_document_asks_for_it():
    body = models_body(MODELS, {}, SETTINGS)
    plain, guided, enlarging = msgspec.json.decode(msgspec.json.encode(body))["data"]
    assert plain["conditions"] == [] and plain["edits"] and not enlarging["edits"]
    assert guided["conditions"] == [{"name": "guidance", "shape": [], "low": 1.0, "high": 4.0, "default": 1.0}]
    assert enlarging["conditions"][0]["shape"] == [1, 2, 2] and enlarging["conditions"][0]["default"] is None
    document = schemas(MODELS, SETTINGS)
    assert document["GenerateRequest.enlarging"]["required"] == ["model", "upscale"]
    assert document["GenerateRequest.plain"]["properties"]["guidance"]["type"] == "null"
    weight = document["GenerateRequest.guided"]["properties"]["guidance"]["anyOf"][0]
    assert (weight["minimum"], weight["maximum"]) == (1.0, 4.0)
