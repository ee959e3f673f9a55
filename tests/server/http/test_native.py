"""The body of POST /v1/generate: what is taken, and the sentence about what is not."""

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fewstep.pixels import FORMATS
from server.http.dialects.native import Asked, NativeDialect, body_limit, decode_edit, edit_bytes
from server.http.dialects.native_schema import GenerateBody
from server.http.fields import parse
from server.http.service import ImageService
from server.scheduler.refusal import Refusal
from server.scheduler.request import Edit
from server.scheduler.validate import SEED_LIMIT
from server.settings.settings import Settings
from tests.server.fakes import CLASSES, LEVELS, SHAPE, manifest, png

MODEL = replace(manifest(), class_names=("Bag", "Ankle boot", "Élan"))
SETTINGS = Settings({"tiny": Path("/nowhere")})
DIALECT = NativeDialect({"tiny": MODEL}, SETTINGS, cast(ImageService, None))
FIELDS = tuple(GenerateBody.model_fields)
PICTURE = png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))


def read(body: Any, accept: str = "") -> Asked:
    return DIALECT.read(body if isinstance(body, bytes) else json.dumps(body).encode(), accept)


def refusal(body: Any, accept: str = "") -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(body, accept)
    return caught.value


def test_a_full_request_is_taken_as_it_is():
    body = {"steps": 2, "n": 3, "seed": 7, "label": 1, "format": "webp", "model": "tiny", "timeout_s": 2}
    asked = read({**body, "image": PICTURE, "strength": 1})
    request = asked.request
    assert (request.model, request.steps, request.seeds, request.labels) == ("tiny", 2, (7, 8, 9), (1, 1, 1))
    assert (request.sigmas, request.format) == (LEVELS[2], "webp")
    assert (asked.timeout_s, asked.strength, asked.as_json) == (2.0, 1.0, True)


def test_the_priority_is_that_of_the_body_else_that_of_the_header():
    said = {"interactive": read({}), "batch": read({"priority": "batch"})}
    assert {name: asked.request.priority for name, asked in said.items()} == {name: name for name in said}
    assert DIALECT.read(b"{}", "", "batch").request.priority == "batch"
    assert DIALECT.read(b'{"priority": "interactive"}', "", "batch").request.priority == "interactive"
    with pytest.raises(Refusal, match='interactive or batch, not "low"') as caught:
        DIALECT.read(b"{}", "", "low")
    assert (caught.value.param, caught.value.code) == ("priority", "unknown_priority")
    assert refusal({"priority": "low"}).code == "unknown_priority"


NULLS = json.dumps(dict.fromkeys(FIELDS)).encode()


@pytest.mark.parametrize("body", [b"", b" {}\n", b"{}", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), NULLS])
def test_absent_and_null_are_the_same_in_every_field(body: bytes):
    assert parse(body, GenerateBody) == GenerateBody()
    asked = read(body)
    assert (asked.request.steps, asked.request.images, asked.request.format) == (4, 1, "png")
    assert (asked.request.model, asked.timeout_s, asked.strength, asked.as_json) == ("tiny", 60.0, None, False)


def test_a_number_is_whole_whichever_way_json_writes_it():
    request = read(b'{"steps": 4.0, "n": 2e0, "seed": 9007199254740993.0, "label": 1.0}').request
    assert (request.steps, request.seeds, request.labels) == (4, (2**53 + 1, 2**53 + 2), (1, 1))
    assert read(b'{"seed": 1e18}').request.seeds == (10**18,)
    assert read(b'{"seed": 9223372036854775807.000}').request.seeds == (SEED_LIMIT - 1,)
    assert read(b'{"timeout_s": 60, "image": "", "strength": 1e0}').strength == 1.0


@pytest.mark.parametrize("label", ["e\u0301lan", "ÉLAN", " Élan "])
def test_a_class_name_is_found_however_it_is_written(label: str):
    assert read({"label": label}).request.labels == (2,)
    assert read(json.dumps({"label": label}, ensure_ascii=False).encode()).request.labels == (2,)


