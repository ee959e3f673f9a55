"""The Open Inference Protocol, version 2, with its binary tensor extension: /v2. Seeds go in, pixels come out.

The specification is KServe's; clients of Triton Inference Server speak it. Errors are {"error": MESSAGE}.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from export.manifest import Manifest, plain_name
from fewstep import __version__
from fewstep.conditions import GUIDANCE, LOW
from fewstep.pixels import from_pixels
from server.http.answers import image_headers, made_of
from server.http.dialects.inference_schema import (
    BINARY,
    UPSCALE,
    InferBody,
    infer_operation,
    inputs_of,
    metadata_body,
    metadata_operation,
)
from server.http.dialects.inference_tensors import Tensor, check_names, parameter_of, read_inputs
from server.http.dialects.native_schema import MIN_TIMEOUT_S
from server.http.edits import body_limit
from server.http.fields import decoded, only_value, validated
from server.http.openapi import JSON, answers
from server.http.routes import HEADER_LENGTH, MODEL_VERSION, PRIORITY_HEADER, Route
from server.http.service import IMAGE_REFUSALS, ImageService, Order, Pictures, made, read_body
from server.scheduler.events import Finished
from server.scheduler.refusal import invalid, shown
from server.scheduler.request import Given, ImageRequest
from server.scheduler.validate import check_range, check_taken, image_request
from server.settings.settings import Settings

OUTPUTS: Mapping[str, str] = {"image": "UINT8", "seed": "INT64", "label": "INT64"}
PARAMETERS = ("binary_data_output", "timeout", "priority")
OUTPUT_FIELDS = ("name", "parameters")
LENGTH = re.compile(r"[0-9]{1,18}")
TOO_MANY = "send large tensors as binary data"


@dataclass(frozen=True)
class Wanted:
    """An infer request that has been understood."""

    id: str | None
    order: Order
    binary: Mapping[str, bool]  # by output, in the order of the answer: whether it comes as binary data


@dataclass(frozen=True)
class InferenceDialect:
    """The routes of this API."""

    models: Mapping[str, Manifest]  # what is served, by name
    settings: Settings
    service: ImageService

    def routes(self) -> list[Route]:
        probe: dict[str, Any] = {"keyless": True, "any_host": True, "quiet": True}
        asked = answers(JSON, {"type": "object"})
        ready, served = "A request would be served.", "The name and version of the server."
        return [
            Route("/v2", "GET", self.server, served, {"operationId": "v2", **asked}),
            Route("/v2/health/live", "GET", self.live, "The process answers.", _named("v2_live"), **probe),
            Route("/v2/health/ready", "GET", self.ready, ready, _named("v2_ready"), ("unavailable",), **probe),
            *(route for name in self.models for route in self._of_model(name)),
        ]

    def _of_model(self, name: str) -> list[Route]:
        """Without a version, and with the one that there is: the protocol has both."""
        path = f"/v2/models/{name}"
        operation = plain_name(name)
        versioned = self._at(f"{path}/versions/{MODEL_VERSION}", name, f"{operation}_version_{MODEL_VERSION}")
        return [*self._at(path, name, operation), *versioned]

    def _at(self, path: str, name: str, operation: str) -> list[Route]:
        """The routes of a model below a path. operation: what ends the names of their operations."""
        ready = f"A request for {name} would be served."
        infer, metadata = infer_operation(operation), metadata_operation(operation)
        return [
            Route(path, "GET", partial(self.model, name), "The tensors of a model.", metadata),
            Route(
                f"{path}/ready", "GET", partial(self.ready, model=name), ready, _named(f"v2_ready_{operation}"),
                ("unavailable",), keyless=True, any_host=True, quiet=True,
            ),
            Route(
                f"{path}/infer", "POST", partial(self.infer, name), "Make images as tensors.", infer, IMAGE_REFUSALS,
                True,
            ),
        ]  # fmt: skip

    async def server(self, http: Request) -> Response:
        return _json({"name": "fewstep", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, http: Request) -> Response:
        return _json({"live": True})

    async def ready(self, http: Request, model: str | None = None) -> Response:
        self.service.check_ready(model)
        return _json({"ready": True})

    async def model(self, name: str, http: Request) -> Response:
        manifest = self.models[name]
        return _json(metadata_body(name, manifest, self.settings.backend or manifest.backend))

    async def infer(self, name: str, http: Request) -> Response:
        body = await read_body(http, body_limit(self.settings, self.models), self.settings.timeout_s)
        headers = http.headers
        wanted = self.read(name, body, only_value(headers, HEADER_LENGTH), only_value(headers, PRIORITY_HEADER))
        done = await made(self.service, wanted.order, http)
        request = wanted.order.request
        content, length = await made_of(done.images, lambda: answer(wanted, done, self.models[name]))
        headers = image_headers(request, self.models[name], self.settings, done)
        if length is None:
            return Response(content, media_type=JSON, headers=headers)
        return Response(content, media_type=BINARY, headers={**headers, HEADER_LENGTH: str(length)})

    def read(self, name: str, body: bytes, header_length: str | None, priority: str | None = None) -> Wanted:
        """What is asked for. Raises Refusal.

        header_length: of the JSON, where binary data follows it. priority: of the header.
        """
        text, binary = split(body, header_length)
        fields = validated(decoded(text, instead_of_many=TOO_MANY), InferBody)
        check_text("id", fields.id or "")
        parameters = fields.parameters or {}
        check_names("parameters", parameters, PARAMETERS, "parameters")
        binary_output = flag("binary_data_output", parameters.get("binary_data_output"), False, "parameters")
        inputs, manifest = fields.inputs or [], self.models[name]
        names = [tensor.get("name") for tensor in inputs]
        check_taken(manifest, GUIDANCE in names, (LOW,) if UPSCALE in names else ())
        tensors = read_inputs(inputs, binary, inputs_of(manifest))
        if "seed" not in tensors:
            message = "inputs must have the tensor seed, with one whole number for each image"
            raise invalid(message, code="missing_input", param="inputs")
        if not 1 <= len(tensors["seed"]) <= self.settings.max_images:
            message = f"seed must have 1 to {self.settings.max_images} values, one for each image, not"
            raise invalid(f"{message} {len(tensors['seed'])}", code="out_of_range", param="inputs")
        request = self._request(name, tensors, priority_of(parameters.get("priority"), priority))
        order = Order(request, self._timeout_s(parameters.get("timeout")), enlarged(tensors))
        return Wanted(fields.id, order, wanted_outputs(fields.outputs, binary_output))

    def _request(self, name: str, tensors: Mapping[str, Tensor], priority: str | None) -> ImageRequest:
        seeds = tensors["seed"].tolist()
        labels, steps, guidance = (each_of(tensors, each, len(seeds)) for each in ("label", "steps", GUIDANCE))
        labels = None if labels is None else [None if label == -1 else label for label in labels]
        return image_request(
            self.models[name], seeds=seeds, labels=labels, steps=steps, guidance=guidance, format="npy",
            priority=priority, pictured=(LOW,) if UPSCALE in tensors else (),
        )  # fmt: skip

    def _timeout_s(self, microseconds: Any) -> float:
        if microseconds is None:
            return self.settings.timeout_s
        if type(microseconds) is not int:
            message = f"timeout must be a whole number of microseconds, not {shown(microseconds)}"
            raise invalid(message, code="wrong_type", param="parameters")
        least, most = round(1e6 * MIN_TIMEOUT_S), int(1e6 * self.settings.timeout_s)
        check_range("timeout (in microseconds)", microseconds, least, most)
        return microseconds / 1e6


def each_of(tensors: Mapping[str, Tensor], name: str, images: int) -> list[Any] | None:
    """The value of each image; None where the tensor is absent. One value is that of all images."""
    if name not in tensors:
        return None
    values: list[Any] = tensors[name].tolist()
    return values * images if len(values) == 1 else values


def enlarged(tensors: Mapping[str, Tensor]) -> Callable[[], Pictures] | None:
    """What makes the pictures that are enlarged, once there is room for the request; None: there are none.

    Raises Refusal unless there is one for each image, or one for all.
    """
    pixels, images = tensors.get(UPSCALE), len(tensors["seed"])
    if pixels is None:
        return None
    if len(pixels) not in (1, images):
        message = f"upscale has {len(pixels)} pictures, but seed has {images}; give one for each image, or one for all"
        raise invalid(message, code="out_of_range", param="inputs")
    return lambda: Pictures(conditions=(Given.of(LOW, from_pixels(pixels)),))


def priority_of(parameter: Any, header: str | None) -> str | None:
    """The priority of a request; None: the default. Raises Refusal.

    parameter: one of our words, or Triton's whole number, where 1 is the highest priority and 0 the default: 0 and 1
    are interactive, all others batch. It comes before the header.
    """
    if parameter is None or isinstance(parameter, str):
        return header if parameter is None else parameter
    if type(parameter) is not int or not 0 <= parameter < 2**64:
        message = f"priority must be interactive, batch or a whole number from 0 to 2^64 - 1, not {shown(parameter)}"
        raise invalid(message, code="wrong_type", param="parameters")
    return "interactive" if parameter <= 1 else "batch"


def _named(name: str) -> dict[str, Any]:
    return {"operationId": name, **answers(JSON, {"type": "object"})}


def _json(body: Mapping[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type=JSON)


def split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a body and the binary data behind it. Raises Refusal."""
    if header_length is None:
        return body, b""
    length = int(header_length) if LENGTH.fullmatch(header_length) else -1
    if not 0 <= length <= len(body):
        message = f"{HEADER_LENGTH} must be the bytes of the JSON, at most {len(body)}, not {shown(header_length)}"
        raise invalid(message, code="out_of_range", param=HEADER_LENGTH)
    return body[:length], body[length:]


