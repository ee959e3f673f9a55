import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.noise import random_labels
from server.http.dialects.native import DRAWN_SEED_LIMIT, FIELDS, GenerateRequest, parse_request, read_body
from server.http.errors import ApiError
from tests.server.fakes import CLASSES, LEVELS, manifest

MODEL = manifest()


def parse(body: Any, **changes: Any) -> GenerateRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    models = {"tiny": manifest(**changes)}
    return parse_request(raw, models, max_images=64, max_timeout_s=60.0).decoded(models)


def refusal(body: Any, **changes: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body, **changes)
    return caught.value


def test_a_full_request_is_taken_as_it_is():
    body = {"steps": 2, "n": 3, "seed": 7, "label": 1, "format": "webp", "model": "tiny", "timeout_s": 2}
    assert parse(body) == GenerateRequest(2, 3, 7, (1, 1, 1), "webp", "tiny", 2.0)


@pytest.mark.parametrize("body", [b"", b" {}\n", b"{}", b'{"seed": null, "steps": null, "n": null, "label": null}'])
def test_everything_has_a_default_and_a_drawn_seed_fits_javascript(body: bytes):
    request = parse(body)
    assert (request.steps, request.images, request.format) == (4, 1, "png")
    assert (request.model, request.timeout_s) == ("tiny", 60.0)
    assert 0 <= request.seed < DRAWN_SEED_LIMIT
    assert parse(body).seed != request.seed


def test_a_number_is_whole_whichever_way_json_writes_it():
    request = parse(b'{"steps": 4.0, "n": 2e0, "seed": 9007199254740993.0, "label": 1.0}')
    assert (request.steps, request.images, request.seed, request.labels) == (4, 2, 2**53 + 1, (1, 1))
    assert refusal(b'{"seed": 1e400}').code == refusal(b'{"seed": 0.1e-999999999999999999999}').code == "wrong_type"
    assert refusal(b'{"seed": 1e30}').code == "wrong_type"


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
    (b" ", None, "malformed_json", "JSON"),
    (b"[1]", None, "malformed_json", "object"),
    (b"\xff\xfe\xfa", None, "malformed_json", "JSON"),
    (b"[" * 50_000, None, "malformed_json", "JSON"),
    (b'{"seed": ' + b"9" * 5_000 + b"}", None, "malformed_json", "JSON"),
    ({"step": 4}, "step", "unknown_field", '"step" is not a field'),
    ({"steps": 0}, "steps", "out_of_range", "from 1 to 8, not 0"),
    ({"steps": 9}, "steps", "out_of_range", "from 1 to 8, not 9"),
    ({"steps": "4"}, "steps", "wrong_type", 'not "4"'),
    ({"steps": True}, "steps", "wrong_type", "not true"),
    ({"steps": 4.5}, "steps", "wrong_type", "not 4.5"),
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
    ({"label": 1.5}, "label", "wrong_type", "not 1.5"),
    ({"label": {"a": 1}}, "label", "wrong_type", "class name"),
    ({"timeout_s": 0}, "timeout_s", "out_of_range", "from 0.001 to 60 seconds"),
    ({"timeout_s": 60.1}, "timeout_s", "out_of_range", "not 60.1"),
    (b'{"timeout_s": NaN}', "timeout_s", "out_of_range", "not NaN"),
    ({"timeout_s": "1"}, "timeout_s", "wrong_type", 'not "1"'),
    ({"timeout_s": True}, "timeout_s", "wrong_type", "not true"),
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
        parse_request(b'{"steps": 4}', {"tiny": few}, max_images=1, max_timeout_s=60.0)
    assert caught.value.code == "unsupported_steps"
    assert parse_request(b"{}", {"tiny": few}, max_images=1, max_timeout_s=60.0).request.steps == 2


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


def body_of(chunks: list[bytes], headers: dict[str, str], limit: int, forever: bool = False) -> bytes:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
        if forever:
            await asyncio.Event().wait()

    return asyncio.run(read_body(stream(), headers, limit, limit_s=0.05 if forever else 60))


def test_a_body_that_does_not_end_is_not_waited_for():
    with pytest.raises(ApiError, match=r"not complete after 0\.05 s") as caught:
        body_of([b"{"], {}, limit=4, forever=True)
    assert (caught.value.status, caught.value.code) == (408, "body_timeout")


def test_a_body_is_bounded_whatever_its_length_header_says():
    assert body_of([b"ab", b"", b"cd"], {}, limit=4) == b"abcd"
    for headers in ({}, {"content-length": "3"}, {"content-length": "x"}):
        with pytest.raises(ApiError) as caught:
            body_of([b"abc", b"de"], headers, limit=4)
        assert caught.value.status == 413
    with pytest.raises(ApiError):
        body_of([], {"content-length": "5"}, limit=4)