WRONG = [
    (b"{", None, "malformed_json", "line 1, column 2"),
    (b" ", None, "malformed_json", "JSON"),
    (b"[1]", None, "malformed_json", "object"),
    (b"null", None, "malformed_json", "object"),
    (b"\xff\xfe\xfa", None, "malformed_json", "not UTF-8"),
    (b'{"label": "\xff"}', None, "malformed_json", "not UTF-8"),
    (b"[" * 50_000, None, "malformed_json", "nests too deeply"),
    (b"[" * 100_001, None, "malformed_json", "more than 100000 values"),
    (b'{"label": ' + b"[" * 500 + b"]" * 500 + b"}", "label", "wrong_type", "..."),
    (b'{"seed": ' + b"9" * 5_000 + b"}", None, "malformed_json", "too many digits"),
    (b'{"seed": ' + b"9" * 4_000 + b"}", "seed", "out_of_range", "9..."),
    (b'{"strength": ' + b"9" * 4_000 + b"}", "strength", "out_of_range", "9..."),
    (b'{"timeout_s": ' + b"9" * 4_000 + b"}", "timeout_s", "out_of_range", "9..."),
    (b'{"steps": 1, "n": 1, "steps": 2}', None, "malformed_json", '"steps" more than once'),
    (b'{"\\ud800": 1, "\\ud800": 2}', None, "malformed_json", r'"\ud800" more than once'),
    (b"--boundary\r\nContent-Disposition", None, "malformed_json", "multipart"),
    (b"steps=4", None, "malformed_json", "Expecting value"),
    ({"step": 4}, "step", "unknown_field", '"step" is not a field'),
    ({"n": "2", "step": 4}, "step", "unknown_field", "the fields are model, steps, n"),
    ({"\ud800\n": 4}, r"\ud800\n", "unknown_field", r'"\ud800\n" is not a field'),
    ({"x" * 9_000: 4}, "x" * 57 + "...", "unknown_field", "is not a field"),
    ({"": 4}, "", "unknown_field", '"" is not a field'),
    ({"steps": 0}, "steps", "out_of_range", "from 1 to 8, not 0"),
    ({"steps": 9}, "steps", "out_of_range", "from 1 to 8, not 9"),
    ({"steps": "4"}, "steps", "wrong_type", 'a whole number or a list with a whole number for each entry, not "4"'),
    ({"steps": [4, "2"]}, "steps", "wrong_type", "a list with a whole number for each entry"),
    ({"steps": [4, 9]}, "steps", "out_of_range", "from 1 to 8, not 9"),
    ({"seeds": [7, -1]}, "seeds", "out_of_range", "from 0 to 9223372036854775807, not -1"),
    ({"seeds": [2**63]}, "seeds", "out_of_range", "not 9223372036854775808"),
    ({"seeds": [0.5]}, "seeds", "wrong_type", "a list with a whole number for each entry"),
    ({"seeds": []}, "seeds", "out_of_range", "has 0 entries, but the request makes at least 1"),
    ({"seeds": [1] * 65}, "seeds", "out_of_range", "at most 64 images"),
    ({"seeds": [1, 2], "n": 3}, "seeds", "out_of_range", "has 2 entries, but n is 3"),
    ({"seeds": [1, 2], "steps": [4]}, "steps", "out_of_range", "has 1 entries, but seeds has 2"),
    ({"seeds": [1, 2], "seed": 3}, "seeds", "conflict", "seed or seeds, not both"),
    ({"labels": [1, "shoe"]}, "labels", "unknown_label", 'no class "shoe"'),
    ({"labels": [1], "label": 1}, "labels", "conflict", "label or labels"),
    ({"seeds": [1, 2], "seed_to": 3}, "seed_to", "conflict", "seeds or seed_to, not both"),
    ({"seed_to": 2**63}, "seed_to", "out_of_range", "at most 9223372036854775807, not 9223372036854775808"),
    ({"mix": 0.5}, "mix", "missing_seed", "mix needs seed_to"),
    ({"seed_to": 3, "mix": 1.5}, "mix", "out_of_range", "mix must be from 0 to 1, not 1.5"),
    ({"seed_to": 3, "mix": [0, -0.1]}, "mix", "out_of_range", "mix must be from 0 to 1, not -0.1"),
    ({"seed_to": 3, "mix": [0, 1], "n": 3}, "mix", "out_of_range", "has 2 entries, but n is 3"),
    ({"labels": 1}, "labels", "wrong_type", "a list with a whole number or a string for each entry"),
    ({"sigmas": [80.0, 1.0], "steps": 2}, "sigmas", "conflict", "steps or sigmas"),
    ({"sigmas": [1.0], "image": "", "strength": 1}, "sigmas", "conflict", "strength or sigmas"),
    ({"sigmas": [1.0, 1.0]}, "sigmas", "out_of_range", "each below the one before; not [1.0, 1.0]"),
    ({"sigmas": [1.0, 2.0]}, "sigmas", "out_of_range", "each below the one before"),
    ({"sigmas": [81]}, "sigmas", "out_of_range", "1 to 8 levels from 80 down to"),
    ({"sigmas": [80.0, 1e-9]}, "sigmas", "out_of_range", "each below the one before"),
    ({"sigmas": []}, "sigmas", "out_of_range", "1 to 8 levels"),
    ({"sigmas": [80 - level for level in range(9)]}, "sigmas", "out_of_range", "1 to 8 levels"),
    (b'{"sigmas": [NaN]}', "sigmas", "out_of_range", "not [NaN]"),
    (b'{"sigmas": [' + b"9" * 4_000 + b"]}", "sigmas", "wrong_type", "a list with a number for each entry"),
    ({"stream": 1}, "stream", "wrong_type", "true or false, not 1"),
    ({"stream": True, "previews": 8}, "previews", "out_of_range", "at least 0 and at most 7, not 8"),
    ({"stream": True, "previews": -1}, "previews", "out_of_range", "at least 0 and at most 7, not -1"),
    ({"stream": True, "previews": 0.5}, "previews", "wrong_type", "a whole number, not 0.5"),
    ({"previews": 0}, "previews", "missing_stream", "previews needs stream: true"),
    ({"previews": 2, "stream": False, "n": 2}, "previews", "missing_stream", "previews needs stream: true"),
    ({"steps": True}, "steps", "wrong_type", "not true"),
    ({"steps": 4.5}, "steps", "wrong_type", "not 4.5"),
    (b'{"steps": 4.00000000000000000001}', "steps", "wrong_type", "whole number"),
    ({"n": 0}, "n", "out_of_range", "from 1 to 64, not 0"),
    ({"n": 65}, "n", "out_of_range", "from 1 to 64, not 65"),
    ({"n": -1e30}, "n", "out_of_range", "not -1000000000000000000000000000000"),
    ({"n": [1]}, "n", "wrong_type", "whole number"),
    ({"seed": -1}, "seed", "out_of_range", "not -1"),
    ({"seed": 2**63}, "seed", "out_of_range", str(2**63 - 1)),
    ({"seed": 2**63 - 1, "n": 2}, "seed", "out_of_range", f"at most {2**63 - 2} with n = 2"),
    (b'{"seed": 1e30}', "seed", "out_of_range", "at most 9223372036854775807, not 1000"),
    (b'{"seed": 1e400}', "seed", "wrong_type", "not Infinity"),
    (b'{"seed": 0.1e-999999999999999999999}', "seed", "wrong_type", "whole number"),
    (b'{"seed": NaN}', "seed", "wrong_type", "NaN"),
    (b'{"seed": -Infinity}', "seed", "wrong_type", "-Infinity"),
    ({"label": 3}, "label", "unknown_label", r"Bag, Ankle boot, \u00c9lan"),
    ({"label": -1}, "label", "unknown_label", "from 0 to 2"),
    ({"label": "shoe"}, "label", "unknown_label", 'no class "shoe"'),
    ({"label": ""}, "label", "unknown_label", "no class"),
    ({"label": True}, "label", "wrong_type", "a whole number or a string, not true"),
    ({"label": 1.5}, "label", "wrong_type", "not 1.5"),
    ({"label": "\udfff"}, "label", "unknown_label", r'no class "\udfff"'),
    ({"label": {"a": 1}}, "label", "wrong_type", "a string"),
    ({"label": "x" * 9_000}, "label", "unknown_label", "..."),
    ({"timeout_s": 0}, "timeout_s", "out_of_range", "from 0.001 to 60, not 0"),
    ({"timeout_s": 60.1}, "timeout_s", "out_of_range", "not 60.1"),
    (b'{"timeout_s": NaN}', "timeout_s", "out_of_range", "not NaN"),
    (b'{"timeout_s": Infinity}', "timeout_s", "out_of_range", "not Infinity"),
    ({"timeout_s": "1"}, "timeout_s", "wrong_type", 'a number, not "1"'),
    ({"timeout_s": True}, "timeout_s", "wrong_type", "not true"),
    ({"format": "gif"}, "format", "unknown_format", 'one of png, webp, jpeg, npy, not "gif"'),
    ({"format": "PNG"}, "format", "unknown_format", "png, webp, jpeg, npy"),
    ({"format": ["png"]}, "format", "unknown_format", "png, webp, jpeg, npy"),
    ({"format": "\ud800"}, "format", "unknown_format", r"\ud800"),
    ({"model": 5}, "model", "wrong_type", "a string, not 5"),
    ({"image": 3}, "image", "wrong_type", "a string, not 3"),
    ({"mask": ["x"]}, "mask", "wrong_type", "a string"),
    ({"mask": "x"}, "mask", "missing_image", "needs image"),
    ({"strength": 0.5}, "strength", "missing_image", "needs image"),
    ({"image": "x", "strength": 0}, "strength", "out_of_range", "above 0 and at most 1, not 0"),
    ({"image": "x", "strength": 1.01}, "strength", "out_of_range", "not 1.01"),
    (b'{"image": "x", "strength": NaN}', "strength", "out_of_range", "not NaN"),
    ({"image": "x", "strength": "1"}, "strength", "wrong_type", 'not "1"'),
    ({"image": "x", "strength": True}, "strength", "wrong_type", "not true"),
]


