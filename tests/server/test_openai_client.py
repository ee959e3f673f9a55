"""The `openai` package, unchanged, against a real server whose network the test controls."""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from fewstep.pixels import KEYWORD, text_of
from tests.server.conftest import DEADLINE_S
from tests.server.live import Live, live, of

KEY = "k" * 32
SLOTS = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Takes sixteen images at once, eight of which wait."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY, "utf-8")
    flags = ("--capacity", str(SLOTS), "--max-queue", str(SLOTS), "--max-images", "16", "--api-keys-file", str(keys))
    with live(tmp_path_factory.mktemp("plan"), *flags) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    server.plan()
    server.idle()
    with connected(server) as client:
        yield client
    server.plan()


def connected(server: Live, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{server.server.url}/v1", "api_key": KEY, "timeout": DEADLINE_S, **options})


def picture(entry: Any) -> bytes:
    return base64.b64decode(entry.b64_json)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_generated_images_are_those_of_our_own_api(client: openai.OpenAI, server: Live):
    made = client.images.generate(
        prompt="ankle boot", n=2, size="32x32", quality="high", extra_body={"seed": 7, "num_inference_steps": 2}
    )
    assert made.data is not None and made.usage is not None
    native = [server.image(of(seed, label="Ankle boot")) for seed in (7, 8)]
    assert [picture(entry) for entry in made.data] == native
    assert [entry.revised_prompt for entry in made.data] == ["Ankle boot"] * 2
    assert [(entry.model_extra or {})["seed"] for entry in made.data] == [7, 8]
    assert (made.output_format, made.size, made.background, made.usage.total_tokens) == ("png", "32x32", "opaque", 4)
    assert '"seed":8' in (text_of(native[1], KEYWORD) or "")


def test_our_own_fields_may_come_as_headers(client: openai.OpenAI, server: Live):
    made = client.images.generate(prompt="", extra_headers={"X-Seed": "9", "X-Steps": "2", "X-Label": "Bag"})
    assert made.data is not None and picture(made.data[0]) == server.image(of(9, label="Bag"))


@pytest.mark.parametrize(("name", "media"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")])
def test_other_formats_are_what_they_say(client: openai.OpenAI, name: Any, media: bytes):
    whole = client.images.generate(prompt="Bag", output_format=name, extra_body={"seed": 1})
    small = client.images.generate(prompt="Bag", output_format=name, output_compression=10, extra_body={"seed": 1})
    assert whole.data and small.data and whole.output_format == name
    assert picture(whole.data[0]).startswith(media) and len(picture(small.data[0])) < len(picture(whole.data[0]))


def test_a_url_leads_to_the_image_without_a_key(client: openai.OpenAI, server: Live):
    kept = client.images.generate(prompt="Bag", n=2, response_format="url", extra_body={"seed": 3})
    whole = client.images.generate(prompt="Bag", n=2, extra_body={"seed": 3})
    assert kept.data and whole.data and [entry.b64_json for entry in kept.data] == [None, None]
    with httpx.Client() as plain:
        for entry, expected in zip(kept.data, whole.data, strict=True):
            assert entry.url is not None and entry.url.startswith(f"{server.server.url}/v1/images/kept?image=")
            found, head = plain.get(entry.url), plain.head(entry.url)
            assert (found.status_code, found.headers["content-type"], found.content) == (
                200,
                "image/png",
                picture(expected),
            )
            assert (head.status_code, head.headers["content-length"], head.content) == (
                200,
                str(len(found.content)),
                b"",
            )
            changed = plain.get(entry.url.replace("image=", "image=0"))
            assert (changed.status_code, changed.json()["error"]["code"]) == (403, "wrong_signature")


def test_an_edit_changes_what_the_mask_leaves_transparent(client: openai.OpenAI, server: Live):
    boot = server.image(of(40, label="Ankle boot"))
    mask = np.full((32, 32, 4), 255, np.uint8)
    mask[16:, :, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    edited = client.images.edit(
        image=("boot.png", boot), mask=("mask.png", buffer.getvalue()), prompt="Sandal", extra_body={"seed": 7}
    )
    assert edited.data is not None
    before, after = pixels(boot), pixels(picture(edited.data[0]))
    np.testing.assert_array_equal(after[:16], before[:16])
    assert (after[16:] != before[16:]).any()
    varied = client.images.edit(image=[("boot.png", boot)], prompt="", extra_body={"strength": 0.25, "seed": 7})
    assert varied.data is not None and (pixels(picture(varied.data[0])) != before).any()


def test_a_partial_image_arrives_while_later_calls_have_not_been_made(client: openai.OpenAI, server: Live):
    whole = client.images.generate(prompt="Bag", extra_body={"seed": 3})
    assert whole.data is not None
    server.plan(calls=1)
    with client.images.generate(
        prompt="Bag", stream=True, partial_images=3, extra_body={"seed": 3}, response_format="b64_json"
    ) as events:
        first = next(iter(events))
        assert first.type == "image_generation.partial_image" and first.partial_image_index == 0
        server.plan()
        rest = list(events)
    assert [event.type for event in rest] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert picture(rest[-1]) == picture(whole.data[0])
    shapes = [pixels(picture(event)) for event in (first, *rest)]
    assert all(shape.shape == (32, 32) for shape in shapes) and (shapes[0] != shapes[-1]).any()


def test_an_edit_streams_its_own_events(client: openai.OpenAI, server: Live):
    boot = server.image(of(40, label="Ankle boot"))
    with client.images.edit(
        image=("boot.png", boot), prompt="Sandal", stream=True, partial_images=1, extra_body={"strength": 1}
    ) as events:
        assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_a_client_that_leaves_its_stream_frees_its_slots_within_one_step(client: openai.OpenAI, server: Live):
    server.plan(calls=1)
    before = len(server.calls())
    with client.images.generate(
        prompt="Bag", stream=True, partial_images=3, extra_body={"num_inference_steps": 8}
    ) as events:
        next(iter(events))
    server.admitted(0)  # the server knows that the client has left
    server.plan(calls=1)  # the call that had begun; another one would wait for ever
    server.idle()
    assert len(server.calls()) == before + 2


def test_a_failure_within_a_stream_is_an_error_of_the_package(client: openai.OpenAI, server: Live):
    server.plan(calls=1)
    with client.images.generate(prompt="", stream=True, partial_images=3) as events:
        pieces = iter(events)
        next(pieces)
        server.plan(network="RuntimeError")
        with pytest.raises(openai.APIError, match="the network call failed"):
            next(pieces)


def test_a_wrong_key_and_a_wrong_field_are_errors_of_the_package(client: openai.OpenAI, server: Live):
    with pytest.raises(openai.AuthenticationError, match="not one of this server's"):
        connected(server, api_key="wrong").images.generate(prompt="")
    with pytest.raises(openai.BadRequestError, match="Ankle boot") as caught:
        client.images.generate(prompt="boots")
    assert (caught.value.param, caught.value.code, caught.value.type) == (
        "prompt", "unknown_prompt", "invalid_request_error",
    )  # fmt: skip
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.images.generate(prompt="", model="gpt-image-2")


def test_a_full_server_is_asked_again_by_the_package_itself(client: openai.OpenAI, server: Live):
    statuses: list[int] = []

    def note(answer: httpx.Response) -> None:
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            server.plan()
            server.admitted(0)  # the images ahead are made before the package asks again

    server.plan(calls=0)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(server.post, of(1, n=16))
        server.admitted(16)
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(max_retries=0).images.generate(prompt="")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        with httpx.Client(event_hooks={"response": [note]}, timeout=DEADLINE_S) as http:
            made = connected(server, http_client=http).images.generate(prompt="", extra_body={"seed": 1})
        assert ahead.result(DEADLINE_S).status_code == 200
    assert statuses == [429, 200] and made.data


def test_the_package_lists_the_models(client: openai.OpenAI):
    (model,) = client.models.list()
    assert model.id == "fashion" and client.models.retrieve("fashion") == model
    with pytest.raises(openai.NotFoundError, match='there is no model "other" here; this server has fashion'):
        client.models.retrieve("other")
