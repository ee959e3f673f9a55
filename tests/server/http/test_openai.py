"""OpenAI's Images API: what is taken, the sentence about what is not, and what a stream sends."""

import asyncio
import base64
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.datastructures import Headers

from fewstep.pixels import encode
from server.http.dialects.openai import FORM, Asked, OpenAIDialect, decode_files, with_extras
from server.http.dialects.openai_schema import ImagesBody
from server.http.fields import only_value
from server.http.pictures import decode_mask
from server.http.service import ImageService
from server.scheduler.events import Failed, Finished, Progress
from server.scheduler.refusal import Refusal
from server.settings.settings import Settings
from tests.server.fakes import LEVELS, manifest
from tests.server.in_process import Site, code_of, play

MODEL = replace(manifest(), class_names=("Bag", "Ankle boot", "Élan"))
NUMBERED = replace(manifest("numbered"), class_names=())
PLAIN = manifest("plain", classes=0)
MODELS = {each.name: each for each in (MODEL, NUMBERED, PLAIN)}
DIALECT = OpenAIDialect(MODELS, Settings({"tiny": Path("/nowhere")}), cast(ImageService, None))
PICTURE = encode(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), "png")


def read(data: Mapping[str, Any], headers: Mapping[str, str] | None = None, *files: str) -> Asked:
    pictures = {name: PICTURE for name in files} or None
    return DIALECT.read(data, Headers(headers or {}), pictures)


def test_a_full_request_is_taken_as_it_is():
    body = {
        "prompt": "ankle boot", "n": 3, "size": "8x8", "output_format": "webp", "output_compression": 40,
        "stream": True, "partial_images": 2, "seed": 7, "num_inference_steps": 8, "user": "me", "moderation": "low",
        "quality": "high", "background": "transparent", "response_format": "b64_json",
    }  # fmt: skip
    asked = read(body)
    request = asked.request
    assert (request.seeds, request.labels, request.steps, request.sigmas) == ((7, 8, 9), (1,) * 3, 8, LEVELS[8])
    assert (request.format, request.quality, request.previews) == ("webp", 40, "images")


def test_nothing_is_needed_and_null_means_absent():
    for data in ({}, dict.fromkeys(ImagesBody.model_fields), {"prompt": ""}):
        request = read(data).request
        assert (request.images, request.steps, request.format, request.quality) == (1, 4, "png", None)
        assert (request.model, request.previews, len(request.labels)) == ("tiny", "none", 1)


@pytest.mark.parametrize(
    ("model", "prompt", "label", "expected"),
    [
        ("tiny", " ANKLE boot\n", None, 1),
        ("tiny", "e\u0301lan", None, 2),
        ("tiny", "2", None, 2),
        ("tiny", "a prompt of a benchmark", "bag", 0),
        ("tiny", "Bag", 2, 2),
        ("tiny", "Bag", "2", 2),
        ("tiny", "0000000000000000002", None, 2),
        ("tiny", "Bag", "0" * 40 + "1", 1),
        ("tiny", "Bag", "0" * 40, 0),
        ("numbered", "2", None, 2),
        ("plain", "whatever is written here", None, -1),
    ],
)
def test_a_prompt_is_a_class_and_a_label_comes_before_it(model: str, prompt: str, label: Any, expected: int):
    assert read({"model": model, "prompt": prompt, "label": label}).request.labels == (expected,)


def test_the_priority_comes_from_the_body_or_a_header():
    asked = [read({}), read({}, {"x-priority": "batch"}), read({"priority": "interactive"}, {"x-priority": "batch"})]
    assert [each.request.priority for each in asked] == ["interactive", "batch", "interactive"]
    with pytest.raises(Refusal, match='priority must be one of interactive, batch, not "low"'):
        read({}, {"x-priority": "low"})


def test_a_header_that_comes_twice_with_two_values_is_refused():
    twice = Headers(raw=[(b"x-seed", b"1"), (b"x-seed", b"2")])
    with pytest.raises(Refusal, match='the header X-Seed comes with "1" and "2"; send it once'):
        only_value(twice, "X-Seed")
    with pytest.raises(Refusal, match="X-Seed comes with"):
        with_extras({}, twice)
    assert only_value(Headers(raw=[(b"x-seed", b"1")] * 2), "X-Seed") == "1" and only_value(twice, "X-Steps") is None


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_class_in_a_header_may_have_other_letters_than_ascii(encoding: str):
    label = Headers(raw=[(b"x-label", "\u00c9lan".encode(encoding))])
    assert DIALECT.read({}, label).request.labels == (2,)