@pytest.mark.parametrize(("body", "param", "code", "words"), WRONG)
def test_what_is_wrong_is_named_in_a_sentence(body: Any, param: str | None, code: str, words: str):
    error = refusal(body)
    assert (error.kind, error.param, error.code) == ("invalid", param, code)
    assert words in error.message and readable(error)


def test_a_field_that_is_there_twice_is_found_in_linear_time():
    """Counting each name on its own would take minutes."""
    fields = ", ".join(f'"{number}": 0' for number in range(49_000))
    assert '"last" more than once' in refusal(f'{{{fields}, "last": 0, "last": 1}}'.encode()).message


def readable(error: Refusal) -> bool:
    return error.message.isascii() and error.message.isprintable() and 0 < len(error.message) < 600


def test_an_unknown_model_is_not_found():
    for name in ("giant", "", "Tiny", "\ud800\n", "x" * 9_000):
        error = refusal({"model": name})
        assert (error.kind, error.code, error.param) == ("not_found", "model_not_found", "model") and readable(error)


@pytest.mark.parametrize(
    ("body", "accept", "form"),
    [
        ({}, "", ("png", False)),
        ({}, "image/webp", ("webp", False)),
        ({}, "image/jpeg, text/html", ("jpeg", False)),
        ({}, "application/x-npy, image/png;q=0.5", ("npy", False)),
        ({}, "application/json, text/plain, */*", ("png", True)),
        ({}, "application/json;q=0, */*", ("png", False)),
        ({}, "application/*", ("png", True)),
        ({"format": "npy"}, "application/*", ("npy", False)),
        ({"format": "webp"}, "*/*", ("webp", False)),
        ({"format": "webp"}, "application/json", ("webp", True)),
        ({"format": "npy", "n": 2}, "", ("npy", True)),
        ({"n": 2}, "image/png;q=0.1, application/json;q=0.9", ("png", True)),
        ({"n": 2}, "image/*;q=0.9, */*;q=0.1", ("npy", False)),
        ({"seeds": [1, 2], "format": "webp"}, "application/zip", ("webp", False)),
        ({"stream": True, "format": "webp"}, "*/*", ("webp", False)),
    ],
)
def test_the_form_of_the_answer_is_what_accept_prefers(body: Any, accept: str, form: Sequence[Any]):
    asked = read(body, accept)
    assert (asked.request.format, asked.as_json) == tuple(form)