def check_text(name: str, text: str) -> None:
    """Raises Refusal for a text that cannot be answered, since UTF-8 has no surrogates (RFC 3629, section 3)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{name} must be Unicode text, without lone surrogates; not {shown(text)}"
        raise invalid(message, code="wrong_type", param=name) from error


def flag(name: str, value: Any, default: bool, param: str) -> bool:
    """default: of a value that is None. Raises Refusal."""
    if value is not None and type(value) is not bool:
        raise invalid(f"{name} must be true or false, not {shown(value)}", code="wrong_type", param=param)
    return default if value is None else value


def wanted_outputs(outputs: Sequence[Mapping[str, Any]] | None, binary: bool) -> dict[str, bool]:
    """Whether each output that is wanted comes as binary data. binary: where none says so itself. Raises Refusal."""
    if not outputs:
        return dict.fromkeys(OUTPUTS, binary)
    wanted: dict[str, bool] = {}
    for output in outputs:
        name = output.get("name")
        if not isinstance(name, str) or name not in OUTPUTS or name in wanted:
            message = f"an output is one of {', '.join(OUTPUTS)}, each once, not {shown(name)}"
            raise invalid(message, code="unknown_output", param="outputs")
        check_names(f"the output {name}", output, OUTPUT_FIELDS, "outputs")
        given = parameter_of(f"the output {name}", output, "binary_data", "outputs")
        wanted[name] = flag(f"binary_data of the output {name}", given, binary, "outputs")
    return wanted


def answer(wanted: Wanted, done: Finished, manifest: Manifest) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of the JSON where binary data follows it."""
    request = wanted.order.request
    size = manifest.resolution**2 * manifest.channels
    shape = [request.images, manifest.resolution, manifest.resolution, manifest.channels]
    pixels = b"".join(image[-size:] for image in done.images)  # an .npy file ends in the bytes of its array
    tensors: dict[str, Tensor] = {
        "image": np.frombuffer(pixels, np.uint8).reshape(shape),
        "seed": np.array(request.seeds, "<i8"),
        "label": np.array(request.labels, "<i8"),
    }
    outputs, tail = [], b""
    for name, binary in wanted.binary.items():
        tensor = tensors[name]
        output: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": list(tensor.shape)}
        if binary:
            data = tensor.tobytes()
            output["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            output["data"] = tensor.ravel().tolist()
        outputs.append(output)
    body = {"model_name": request.model, "model_version": "1", "outputs": outputs}
    content = msgspec.json.encode(body if wanted.id is None else {**body, "id": wanted.id})
    return (content + tail, len(content)) if any(wanted.binary.values()) else (content, None)