def test_our_own_fields_come_from_the_body_then_from_extra_body_then_from_headers():
    headers = {"x-seed": "1", "x-steps": "2", "x-label": "Bag", "x-strength": "0.25"}
    request = read({}, headers, "image").request
    assert (request.seeds, request.steps, request.labels, request.calls) == ((1,), 2, (0,), 1)
    nested = {"extra_body": {"seed": 3, "num_inference_steps": 8, "label": None}}
    request = read(nested, headers, "image").request
    assert (request.seeds, request.steps, request.labels, request.calls) == ((3,), 8, (0,), 2)
    request = read({"seed": 5, "steps": 4, "strength": 1.0, **nested}, {}, "image").request
    assert (request.seeds, request.calls) == ((5,), 4)
    assert read({"steps": 3}, headers, "image").request.steps == 3
    assert read({"extra_body": {"steps": 5}}, headers, "image").request.steps == 5


WRONG: list[tuple[dict[str, Any], str, str, str]] = [
    ({"prompt": "boots"}, "prompt", "unknown_prompt", 'the nearest is "Ankle boot"; a prompt is one of Bag, Ankle'),
    ({"prompt": "7"}, "prompt", "unknown_prompt", "names no class of tiny"),
    ({"prompt": "1" + "0" * 40}, "prompt", "unknown_prompt", "names no class of tiny"),
    ({"label": "0" * 40 + "7"}, "label", "unknown_label", "has no class 7;"),
    ({"prompt": "x" * 32_000}, "prompt", "unknown_prompt", "names no class"),
    ({"prompt": "boot", "model": "numbered"}, "prompt", "unknown_prompt", "a number from 0 to 2"),
    ({"label": "boots"}, "label", "unknown_label", "no class"),
    ({"label": 0, "model": "plain"}, "label", "unknown_label", "has no classes"),
    ({"model": "gpt-image-2"}, "model", "model_not_found", "this server has tiny"),
    ({"n": 0}, "n", "out_of_range", "from 1 to 64, not 0"),
    ({"n": 65}, "n", "out_of_range", "from 1 to 64, not 65"),
    ({"size": "1024x1024"}, "size", "unsupported_size", "auto or 8x8"),
    ({"size": ""}, "size", "unsupported_size", "auto or 8x8"),
    ({"response_format": "url"}, "response_format", "unsupported_response_format", "keeps no images"),
    (
        {"response_format": "url", "stream": True},
        "response_format",
        "unsupported_response_format",
        "events of a stream",
    ),
    ({"output_format": "gif"}, "output_format", "unknown_output_format", "png, jpeg, webp"),
    ({"output_format": "png", "output_compression": 50}, "output_compression", "out_of_range", "100 with png"),
    ({"output_compression": 101}, "output_compression", "out_of_range", "at most 100"),
    ({"partial_images": 4, "stream": True}, "partial_images", "out_of_range", "at most 3"),
    ({"partial_images": 1}, "partial_images", "missing_stream", "needs stream: true"),
    ({"stream": "yes"}, "stream", "wrong_type", "true or false"),
    ({"strength": 0.5}, "strength", "missing_image", "/v1/images/edits"),
    ({"num_inference_steps": 9}, "steps", "out_of_range", "from 1 to 8, not 9"),
    ({"num_inference_steps": 8, "steps": 4}, "num_inference_steps", "conflict", "give one of them"),
    ({"seed": -1}, "seed", "out_of_range", "at least 0"),
    ({"extra_body": {"prompt": "Bag"}}, "extra_body", "unknown_field", "its fields are seed"),
    ({"extra_body": "x"}, "extra_body", "wrong_type", "an object"),
    ({"extra_body": {"seed": "x"}}, "seed", "wrong_type", "a whole number"),
    ({"promt": "Bag"}, "promt", "unknown_field", "is not a field"),
]


@pytest.mark.parametrize(("data", "param", "code", "words"), WRONG)
def test_what_is_wrong_is_named_in_a_sentence(data: dict[str, Any], param: str, code: str, words: str):
    with pytest.raises(Refusal) as caught:
        read(data)
    error = caught.value
    assert (error.param, error.code) == (param, code) and words in error.message, error.message


def test_a_wrong_header_is_named_by_its_field():
    with pytest.raises(Refusal, match="seed must be a whole number") as caught:
        read({}, {"x-seed": "seven"})
    assert caught.value.param == "seed"