@pytest.mark.parametrize(
    ("body", "accept", "words"),
    [
        ({}, "text/html", "image/png, image/webp, image/jpeg, application/json, application/x-npy or application/zip,"),
        ({}, "text/*", "which Accept allows; events come where it names text/event-stream"),
        ({"n": 2}, "text/*;q=0.5, application/json;q=0", "events come where it names text/event-stream"),
        ({"stream": False}, "text/event-stream", "none of which Accept allows; no events come with stream: false"),
        ({"stream": False, "n": 2}, "text/*", "application/x-npy or application/zip, none of which Accept allows"),
        ({"format": "png"}, "image/webp", "one image comes as image/png, application/json or application/zip,"),
        ({"n": 2, "format": "png"}, "image/webp", "several images come as application/json, image/png or application"),
        ({"stream": True}, "application/json", "a stream comes as text/event-stream, which Accept does not allow"),
    ],
)
def test_nothing_is_made_that_accept_does_not_allow(body: Any, accept: str, words: str):
    error = refusal(body, accept)
    assert error.kind == "not_acceptable" and words in error.message


@pytest.mark.parametrize(
    ("body", "accept", "answer"),
    [
        ({}, "text/event-stream", "text/event-stream"),
        ({"stream": None, "n": 2}, "text/event-stream, image/png;q=0.5", "text/event-stream"),
        ({}, "text/event-stream;q=0.5, image/png", "image/png"),
        ({}, "text/*, image/webp;q=0.1", "image/webp"),
        ({}, "image/*;q=0, application/*;q=0, text/event-stream;q=0.1, */*;q=0.5", "text/event-stream"),
        ({"stream": False}, "text/event-stream, image/png;q=0.1", "image/png"),
        ({"stream": False}, "text/event-stream, */*;q=0.1", "image/png"),
        ({"stream": True}, "text/*", "text/event-stream"),
    ],
)
def test_events_come_where_they_are_asked_for(body: Any, accept: str, answer: str):
    assert read(body, accept).answer == answer


