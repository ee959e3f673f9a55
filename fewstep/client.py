"""A client of the server, blocking (`Client`) and for asyncio (`AsyncClient`): images come as numpy arrays.

    with Client("http://127.0.0.1:8000") as client:
        made = client.generate(seeds=[7, 8], label="Ankle boot", steps=4)
        made.pixels  # uint8 [2, 32, 32, 1]

Both wait and ask again when the server is full (429) or not ready (503), as long as its Retry-After says, and raise
ClientError for every other failure. httpx carries the requests; it comes with the extra [client].
"""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from fewstep.extras import explain
from fewstep.pixels import Pixels, encode

try:
    import httpx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"fewstep.client cannot run. {explain(error)}", name=error.name) from None

URL = "http://127.0.0.1:8000"
CONNECT_S = 10.0
BUSY = (429, 503)  # what a later request may not meet again
EVENTS = "text/event-stream"


class ClientError(Exception):
    """Why there are no images. status: of HTTP; 0 where no answer came, or within a stream. code: one word for
    programs, such as "queue_full". param: the field it is about, if any."""

    def __init__(self, message: str, *, status: int = 0, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param


@dataclass(frozen=True)
class Image:
    """One image. label, class_name: None where the model has none. log_weight: None unless it was asked for."""

    pixels: Pixels  # uint8 [H, W, C]
    seed: int
    label: int | None
    class_name: str | None
    calls: int  # of the network
    log_weight: float | None = None  # log p_prior - log p_posterior of its steps


@dataclass(frozen=True)
class Images:
    """The images of a request, in its order. timings_ms: in the queue, the engine and the encoder."""

    images: tuple[Image, ...]
    model: str
    steps: int
    strength: float | None
    noise_version: int
    mode: str
    timings_ms: Mapping[str, float]

    @property
    def pixels(self) -> Pixels:
        """uint8 [n, H, W, C]."""
        return np.stack([image.pixels for image in self.images])

    @property
    def seeds(self) -> list[int]:
        return [image.seed for image in self.images]


@dataclass(frozen=True)
class Preview:
    """The denoised image of a network call."""

    image: int  # its place in the request, from 0
    seed: int
    call: int  # 1 to `calls`, where the image is finished
    calls: int
    pixels: Pixels  # uint8 [H, W, C]


@dataclass(frozen=True)
class Progress:
    """A network call has been made whose denoised image was not asked for."""

    image: int  # its place in the request, from 0
    seed: int
    call: int  # from 1, less than `calls`
    calls: int


@dataclass(frozen=True)
class Model:
    """What the server says of a model."""

    id: str
    resolution: int
    channels: int
    classes: int
    class_names: tuple[str, ...]
    steps: tuple[int, ...]  # that it has levels for
    max_images: int  # of a request
    edits: bool  # whether images may begin at a picture
    mode: str
    noise_version: int
    checkpoint: str


class Wanted(TypedDict, total=False):
    """The fields of POST /v1/generate (docs/api.md); None means absent.

    image: what the images begin at: uint8 [H, W] or [H, W, C], or the bytes of a PNG, JPEG or WebP file. mask: what is
    made again: bool or uint8 [H, W], or such a file. upscale: what a model for it enlarges, as image. previews: of a
    stream alone: how many calls of each image come as Preview, the others as Progress; 0 to 7.
    """

    model: str | None
    n: int | None
    seed: int | None
    seeds: list[int] | None
    seed_to: int | None
    mix: float | list[float] | None
    label: int | str | None
    labels: list[int | str | None] | None
    steps: int | list[int] | None
    sigmas: list[float] | None
    guidance: float | list[float] | None
    log_weight: bool | None
    upscale: Pixels | bytes | None
    image: Pixels | bytes | None
    mask: NDArray[np.bool_] | Pixels | bytes | None
    strength: float | None
    previews: int | None
    timeout_s: float | None
    priority: str | None  # "interactive" or "batch"


@dataclass(frozen=True)
class Patience:
    """How a client waits. timeout_s: for each part of an answer. retries: of a busy server, after the seconds that it
    names, or 0.5, 1, 2, ...; a wait of more than longest_wait_s is not begun."""

    timeout_s: float = 90.0  # above the server's own 60
    retries: int = 2
    longest_wait_s: float = 60.0

    def wait_s(self, answer: httpx.Response, attempt: int) -> float | None:
        """Seconds until the next attempt; None: this answer is the last. attempt: 0 for the first."""
        if answer.status_code not in BUSY or attempt >= self.retries:
            return None
        named = answer.headers.get("retry-after", "")
        wait_s = float(named) if named.isascii() and named.isdecimal() else 0.5 * 2**attempt
        return wait_s if wait_s <= self.longest_wait_s else None


class Client:
    """Blocking. transport: another one of httpx, such as for tests."""

    def __init__(
        self, url: str = URL, api_key: str | None = None, *, patience: Patience = Patience(),
        transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        self.patience = patience
        self.http = httpx.Client(transport=transport, **_options(url, api_key, patience))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.http.close()

    def generate(self, **wanted: Unpack[Wanted]) -> Images:
        """Raises ClientError."""
        return _images(self._send("POST", "/v1/generate", _body(wanted)).json())

    def edit(self, image: Pixels | bytes, /, **wanted: Unpack[Wanted]) -> Images:
        """Images that begin at a picture. Raises ClientError."""
        return self.generate(**{**wanted, "image": image})

    def stream(self, **wanted: Unpack[Wanted]) -> Iterator[Preview | Progress | Images]:
        """The denoised image of each network call once it is made, or of as many as `previews` says, and last all
        images. Raises ClientError."""
        request = self.http.build_request("POST", "/v1/generate", **_streamed(wanted))
        answer = self._answer(request, stream=True)
        try:
            yield from filter(None, map(_event, _messages(answer.iter_lines())))
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        finally:
            answer.close()

    def models(self) -> tuple[Model, ...]:
        """The first is the default. Raises ClientError."""
        return tuple(map(_model, self._send("GET", "/v1/models").json()["data"]))

    def health(self) -> bool:
        """Whether a request would be served now. Raises ClientError only where no server answers."""
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.HTTPError as error:
            raise _unreachable(error) from error

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        return self._answer(self.http.build_request(method, path, json=body, headers={"Accept": "application/json"}))

    def _answer(self, request: httpx.Request, stream: bool = False) -> httpx.Response:
        """The first answer that is no reason to wait. Raises ClientError for an error."""
        attempt = 0
        while True:
            try:
                answer = self.http.send(request, stream=stream)
                if not answer.is_success:
                    answer.read()
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
            wait_s = self.patience.wait_s(answer, attempt)
            if wait_s is None:
                return _checked(answer)
            time.sleep(wait_s)
            attempt += 1


class AsyncClient:
    """The same for asyncio."""

    def __init__(
        self, url: str = URL, api_key: str | None = None, *, patience: Patience = Patience(),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self.patience = patience
        self.http = httpx.AsyncClient(transport=transport, **_options(url, api_key, patience))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.http.aclose()

    async def generate(self, **wanted: Unpack[Wanted]) -> Images:
        """Raises ClientError."""
        return _images((await self._send("POST", "/v1/generate", _body(wanted))).json())

    async def edit(self, image: Pixels | bytes, /, **wanted: Unpack[Wanted]) -> Images:
        """Images that begin at a picture. Raises ClientError."""
        return await self.generate(**{**wanted, "image": image})

    async def stream(self, **wanted: Unpack[Wanted]) -> AsyncIterator[Preview | Progress | Images]:
        """The denoised image of each network call once it is made, or of as many as `previews` says, and last all
        images. Raises ClientError."""
        request = self.http.build_request("POST", "/v1/generate", **_streamed(wanted))
        answer = await self._answer(request, stream=True)
        lines: list[str] = []
        try:
            async for line in answer.aiter_lines():
                lines.append(line)
                if not line:
                    for event in filter(None, map(_event, _messages(lines))):
                        yield event
                    lines.clear()
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        finally:
            await answer.aclose()

    async def models(self) -> tuple[Model, ...]:
        """The first is the default. Raises ClientError."""
        return tuple(map(_model, (await self._send("GET", "/v1/models")).json()["data"]))

    async def health(self) -> bool:
        """Whether a request would be served now. Raises ClientError only where no server answers."""
        try:
            return (await self.http.get("/readyz")).status_code == 200
        except httpx.HTTPError as error:
            raise _unreachable(error) from error

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        request = self.http.build_request(method, path, json=body, headers={"Accept": "application/json"})
        return await self._answer(request)

    async def _answer(self, request: httpx.Request, stream: bool = False) -> httpx.Response:
        """The first answer that is no reason to wait. Raises ClientError for an error."""
        attempt = 0
        while True:
            try:
                answer = await self.http.send(request, stream=stream)
                if not answer.is_success:
                    await answer.aread()
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
            wait_s = self.patience.wait_s(answer, attempt)
            if wait_s is None:
                return _checked(answer)
            await asyncio.sleep(wait_s)
            attempt += 1


def _options(url: str, api_key: str | None, patience: Patience) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(patience.timeout_s, connect=CONNECT_S)
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout}


def _body(wanted: Wanted) -> dict[str, Any]:
    """The JSON of a request, whose images come as arrays. Raises ClientError for what JSON does not hold."""
    body: dict[str, Any] = {}
    for name, value in wanted.items():
        if value is None:
            continue
        if name in ("image", "mask", "upscale"):
            body[name] = base64.b64encode(_file(name, value)).decode()
            continue
        try:
            body[name] = json.loads(json.dumps(value, allow_nan=False, default=_plain))
        except (TypeError, ValueError) as error:
            message = f"{name} must be numbers, texts or lists of them, not {value!r}: {error}"
            raise ClientError(message, code="wrong_type", param=name) from error
    return {**body, "format": "npy"}


def _plain(value: Any) -> Any:
    """A number or an array of numpy's as Python's own. Raises TypeError for anything else."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"JSON has no {type(value).__name__}")


def _streamed(wanted: Wanted) -> dict[str, Any]:
    return {"json": {**_body(wanted), "stream": True}, "headers": {"Accept": EVENTS}}


def _file(name: str, picture: Any) -> bytes:
    """A picture as a file. Raises ClientError for what is none."""
    if isinstance(picture, bytes):
        return picture
    given = np.asarray(picture)
    pixels = np.where(given, np.uint8(255), np.uint8(0)) if given.dtype == np.bool_ else given
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
        allowed = "the bytes of a file, or uint8 [H, W] or [H, W, C] with 1, 3 or 4 channels (a mask may be bool)"
        message = f"{name} must be {allowed}, not {given.dtype} {list(given.shape)}"
        raise ClientError(message, code="invalid_image", param=name)
    return encode(np.ascontiguousarray(pixels), "png")


def _pixels(text: str) -> Pixels:
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def _images(body: Mapping[str, Any]) -> Images:
    made = tuple(
        Image(
            _pixels(each["b64_json"]),
            each["seed"],
            each["label"],
            each["class_name"],
            each["calls"],
            each.get("log_weight"),
        )
        for each in body["data"]
    )
    rest = {field.name: body[field.name] for field in fields(Images) if field.name != "images"}
    return Images(made, **rest)


def _model(entry: Mapping[str, Any]) -> Model:
    """What else the server says of it is left out."""
    told = {field.name: entry[field.name] for field in fields(Model)}
    return Model(**{**told, "class_names": tuple(told["class_names"]), "steps": tuple(told["steps"])})


def _messages(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """The events of a stream (WHATWG HTML, section 9.2): their names, and what their data hold as JSON."""
    name, data = "", ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = value
        elif not line and data:
            yield name, json.loads(data)
            name, data = "", ""


def _event(message: tuple[str, Any]) -> Preview | Progress | Images | None:
    """None: an event that this client does not know. Raises ClientError for an error."""
    name, data = message
    if name == "error":
        raise _error_of(data["error"], 0)
    if name in ("preview", "image"):
        return Preview(data["image"], data["seed"], data["call"], data["calls"], _pixels(data["b64_json"]))
    if name == "progress":
        return Progress(data["image"], data["seed"], data["call"], data["calls"])
    return _images(data) if name == "images" else None


def _checked(answer: httpx.Response) -> httpx.Response:
    """The answer. Raises ClientError for an error."""
    if answer.is_success:
        return answer
    try:
        error = answer.json()["error"]
        raise _error_of(error, answer.status_code)
    except (ValueError, KeyError, TypeError):  # a proxy's
        message = f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase} and no error of ours"
        raise ClientError(message, status=answer.status_code, code="unknown_answer") from None


def _error_of(error: Mapping[str, Any], status: int) -> ClientError:
    return ClientError(error["message"], status=status, code=error["code"], param=error["param"])


def _unreachable(error: httpx.HTTPError) -> ClientError:
    code = "timeout" if isinstance(error, httpx.TimeoutException) else "unreachable"
    return ClientError(f"{error.request.url} gave no answer: {error or type(error).__name__}", code=code)