# What the documentation of vLLM-Omni and the request class of SGLang list, with their defaults.
VLLM_OMNI = {
    "prompt": "", "model": "tiny", "n": 2, "size": "8x8", "response_format": "b64_json", "user": "u", "seed": 42,
    "negative_prompt": "blurry", "num_inference_steps": 8, "guidance_scale": 4.0, "true_cfg_scale": 4.0,
}  # fmt: skip
SGLANG = {
    "prompt": "bag", "model": "tiny", "n": 1, "quality": "auto", "response_format": "b64_json", "size": "8x8",
    "style": "vivid", "background": "auto", "output_format": None, "user": None, "num_inference_steps": None,
    "guidance_scale": None, "true_cfg_scale": None, "seed": 1024, "generator_device": "cuda", "negative_prompt": None,
    "output_quality": "default", "output_compression": None, "enable_teacache": False,
}  # fmt: skip


@pytest.mark.parametrize(("body", "seeds"), [(VLLM_OMNI, (42, 43)), (SGLANG, (1024,))])
def test_the_published_requests_of_other_servers_are_taken(body: dict[str, Any], seeds: tuple[int, ...]):
    assert read(body).request.seeds == seeds


def test_a_form_is_read_in_the_types_of_its_fields():
    fields = {"prompt": "2", "n": "2", "stream": "true", "partial_images": "1", "seed": "7", "strength": "1e0",
              "label": "1", "size": "8x8", "guidance_scale": "4.5"}  # fmt: skip
    request = httpx.Request("POST", "http://host", data=fields, files={"image[]": PICTURE, "mask_image": PICTURE})
    data, pictures = FORM.read(request.read(), request.headers["content-type"])
    assert data == {
        "prompt": "2", "n": 2, "stream": True, "partial_images": 1, "seed": 7, "strength": 1, "label": "1",
        "size": "8x8", "guidance_scale": 4.5,
    }  # fmt: skip
    assert pictures == {"image": PICTURE, "mask": PICTURE}
    asked = DIALECT.read(data, Headers({}), pictures)
    assert asked.edited and asked.request.labels == (1, 1) and asked.request.calls == 4
    edit = asked.order.decode().edit if asked.order.decode else None
    assert edit is not None and edit.known is not None


def read_form(fields: Mapping[str, str], files: Mapping[str, Any] | None = None) -> Asked:
    request = httpx.Request("POST", "http://host", data=fields, files={"image": PICTURE, **(files or {})})
    data, pictures = FORM.read(request.read(), request.headers["content-type"])
    return DIALECT.read(data, Headers({}), pictures)


@pytest.mark.parametrize(
    "fields",
    [
        {"extra_body": '{"seed": 7, "steps": 8, "label": "Bag", "strength": 0.5}'},
        {"extra_body[seed]": "7", "extra_body[num_inference_steps]": "8", "extra_body[label]": "0",
         "extra_body[strength]": "0.5"},
        {"extra_body": '{"seed": 7, "steps": 8}', "extra_body[label]": "Bag", "extra_body[strength]": "0.5"},
        {"extra_body[seed]": "8", "extra_body[steps]": "8", "extra_body[label]": "000", "seed": "7"},
    ],
)  # fmt: skip
def test_a_form_may_nest_our_own_fields(fields: dict[str, str]):
    request = read_form(fields).request
    assert (request.seeds, request.steps, request.labels, request.calls) == ((7,), 8, (0,), 4)


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"extra_body": "{"}, "extra_body", "wrong_type", 'an object, not "{"'),
        ({"extra_body": "[" * 50_000}, "extra_body", "wrong_type", "an object"),
        ({"extra_body": '{"seed": [' + "[]," * 60_000}, None, "malformed_json", "more than 100000 values or names"),
        ({"extra_body": "7"}, "extra_body", "wrong_type", "an object, not 7"),
        ({"extra_body": "7", "extra_body[seed]": "7"}, "extra_body", "wrong_type", "an object, not 7"),
        ({"extra_body": '{"seed": 7, "seed": 8}'}, None, "malformed_json", '"seed" more than once'),
        (
            {"extra_body": '{"seed": 7}', "extra_body[seed]": "7"},
            "extra_body[seed]",
            "malformed_form",
            "more than once",
        ),
        ({"extra_body[prompt]": "bag"}, "extra_body", "unknown_field", "its fields are seed"),
        ({"extra_body[]": "7"}, "extra_body", "unknown_field", "its fields are seed"),
        ({"extra_body[seed]": "x"}, "seed", "wrong_type", "a whole number"),
        ({"extra_body[seed": "7"}, "extra_body[seed", "unknown_field", "the fields are image, image[], mask,"),
        ({"stream": "maybe"}, "stream", "wrong_type", "true or false"),
    ],
)
def test_what_is_wrong_in_a_form_is_named_in_a_sentence(fields: Any, param: str | None, code: str, words: str):
    with pytest.raises(Refusal) as caught:
        read_form(fields)
    error = caught.value
    assert (error.param, error.code) == (param, code) and words in error.message, error.message