def test_a_stream_has_the_previews_that_it_asks_for():
    def calls(**body: Any) -> list[tuple[list[int], list[int]]]:
        """Of each image, the calls with an image and those without."""
        request = read({"stream": True, **body}).request
        assert request.previews == "images", "finished images come one by one"
        return [([*request.previewed(image)], [*request.reported(image)]) for image in range(request.images)]

    assert calls(steps=4) == [([1, 2, 3], [])]
    assert calls(steps=4, previews=None) == [([1, 2, 3], [])]
    assert calls(steps=4, previews=0) == [([], [1, 2, 3])]
    assert calls(steps=[8, 4, 1], previews=2) == [([1, 4], [2, 3, 5, 6, 7]), ([1, 2], [3]), ([], [])]
    assert calls(sigmas=[80, 2, 1], previews=7) == [([1, 2], [])]
    assert read({}).request.previews == "none" and not read({}).request.reported(0)


@pytest.mark.parametrize("mask", [None, PICTURE])
def test_levels_of_ones_own_leave_no_strength_to_report(mask: str | None):
    asked = read({"sigmas": [2, 1, 0.5], "image": PICTURE, "mask": mask})
    assert asked.edited and asked.strength is None and asked.request.sigmas == (2.0, 1.0, 0.5)


@pytest.mark.parametrize(("mask", "strength"), [(None, 0.5), (PICTURE, 1.0)])
def test_strength_has_a_default_with_and_without_a_mask(mask: str | None, strength: float):
    asked = read({"image": PICTURE, "mask": mask})
    assert asked.strength == strength and asked.request.calls == 4 * strength
    edit = decode_edit(PICTURE, mask, MODEL)
    assert edit.known is None if mask is None else edit.known == bytes([1] * 64)  # all of its gray is below 128


MASK = np.random.default_rng(5).choice(np.array([0, 127, 128, 255], np.uint8), (8, 8, 1))


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_an_edit_carries_pixels_and_what_is_known_of_them(prefix: str):
    edit = decode_edit(prefix + PICTURE, png(MASK), MODEL)
    assert edit == Edit(SHAPE, bytes(range(64)), (MASK < 128).tobytes())
    assert edit == decode_edit(PICTURE, png(np.repeat(MASK, 3, axis=2)), MODEL)  # colour counts by its brightness


@pytest.mark.parametrize(
    ("strength", "steps", "calls"),
    [(1, 1, 1), (1, 8, 8), (0.5, 4, 2), (0.5, 5, 3), (0.51, 4, 3), (0.001, 8, 1), (1 / 3, 3, 1), (0.7, 1, 1)],
)
def test_the_last_calls_are_made_rounded_up(strength: float, steps: int, calls: int):
    assert read({"image": PICTURE, "strength": strength, "steps": steps}).request.calls == calls


