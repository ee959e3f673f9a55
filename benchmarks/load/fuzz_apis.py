"""Requests to the OpenAI Images API, to the Open Inference Protocol and for events, made for one model, and what is
wrong with an answer.

Fields have allowed values and, one time in eight, others, so that about half of the requests are valid. What a valid
request is, only the server says: an answer of 200 must hold what it promises, any other must be a refusal in words.
"""

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
from hypothesis import strategies as st
from PIL import Image

from benchmarks.load.fuzz_pictures import PREFIX, pngs

REFUSED = (400, 404, 406, 413, 415)
TIMEOUT_S = 90
LAST_EVENTS = ("images", "image_generation.completed", "image_edit.completed")
ABSENT = object()


@dataclass(frozen=True)
class ApiRequest:
    """A POST. events: how many are read before the client leaves; None: all, or no stream is asked for."""

    path: str
    json: Any = None
    form: Sequence[tuple[str, tuple[str | None, bytes]]] = ()  # parts of a multipart body: name -> file name, content
    data: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    events: int | None = None

    def send(self, url: str, session: requests.Session) -> requests.Response:
        """The answer, of which no body has been read."""
        body: dict[str, Any] = {"files": self.form} if self.form else {"data": self.data} if self.data else {}
        if not body:
            body = {"data": json.dumps(self.json).encode()}
        return session.post(url + self.path, headers=self.headers, stream=True, timeout=TIMEOUT_S, **body)


def api_requests(model: Mapping[str, Any]) -> st.SearchStrategy[ApiRequest]:
    """model: its entry in /v1/models."""
    return st.one_of(
        _generations(model), _edits(model), _forms(model), _infer(model, binary=False), _infer(model, binary=True),
        _events(model),
    )  # fmt: skip


def _other() -> st.SearchStrategy[Any]:
    """Values that hardly any field allows."""
    odd = ["", " ", "yes", "2", "1e3", "-1", "\0", "é" * 40, "\ud800", [], {}, [[]], True, -1, 0, 1.5, 2**63, 10**40]
    numbers = st.one_of(st.integers(), st.floats())
    return st.one_of(st.sampled_from(odd), numbers, st.text(max_size=8), st.lists(numbers, max_size=3))