@pytest.mark.parametrize("name", ["photo", "image[0]", ""])
@pytest.mark.parametrize("content", [b"\x89PNG\xff", b"text"])
def test_an_unknown_part_of_a_form_is_named_and_the_form_s_fields_are_listed(name: str, content: bytes):
    with pytest.raises(
        Refusal, match=r"is not a field of this form; the fields are image, image\[\], mask, "
    ) as caught:
        read_form({}, {name: content})
    assert (caught.value.param, caught.value.code) == (name, "unknown_field") and "prompt" in caught.value.message


def test_true_and_false_in_a_form_are_read_in_any_case():
    assert read_form({"stream": "True", "enable_teacache": "FALSE"}).fields.stream is True
    assert read_form({"stream": "False"}).fields.stream is False


@pytest.mark.parametrize(("names", "param"), [(["image", "image[]"], "image"), (["image", "mask", "mask"], "mask")])
def test_a_form_with_a_picture_too_many_is_refused(names: list[str], param: str):
    request = httpx.Request("POST", "http://host", files=[(name, PICTURE) for name in names])
    with pytest.raises(Refusal, match="more than once") as caught:
        FORM.read(request.read(), request.headers["content-type"])
    assert (caught.value.code, caught.value.param) == ("malformed_form", param)


def png_of(pixels: np.ndarray, mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_mask_says_by_alpha_or_by_white_what_is_made_again():
    again = np.zeros((8, 8), bool)
    again[2:5, 1:7] = True
    alpha = np.dstack([np.full((8, 8, 3), 200, np.uint8), np.where(again, 0, 255).astype(np.uint8)])
    half = np.dstack([np.full((8, 8, 3), 200, np.uint8), np.where(again, 127, 128).astype(np.uint8)])
    white = np.where(again, 128, 127).astype(np.uint8)
    opaque = np.dstack([white, white, white, np.full((8, 8), 255, np.uint8)])
    for picture in (png_of(alpha, "RGBA"), png_of(half, "RGBA"), png_of(white, "L"), png_of(opaque, "RGBA")):
        np.testing.assert_array_equal(decode_mask(picture, 8), again)


def test_a_picture_that_is_none_is_refused_by_its_name():
    for name in ("image", "mask"):
        with pytest.raises(Refusal, match=f"{name} is not a PNG") as caught:
            decode_files({"image": PICTURE, name: b"GIF89a"}, MODEL)
        assert (caught.value.code, caught.value.param) == ("invalid_image", name)


GENERATIONS = "/v1/images/generations"


def post(site: Site, body: Mapping[str, Any]) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(site.ask("POST", GENERATIONS, json.dumps(body).encode()))


def events_of(content: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of server-sent events."""
    found = []
    for block in content.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def idle(site: Site) -> bool:
    return (site.pool.admission.images, site.pool.pending, site.pool.workers[0].backlog_s) == (0, {}, 0)


def test_an_answer_has_the_images_what_they_were_made_of_and_the_network_calls_as_usage():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        task = post(site, {"prompt": "coat", "n": 2, "seed": 5})
        submit = await worker.taken()
        assert submit.request.previews == "none"
        await worker.send(Finished(submit.id, "png", (b"ONE", b"TWO"), 0.001, 0.002, 0.0005))
        answer = await task
        body = answer.json()
        assert [base64.b64decode(entry["b64_json"]) for entry in body["data"]] == [b"ONE", b"TWO"]
        assert [(entry["seed"], entry["label"], entry["revised_prompt"]) for entry in body["data"]] == [
            (5, 2, "Coat"), (6, 2, "Coat"),
        ]  # fmt: skip
        assert (body["usage"]["total_tokens"], body["output_format"], body["size"]) == (8, "png", "8x8")
        assert (answer.headers["x-seed"], answer.headers["x-steps"]) == ("5", "4") and "server-timing" in answer.headers
        assert idle(site)

    play(scenario)


def test_a_stream_sends_the_calls_that_were_asked_for_and_then_every_image():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        task = post(site, {"stream": True, "partial_images": 2, "n": 2, "seed": 9, "output_format": "jpeg"})
        submit = await worker.taken()
        number, request = submit.id, submit.request
        assert (request.previews, request.format, request.quality) == ("images", "jpeg", None)
        assert [*request.previewed(0)] == [1, 2] and not request.reported(0), "the worker makes no other previews"
        for step in (1, 2):
            for image in (0, 1):
                await worker.send(Progress(number, image, step, 4, "jpeg", f"{image} after {step}".encode()))
        await worker.send(Progress(number, 1, 4, 4, "jpeg", b"TWO"))
        await worker.send(Finished(number, "jpeg", (b"ONE", b"TWO"), 0.0, 0.0))
        answer = await task
        assert answer.headers["content-type"].startswith("text/event-stream") and answer.headers["x-seed"] == "9"
        events = events_of(answer.content)
        assert all(name == data["type"] for name, data in events)
        partial = [(e["image_index"], e["partial_image_index"], base64.b64decode(e["b64_json"])) for _, e in events[:4]]
        assert partial == [(0, 0, b"0 after 1"), (1, 0, b"1 after 1"), (0, 1, b"0 after 2"), (1, 1, b"1 after 2")]
        assert [name for name, _ in events[4:]] == ["image_generation.completed"] * 2
        assert [base64.b64decode(data["b64_json"]) for _, data in events[4:]] == [b"TWO", b"ONE"]
        assert [(data["seed"], data["usage"]["output_tokens"]) for _, data in events[4:]] == [(10, 4), (9, 4)]
        assert {"size", "quality", "background", "output_format", "created_at"} < set(events[0][1])
        assert idle(site)
        page = site.metrics.render("")[0].decode()
        assert 'fewstep_images_total{model="tiny",steps="4"} 2.0' in page

    play(scenario)


def test_a_failure_ends_a_stream_in_an_error_event_and_counts_as_one():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        task = post(site, {"stream": True})
        submit = await worker.taken()
        await worker.send(Failed(submit.id, "failed", "network_error", "the network call failed"))
        answer = await task
        ((name, data),) = events_of(answer.content)
        assert (name, data["error"]["code"], data["error"]["type"]) == ("error", "network_error", "server_error")
        assert idle(site)
        page = site.metrics.render("")[0].decode()
        assert 'fewstep_requests_total{model="tiny",outcome="error"} 1.0' in page
        assert 'fewstep_rejected_total{reason="network_error"} 1.0' in page

    play(scenario)


def test_a_client_that_leaves_its_stream_frees_its_slots():
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        task = post(site, {"stream": True, "partial_images": 3})
        submit = await worker.taken()
        await worker.send(Progress(submit.id, 0, 1, 4, "png", b"x"))
        site.left.set()
        assert await worker.cancelled() == submit.id
        await task
        assert idle(site)
        assert 'fewstep_cancelled_total{stage="images"} 1.0' in site.metrics.render("")[0].decode()

    play(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_429_before_a_stream_begins(stream: bool):
    async def scenario(site: Site) -> None:
        worker = await site.warm()
        first = post(site, {"n": 5})
        submit = await worker.taken()
        answer = await post(site, {"stream": stream})
        assert (answer.status_code, code_of(answer)) == (429, "queue_full") and "retry-after" in answer.headers
        await worker.send(Finished(submit.id, "png", (b"x",) * 5, 0.0, 0.0))
        assert (await first).status_code == 200 and idle(site)

    play(scenario, capacity=4, max_queue=1, max_images=5)


def test_an_edit_without_a_picture_or_a_form_is_refused():
    async def scenario(site: Site) -> None:
        await site.warm()

        async def refused(body: bytes, media_type: str) -> tuple[int, str]:
            answer = await site.ask("POST", "/v1/images/edits", body, {"content-type": media_type})
            return answer.status_code, code_of(answer)

        assert await refused(b"{}", "application/json") == (415, "unsupported_media_type")
        form = httpx.Request("POST", "http://host", files={"mask": PICTURE})
        assert await refused(form.read(), form.headers["content-type"]) == (400, "missing_image")

    play(scenario)


def test_a_form_of_generations_is_sent_to_edits():
    async def scenario(site: Site) -> None:
        await site.warm()
        form = httpx.Request("POST", "http://host", files={"image": PICTURE})
        answer = await site.ask("POST", GENERATIONS, form.read(), {"content-type": form.headers["content-type"]})
        assert (answer.status_code, code_of(answer)) == (400, "malformed_json")
        assert "/v1/images/edits takes a form" in answer.json()["error"]["message"]

    play(scenario)