def test_damaged_pictures_are_refused_by_name():
    for image, mask, name in (
        ("x", None, "image"),
        (PICTURE, PICTURE[:40], "mask"),
        ("\u20ac", None, "image"),
        ("http://127.0.0.1/a.png", None, "image"),
        ("/etc/passwd", None, "image"),
    ):
        with pytest.raises(Refusal) as caught:
            decode_edit(image, mask, MODEL)
        assert (caught.value.code, caught.value.param) == ("invalid_image", name) and readable(caught.value)


def test_a_model_that_no_picture_fits_takes_none():
    with pytest.raises(Refusal, match="of 4 channels"):
        decode_edit(PICTURE, None, replace(MODEL, channels=4))


FILE = base64.b64decode(PICTURE)


def read_form(*parts: tuple[str, str | bytes]) -> Asked:
    files = [(name, (None if isinstance(content, str) else "a.png", content)) for name, content in parts]
    request = httpx.Request("POST", "http://host", files=files)
    return DIALECT.read(request.read(), "", None, request.headers["content-type"])


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ([("n", "2"), ("label", "Bag"), ("steps", "8"), ("stream", "True"), ("previews", "0"), ("priority", "batch")],
         {"n": 2, "label": "Bag", "steps": 8, "stream": True, "previews": 0, "priority": "batch"}),
        ([("label", "2"), ("timeout_s", "1e1"), ("seed_to", "2"), ("mix", "[0.5]"), ("sigmas", "[80, 1.5]")],
         {"label": 2, "timeout_s": 10, "seed_to": 2, "mix": [0.5], "sigmas": [80, 1.5]}),
        ([("labels", '[null, "\u00e9lan"]'), ("steps", "[4, 8]")], {"labels": [None, "\u00e9lan"], "steps": [4, 8]}),
        ([("labels", "Bag"), ("labels", "1"), ("steps", "4"), ("steps", "8")], {"labels": ["Bag", 1], "steps": [4, 8]}),
        ([("labels", "1")], {"labels": [1]}),
        ([("image", FILE), ("mask", FILE), ("strength", "0.5")], {"image": PICTURE, "mask": PICTURE, "strength": 0.5}),
    ],
)  # fmt: skip
def test_a_form_asks_for_what_json_does(parts: Sequence[tuple[str, str | bytes]], body: dict[str, Any]):
    form, as_json = read_form(("seed", "7"), *parts), read({"seed": 7, **body})
    assert (form.request, form.timeout_s, form.answer) == (as_json.request, as_json.timeout_s, as_json.answer)
    decode = form.order().decode
    assert form.edited == (decode is not None) == ("image" in body)
    if decode:
        assert decode().edit == decode_edit(PICTURE, PICTURE, MODEL)


@pytest.mark.parametrize(
    ("parts", "param", "code", "words"),
    [
        ([("seed", "7"), ("seed", "8")], "seed", "malformed_form", '"seed" more than once; send it once'),
        ([("image", FILE), ("image", FILE)], "image", "malformed_form", "one picture is what images begin at"),
        (
            [("photo", FILE)],
            "photo",
            "unknown_field",
            "of this form; the fields are image, mask, upscale, model, steps",
        ),
        ([("seed", "")], "seed", "wrong_type", 'a whole number, not ""'),
        ([("steps", "four")], "steps", "wrong_type", 'or a list with a whole number for each entry, not "four"'),
        ([("seeds", "7"), ("seeds", "x")], "seeds", "wrong_type", "a list with a whole number for each entry"),
        ([("seeds", "[7, 8")], "seeds", "wrong_type", "a list with a whole number for each entry"),
        ([("seeds", "[" + "0," * 100_001)], None, "malformed_json", "more than 100000 values or names"),
        ([("label", "3")], "label", "unknown_label", "has no class 3;"),
        ([("mask", FILE)], "mask", "missing_image", "mask needs image"),
        ([("seed", "7"), ("seeds", "8")], "seeds", "conflict", "seed or seeds, not both"),
    ],
)
def test_what_is_wrong_in_a_form_is_named_in_a_sentence(
    parts: Sequence[tuple[str, str | bytes]], param: str | None, code: str, words: str
):
    with pytest.raises(Refusal) as caught:
        read_form(*parts)
    error = caught.value
    assert (error.param, error.code) == (param, code) and words in error.message and readable(error), error.message


