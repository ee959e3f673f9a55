import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.noise import random_labels
from server.errors import ApiError
from server.requests import DRAWN_SEED_LIMIT, FIELDS, GenerateRequest, parse_request, read_body
from tests.server.fakes import CLASSES, LEVELS, manifest

MODEL = manifest()


def parse(body: Any, **changes: Any) -> GenerateRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(raw, manifest(**changes), max_images=64)


def refusal(body: Any, **changes: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body, **changes)
    return caught.value


def test_a_full_request_is_taken_as_it_is():
    body = {"steps": 2, "n": 3, "seed": 7, "label": 1, "format": "webp", "model": "tiny"}
    assert parse(body) == GenerateRequest(2, 3, 7, (1, 1, 1), "webp")


@pytest.mark.parametrize("body", [b"", b"  \n", b"{}", b'{"seed": null, "steps": null, "n": null, "label": null}'])
def test_everything_has_a_default_and_a_drawn_seed_fits_javascript(body: bytes):
    request = parse(body)
    assert (request.steps, request.images, request.format) == (4, 1, "png")
    assert 0 <= request.seed < DRAWN_SEED_LIMIT
    assert parse(body).seed != request.seed


@pytest.mark.parametrize("label", ["Ankle boot", "ankle BOOT", " ankle boot ", 1])
def test_a_label_is_an_index_or_a_name_in_any_case(label: int | str):
    assert parse({"label": label}).labels == (1,)


def test_absent_labels_are_drawn_from_the_seed_of_each_image():
    request = parse({"n": 20, "seed": 2**63 - 1})
    assert list(request.labels) == random_labels(range(2**63 - 1, 2**63 + 19), CLASSES).tolist()
    assert len(set(request.labels)) == CLASSES


def test_an_unconditional_model_has_no_labels():
    assert parse({"n": 2}, classes=0).labels == (-1, -1)
    assert refusal({"label": 0}, classes=0).param == "label"


WRONG = [
    (b"{", None, "malformed_json", "JSON"),
    (b"[1]", None, "malformed_json", "object"),
    (b"\xff\xfe\xfa", None, "malformed_json", "JSON"),
    (b"[" * 50_000, None, "malformed_json", "JSON"),
    (b'{"seed": ' + b"9" * 5_000 + b"}", None, "malformed_json", "JSON"),
    ({"step": 4}, "step", "unknown_field", "'step' is not a field"),
    ({"steps": 0}, "steps", "out_of_range", "from 1 to 8, not 0"),
    ({"steps": 9}, "steps", "out_of_range", "from 1 to 8, not 9"),
    ({"steps": "4"}, "steps", "wrong_type", 'not "4"'),
    ({"steps": True}, "steps", "wrong_type", "not true"),
    ({"steps": 4.0}, "steps", "wrong_type", "not 4.0"),
    ({"n": 0}, "n", "out_of_range", "from 1 to 64"),
    ({"n": 65}, "n", "out_of_range", "from 1 to 64"),
    ({"n": [1]}, "n", "wrong_type", "whole number"),
    ({"seed": -1}, "seed", "out_of_range", "not -1"),
    ({"seed": 2**63}, "seed", "out_of_range", str(2**63 - 1)),
    (b'{"seed": NaN}', "seed", "wrong_type", "NaN"),
    ({"label": 3}, "label", "unknown_label", "Bag, Ankle boot, Coat"),
    ({"label": -1}, "label", "unknown_label", "from 0 to 2"),
    ({"label": "shoe"}, "label", "unknown_label", "Bag, Ankle boot, Coat"),
    ({"label": ""}, "label", "unknown_label", "no class"),
    ({"label": False}, "label", "wrong_type", "not false"),
    ({"label": 1.0}, "label", "wrong_type", "not 1.0"),
    ({"label": {"a": 1}}, "label", "wrong_type", "class name"),
    ({"format": "gif"}, "format", "unknown_format", "png, webp, npy"),
    ({"format": ["png"]}, "format", "unknown_format", "png, webp, npy"),
    ({"format": None}, "format", "unknown_format", "not null"),
    ({"label": "x" * 9_000}, "label", "unknown_label", "..."),
]


@pytest.mark.parametrize(("body", "param", "code", "words"), WRONG)
def test_what_is_wrong_is_named_in_a_sentence(body: Any, param: str | None, code: str, words: str):
    error = refusal(body)
    assert (error.status, error.param, error.code) == (400, param, code)
    assert words in error.message
    assert len(error.message) < 400


def test_an_unknown_model_is_not_found():
    for name in ("giant", 5, ["tiny"]):
        error = refusal({"model": name})
        assert (error.status, error.code) == (404, "model_not_found")


def test_steps_without_levels_are_refused_with_those_there_are():
    few = replace(MODEL, levels={1: LEVELS[1], 2: LEVELS[2]})
    with pytest.raises(ApiError, match="it serves 1, 2") as caught:
        parse_request(b'{"steps": 4}', few, max_images=1)
    assert caught.value.code == "unsupported_steps"
    assert parse_request(b"{}", few, max_images=1).steps == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), json_values, max_size=4))
def test_any_json_object_is_a_request_or_a_client_error(body: dict[str, Any]):
    try:
        assert 1 <= parse(body).steps <= 8
    except ApiError as error:
        assert error.status in (400, 404) and error.message


def body_of(chunks: list[bytes], headers: dict[str, str], limit: int) -> bytes:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return asyncio.run(read_body(stream(), headers, limit))


def test_a_body_is_bounded_whatever_its_length_header_says():
    assert body_of([b"ab", b"", b"cd"], {}, limit=4) == b"abcd"
    for headers in ({}, {"content-length": "3"}, {"content-length": "x"}):
        with pytest.raises(ApiError) as caught:
            body_of([b"abc", b"de"], headers, limit=4)
        assert caught.value.status == 413
    with pytest.raises(ApiError):
        body_of([], {"content-length": "5"}, limit=4)
