"""In a proxy of Ray Serve: what a client sees of replicas that die, played by an ASGI application."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.hosts.ray_replay import (
    ALL_KEPT_BYTES,
    KEPT_BYTES,
    MODEL_HEADER,
    PROBE,
    Replays,
    middlewares,
    model_of,
)

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"traceparent", b"00-x"), (b"x-request-id", b"me")]}
EVENTS = {**HEAD, "headers": [*HEAD["headers"], (b"content-type", b"text/event-stream; charset=utf-8")]}
GENERATE = b'{"seed": 7, "model": "tiny"}'
Play = Callable[[Any, Any, Any], Awaitable[None]]


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def refusal(status: int) -> dict[str, Any]:
    """The head of an answer that Ray's proxy makes itself."""
    return {"type": "http.response.start", "status": status, "headers": [(b"x-request-id", b"ray")]}


async def body_of(receive: Any) -> bytes:
    """What a replica reads."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


@dataclass
class Proxy:
    """Ray's proxy: attempts plays one replica for each time that a request is handed to it."""

    attempts: Sequence[Sequence[Any]]
    seen: list[bytes] = field(default_factory=list)  # bodies
    scopes: list[Any] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        scope["headers"].append((b"x-added", b"by Ray"))
        self.seen.append(await body_of(receive))
        for message in self.attempts[len(self.seen) - 1]:
            await send(message)


def ask(app: Any, *bodies: bytes, path: str = "/v1/generate", leaves: bool = False) -> list[Any]:
    """What is sent to the client of a request whose body comes in these parts."""
    sent: list[Any] = []
    waiting = [{"type": "http.request", "body": body, "more_body": True} for body in bodies or (GENERATE,)]
    waiting[-1]["more_body"] = False

    async def receive() -> Any:
        if waiting:
            return waiting.pop(0)
        if leaves:
            return {"type": "http.disconnect"}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": "POST", "headers": [(b"x-request-id", b"me")]}
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))
    return sent


def code(sent: list[Any]) -> tuple[int, str]:
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]


def test_an_answer_passes_as_it_is_with_one_request_id():
    proxy = Proxy([[{**HEAD, "headers": [*HEAD["headers"], (b"X-Request-ID", b"me")]}, part(b"PNG")]])
    head, body = ask(Replays(proxy))
    assert (head["headers"], body) == (HEAD["headers"], part(b"PNG"))


@pytest.mark.parametrize("before", [[], [HEAD]], ids=["nothing", "the head"])
def test_a_request_whose_replica_dies_is_made_again_with_the_same_body(before: list[Any]):
    proxy = Proxy([before, [HEAD, part(b"PNG")]])
    head, body = ask(Replays(proxy), GENERATE[:9], GENERATE[9:])
    assert proxy.seen == [GENERATE, GENERATE] and body == part(b"PNG")
    assert dict(head["headers"])[b"x-replays"] == b"1"
    assert [scope["headers"].count((b"x-added", b"by Ray")) for scope in proxy.scopes] == [1, 1]


def test_a_request_that_has_seen_two_replicas_die_is_refused():
    proxy = Proxy([[], []])
    sent = ask(Replays(proxy))
    assert code(sent) == (503, "worker_lost") and len(proxy.seen) == 2
    assert dict(sent[0]["headers"])[b"retry-after"] == b"1" and dict(sent[0]["headers"])[b"x-request-id"] == b"me"


@pytest.mark.parametrize("status", [404, 408, 503])
def test_what_ray_refuses_is_refused_in_our_words_and_not_asked_again(status: int):
    proxy = Proxy([[refusal(status), part(b"Request 1 timed out")]])
    assert code(ask(Replays(proxy))) == (503, "worker_lost") and len(proxy.seen) == 1


def test_the_open_inference_protocol_has_its_own_form_of_errors():
    sent = ask(Replays(Proxy([[], []])), path="/v2/models/tiny/infer")
    assert isinstance(json.loads(sent[1]["body"])["error"], str)


def test_a_stream_that_is_cut_off_ends_with_an_error_event():
    sent = ask(Replays(Proxy([[EVENTS, part(b"event: preview\n\n", more=True)]])))
    assert sent[1]["body"].startswith(b"event: preview") and not sent[-1].get("more_body")
    name, data = sent[-1]["body"].decode().split("\n")[:2]
    assert name == "event: error" and json.loads(data.removeprefix("data: "))["error"]["code"] == "worker_lost"


def test_another_answer_that_is_cut_off_ends_the_connection():
    with pytest.raises(ConnectionError):
        ask(Replays(Proxy([[HEAD, part(b"half", more=True)]])))


def test_nothing_is_made_again_for_a_client_that_has_left():
    async def watching(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        asked.append(scope)

    asked: list[Any] = []
    assert ask(Replays(watching), leaves=True) == [] and len(asked) == 1


@pytest.mark.parametrize("held", [0, ALL_KEPT_BYTES], ids=["a long body", "a full proxy"])
def test_a_body_that_is_not_kept_is_passed_on_whole_and_refused_when_its_replica_dies(held: int):
    bodies = [b"a", b"b" * (KEPT_BYTES if held == 0 else 1), b"c"]
    answered, dying = Proxy([[HEAD, part(b"PNG")]]), Proxy([[]])
    for proxy in (answered, dying):
        replays = Replays(proxy)
        replays.kept_bytes = held
        sent = ask(replays, *bodies)
        assert proxy.seen == [b"".join(bodies)] and replays.kept_bytes == held
        assert (sent[-1] == part(b"PNG")) if proxy is answered else (code(sent) == (503, "worker_lost"))


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/generate", GENERATE, "tiny"),
        ("/v1/generate", b'{"seed": 7}', ""),
        ("/v1/generate", b'{"model": null}', ""),
        ("/v1/generate", b'{"model": "a b\\r\\nx: y"}', ""),
        ("/v1/generate", b'{"model": 3}', ""),
        ("/v1/generate", b"[1]", ""),
        ("/v1/images/edits", b"--boundary\r\n", ""),
        ("/v2/models/tiny/infer", b"\x00", "tiny"),
    ],
)
def test_the_model_of_a_request(path: str, body: bytes, model: str):
    assert model_of(path, body) == model


def test_the_model_is_told_to_the_router_and_the_client_cannot_tell_it_another():
    proxy = Proxy([[HEAD, part(b"PNG")]])
    ask(Replays(proxy))
    assert (MODEL_HEADER, b"tiny") in proxy.scopes[0]["headers"]


def test_the_probe_is_answered_by_the_proxy_and_rays_own_paths_are_left_to_it():
    proxy = Proxy([[refusal(200), part(b"success")]])
    (made,) = middlewares()
    wrapped: Any = made.cls
    assert ask(wrapped(proxy), path=PROBE)[0]["status"] == 200 and not proxy.seen
    assert ask(wrapped(proxy), path="/-/healthz") == [refusal(200), part(b"success")]