def test_a_form_without_its_media_type_is_told_of_it():
    error = refusal(b"--x\r\n", "")
    assert error.code == "malformed_json" and "Content-Type multipart/form-data" in error.message


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_file_of_a_form_that_is_no_picture_is_refused_by_its_name(name: str):
    decode = read_form(*{"image": FILE, name: b"GIF89a"}.items()).order().decode
    with pytest.raises(Refusal, match=f"{name} is not a PNG") as caught:
        assert decode is not None and decode()
    assert (caught.value.code, caught.value.param) == ("invalid_image", name)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**64), 2**64)
    | st.floats()
    | st.text(st.characters(categories=None), max_size=8)
    | st.sampled_from(["Bag", "png", "tiny", PICTURE, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(FIELDS) | st.text(st.characters(categories=None), max_size=6)


@given(st.dictionaries(names, json_values, max_size=4), st.text(max_size=12))
@example({"label": "\ud800", "n": 10**400}, "")
def test_any_json_object_is_a_request_in_its_ranges_or_refused(body: dict[str, Any], accept: str):
    try:
        asked = read(body, accept)
        if asked.fields.image is not None:
            decode_edit(asked.fields.image, asked.fields.mask, asked.manifest)
    except Refusal as error:
        assert error.kind in ("invalid", "not_found", "not_acceptable") and readable(error)
        unknown = {name for name in body if name not in FIELDS}
        if error.code == "unknown_field":
            assert unknown and error.param is not None and error.param.isascii() and len(error.param) <= 60
        else:
            assert not unknown and error.param in (*FIELDS, *([None] if error.kind == "not_acceptable" else []))
        return
    request = asked.request
    assert all(0 <= seed < SEED_LIMIT for seed in request.seeds) and 1 <= request.images <= SETTINGS.max_images
    assert all(0 <= label < CLASSES for label in request.labels) and len(request.labels) == request.images
    if asked.fields.sigmas is None:
        assert request.sigmas == LEVELS[request.steps][-request.calls :] and request.format in FORMATS
    assert 0.001 <= asked.timeout_s <= SETTINGS.timeout_s


@given(st.binary(max_size=40) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_request_or_refused(body: bytes):
    try:
        read(body)
    except Refusal as error:
        assert error.kind in ("invalid", "not_found") and readable(error)


def test_a_body_has_room_for_an_edit_of_the_largest_model():
    large = replace(MODEL, resolution=512)
    assert (
        body_limit(SETTINGS, {"tiny": MODEL, "large": large}) == edit_bytes(large) > body_limit(SETTINGS, {"a": MODEL})
    )
    assert body_limit(replace(SETTINGS, max_body_bytes=2_000), {"large": large}) == 2_000


def test_each_image_has_its_own_seed_class_and_step_count():
    request = read({"seeds": [7, 2, 7], "labels": ["Bag", None, 1], "steps": [4, 1, 2]}).request
    assert (request.seeds, request.labels[0], request.labels[2]) == ((7, 2, 7), 0, 1)
    assert request.labels[1] == read({"seed": 2}).request.labels[0], "a label that is null is drawn as ever"
    assert [request.levels(image) for image in range(3)] == [LEVELS[4], LEVELS[1], LEVELS[2]]
    assert (request.sigmas, request.steps, request.calls, request.total_rows) == (LEVELS[4], 4, 4, 7)
    edit = read({"image": PICTURE, "strength": 0.5, "steps": [4, 2]}).request
    assert edit.schedules == (LEVELS[4][-2:], LEVELS[2][-1:])
    assert read({"steps": [2, 2]}).request.schedules == () and read({"steps": [2, 2]}).request.images == 2


def test_between_two_seeds_all_images_have_the_first_and_their_own_mix():
    request = read({"seed": 7, "seed_to": 9, "n": 3}).request
    assert (request.seeds, len(set(request.labels))) == ((7, 7, 7), 1)
    assert request.blends == ((9, 0.0), (9, 0.5), (9, 1.0))
    assert read({"seed": 2**63 - 1, "seed_to": 9, "n": 64}).request.seeds == (2**63 - 1,) * 64
    assert read({"seed_to": 9, "mix": [0.25, 1]}).request.blends == ((9, 0.25), (9, 1.0))
    assert read({"seed_to": 9, "mix": 0.25, "n": 2}).request.blends == ((9, 0.25), (9, 0.25))
    assert (read({"seed_to": 9}).request.blends, read({"seed": 9}).request.blends) == (((9, 0.5),), ())