def _fields(allowed: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these fields, and rarely one of another name. Half of the objects have allowed values alone."""

    def chosen(odd: bool) -> st.SearchStrategy[dict[str, Any]]:
        def value(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
            return st.integers(0, 7).flatmap(lambda number: _other() if odd and not number else good)

        unknown = {"unknown": st.sampled_from([ABSENT] * 20 + ([1] if odd else []))}
        drawn = st.fixed_dictionaries({}, optional={name: value(good) for name, good in allowed.items()})
        return st.builds(lambda given, more: given | more, drawn, st.fixed_dictionaries(unknown)).map(_present)

    return st.booleans().flatmap(chosen)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not ABSENT}


def _images_fields(model: Mapping[str, Any]) -> dict[str, st.SearchStrategy[Any]]:
    size, names = f"{model['resolution']}x{model['resolution']}", model["class_names"]
    return {
        "prompt": st.sampled_from(["", *names, *(name.upper() for name in names), "3"]),
        "model": st.sampled_from([model["id"], None]),
        "n": st.integers(1, model["max_images"]),
        "size": st.sampled_from(["auto", size, None]),
        "output_format": st.sampled_from(["png", "jpeg", "webp"]),
        "output_compression": st.sampled_from([100, 100, 50]),
        "response_format": st.sampled_from(["b64_json", "url", None]),
        "stream": st.booleans(),
        "partial_images": st.integers(0, 3),
        "seed": st.integers(0, 2**63 - 300),
        "num_inference_steps": st.sampled_from(model["steps"]),
        "label": st.sampled_from([*range(model["classes"]), None]),
        "extra_body": st.sampled_from([{"seed": 7}, {"steps": model["steps"][0]}, {}]),
        "quality": st.sampled_from(["auto", "hd", None]),
        "user": st.text(max_size=5),
    }


def _left() -> st.SearchStrategy[int | None]:
    """After how many events a client leaves."""
    return st.sampled_from([None, None, 0, 1, 2])


def _headers() -> st.SearchStrategy[dict[str, str]]:
    seeds = st.sampled_from(["7", "x", "-1", "9" * 30])
    accept = st.sampled_from(["*/*", "application/json", "image/*;q=0", ";", "text/event-stream"])
    return st.fixed_dictionaries({}, optional={"X-Seed": seeds, "Accept": accept})


def _generations(model: Mapping[str, Any]) -> st.SearchStrategy[ApiRequest]:
    return st.builds(
        lambda fields, headers, events: ApiRequest("/v1/images/generations", fields, headers=headers, events=events),
        _fields(_images_fields(model)), _headers(), _left(),
    )  # fmt: skip


def _edits(model: Mapping[str, Any]) -> st.SearchStrategy[ApiRequest]:
    fields = {**_images_fields(model), "strength": st.sampled_from([0.25, 0.5, 1])}
    return st.builds(_form("/v1/images/edits"), _fields(fields), _file(), _files("image[]", "mask"), _left())


def _forms(model: Mapping[str, Any]) -> st.SearchStrategy[ApiRequest]:
    """Edits by /v1/generate, as streams."""
    return st.builds(_form("/v1/generate"), _streamed(model), _file(), _files("mask"), _left())


def _file() -> st.SearchStrategy[bytes]:
    """A PNG; rarely no picture, or cut off."""
    whole = pngs().map(lambda text: base64.b64decode(text.removeprefix(PREFIX)))
    return st.one_of(*[whole] * 6, whole.map(lambda png: png[: len(png) // 2]), st.binary(max_size=50))


def _files(*names: str) -> st.SearchStrategy[dict[str, bytes]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, _file()))


def _form(path: str) -> Callable[[dict[str, Any], bytes, dict[str, bytes], int | None], ApiRequest]:
    """What makes a form of fields, an image, other files, and how many events are read."""

    def request(fields: dict[str, Any], image: bytes, more: dict[str, bytes], events: int | None) -> ApiRequest:
        given = {name: value for name, value in fields.items() if value is not None}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
        form: list[tuple[str, tuple[str | None, bytes]]] = [("image", ("a.png", image))]
        form += [(name, ("b.png", content)) for name, content in more.items() if name == "mask" or not len(image) % 7]
        form += [(name, (None, text.encode("utf-8", "surrogatepass"))) for name, text in texts.items()]
        return ApiRequest(path, form=form, events=events)

    return request


def _infer(model: Mapping[str, Any], *, binary: bool) -> st.SearchStrategy[ApiRequest]:
    """binary: whether the seeds are binary data behind the JSON."""
    path = f"/v2/models/{model['id']}/infer"
    parameters = _fields({"binary_data_output": st.booleans(), "timeout": st.integers(10_000_000, 60_000_000)})
    outputs = st.lists(st.sampled_from(["image", "seed", "label"]), unique=True)

    def request(seeds: list[int], label: Any, more: dict[str, Any], named: list[str], cut: int) -> ApiRequest:
        tail = b"".join(seed.to_bytes(8, "little") for seed in seeds) if binary else b""
        seed: dict[str, Any] = {"name": "seed", "datatype": "INT64", "shape": [len(seeds)]}
        seed |= {"parameters": {"binary_data_size": len(tail)}} if binary else {"data": seeds}
        inputs = [seed, {"name": "label", "datatype": "INT32", "shape": [1], "data": [label]}]
        body = {"inputs": inputs, "parameters": more, "outputs": [{"name": name} for name in named]}
        text = json.dumps(body).encode()
        length = {"Inference-Header-Content-Length": str(len(text) - cut)} if binary else {}
        return ApiRequest(path, data=text + tail, headers=length)

    seeds = st.lists(st.integers(0, 2**63 - 1), min_size=0, max_size=model["max_images"] + 1)
    labels = st.one_of(*[st.integers(-1, model["classes"] - 1)] * 6, _other())
    return st.builds(request, seeds, labels, parameters, outputs, st.sampled_from([0] * 12 + [1, -1, 10**6]))


def _events(model: Mapping[str, Any]) -> st.SearchStrategy[ApiRequest]:
    """Streams of /v1/generate, whose clients may leave within them."""
    return st.builds(
        lambda fields, events: ApiRequest("/v1/generate", fields, events=events),
        _streamed(model, image=pngs(), mask=pngs()), _left(),
    )  # fmt: skip


def _streamed(model: Mapping[str, Any], **pictures: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Fields of /v1/generate, with a stream."""
    fields = {
        "n": st.integers(1, model["max_images"]),
        "seed": st.integers(0, 2**63 - 300),
        "seed_to": st.integers(0, 2**63 - 1),
        "steps": st.sampled_from(model["steps"]),
        "label": st.sampled_from([*range(model["classes"]), *model["class_names"]]),
        "format": st.sampled_from(["png", "webp", "jpeg", "npy"]),
        "strength": st.sampled_from([0.5, 1]),
        "previews": st.integers(0, 7),
    }
    return _fields({**fields, **pictures}).map(lambda given: {**given, "stream": True})


def wrong(request: ApiRequest, answer: requests.Response, url: str, session: requests.Session) -> str | None:
    """What is wrong with an answer, if anything; reads its body, or the events that the request's client waits for."""
    if answer.status_code != 200:
        return _wrong_refusal(request, answer)
    kind = answer.headers["content-type"].partition(";")[0]
    if kind == "text/event-stream":
        return _wrong_events(request, answer)
    if request.path.startswith("/v2/"):
        return None if _tensors(answer) else "the tensors are not those that the answer describes"
    if kind != "application/json":
        return f"an answer of {kind}"
    asked = answer.headers["x-seed"]
    data = answer.json()["data"]
    if not data or str(data[0]["seed"]) != asked:
        return "the first image is not that of X-Seed"
    for entry in data:
        content = base64.b64decode(entry["b64_json"]) if "b64_json" in entry else _fetched(entry["url"], url, session)
        if not _is_picture(content):
            return "an image is no picture"
    return None


def _wrong_refusal(request: ApiRequest, answer: requests.Response) -> str | None:
    """An error has the form of its API, whatever the request held."""
    if answer.status_code not in REFUSED:
        return f"status {answer.status_code}"
    try:
        error = answer.json()["error"]
        message = error if request.path.startswith("/v2/") else error["message"]
        shape = isinstance(error, str) or set(error) == {"message", "type", "param", "code"}
        return None if message and shape else "an error without words"
    except (ValueError, KeyError, TypeError):
        return "an error that is no JSON of its form"


def _wrong_events(request: ApiRequest, answer: requests.Response) -> str | None:
    names: list[str] = []
    for line in _lines(answer):
        if line.startswith(b"event: "):
            names.append(line[len(b"event: ") :].decode())
        if request.events is not None and len(names) >= request.events:
            return None  # the client leaves
    return None if names and names[-1] in LAST_EVENTS else f"a stream that ends in {names[-1:]}"


def _lines(answer: requests.Response) -> Iterator[bytes]:
    return answer.iter_lines(chunk_size=512)


def _tensors(answer: requests.Response) -> bool:
    """Whether the outputs have as much data as their shapes say."""
    length = answer.headers.get("Inference-Header-Content-Length")
    content = answer.content
    text, tail = (content, b"") if length is None else (content[: int(length)], content[int(length) :])
    binary = 0
    for output in json.loads(text)["outputs"]:
        values = 1
        for size in output["shape"]:
            values *= size
        bytes_each = {"UINT8": 1, "INT64": 8}[output["datatype"]]
        if "data" in output and len(output["data"]) != values:
            return False
        if "data" not in output:
            size = output["parameters"]["binary_data_size"]
            binary += size
            if size != values * bytes_each:
                return False
    return binary == len(tail)


def _fetched(address: str, url: str, session: requests.Session) -> bytes:
    """The image that a url of an answer leads to; nothing where it does not."""
    answer = session.get(url + address[address.index("/v1/") :], timeout=TIMEOUT_S)
    return answer.content if answer.status_code == 200 else b""


def _is_picture(content: bytes) -> bool:
    if content.startswith(b"\x93NUMPY"):
        return True
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
        return True
    except OSError:
        return False
