"""What a route is, and the headers that answers carry: one table each, read by the app, metrics, CORS and schema."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from server.scheduler.refusal import Kind

Answer = Callable[[Request], Awaitable[Response]]
Method = Literal["GET", "POST"]
MODEL_VERSION = "1"  # of each model, in the Open Inference Protocol


@dataclass(frozen=True)
class Route:
    """One path. GET answers HEAD, too."""

    path: str
    method: Method
    answer: Answer
    summary: str
    operation: Mapping[str, Any] = field(default_factory=dict)  # of the OpenAPI document, beyond the summary
    refusals: Sequence[Kind] = ()  # that this route raises, beyond those of every route
    makes_images: bool = False  # counted in the metrics of image requests
    keyless: bool = False  # answers without an API key
    any_host: bool = False  # asked by address: probes
    quiet: bool = False  # logged only when it fails

    @property
    def methods(self) -> tuple[str, ...]:
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


def error_texts(path: str) -> bool:
    """Whether errors are {"error": MESSAGE}, as in the Open Inference Protocol: at each of its paths, routes or not."""
    return path == "/v2" or path.startswith("/v2/")


def by_path(routes: Sequence[Route]) -> dict[str, Route]:
    """Raises ValueError where two routes share a path."""
    found = {route.path: route for route in routes}
    if len(found) < len(routes):
        raise ValueError(f"two routes share a path: {sorted(route.path for route in routes)}")
    return found


@dataclass(frozen=True)
class Header:
    """A response header of ours."""

    kind: Literal["integer", "string"]
    description: str
    always: bool = True  # on every answer of the kind that its table names


IMAGE_HEADERS: Mapping[str, Header] = {
    "X-Seed": Header("integer", "Seed of the first image."),
    "X-Steps": Header("integer", "The step count whose levels were used."),
    "X-Calls": Header("integer", "Network calls per image: X-Steps, or fewer with an image to begin at."),
    "X-Label": Header("integer", "Class index of the image, where one image is answered.", always=False),
    "X-Log-Weight": Header(
        "string",
        "Where log_weight is asked for: log p_prior - log p_posterior of each image, with commas between.",
        always=False,
    ),
    "X-Mode": Header("string", "fast or exact."),
    "X-Model": Header("string", "The model that made the images."),
    "X-Noise-Version": Header("integer", "Version of the map from seeds to noise."),
    "Server-Timing": Header(
        "string", "Milliseconds in the queue, the engine and the encoder; not of a stream.", always=False
    ),
}
EVERY_HEADERS: Mapping[str, Header] = {  # on answers of any route
    "X-Request-Id": Header(
        "string", "The client's own id of the request if it sent one of at most 128 letters, digits, . _ -"
    ),
    "traceparent": Header("string", "The server's place in the client's trace (W3C Trace Context)."),
    "Retry-After": Header("integer", "Seconds after which the same request may succeed.", always=False),
}
HEADER_LENGTH = "Inference-Header-Content-Length"
TENSOR_HEADERS: Mapping[str, Header] = {  # on answers of the Open Inference Protocol
    HEADER_LENGTH: Header("integer", "Bytes of the JSON, where binary data follows it.", always=False),
}
EXPOSED_HEADERS = (*EVERY_HEADERS, *IMAGE_HEADERS, *TENSOR_HEADERS)
PRIORITY_HEADER = "X-Priority"  # request header of both dialects; a field of the body comes before it
EXTRA_HEADERS: Mapping[str, str] = {  # request headers -> fields of the OpenAI dialect, for gateways that drop those
    "X-Seed": "seed",
    "X-Steps": "num_inference_steps",
    "X-Label": "label",
    "X-Strength": "strength",
    PRIORITY_HEADER: "priority",
}
# What OpenAI's package for JavaScript adds to its requests; no effect here.
OPENAI_HEADERS = (
    "OpenAI-Organization", "OpenAI-Project", "X-Stainless-Arch", "X-Stainless-Lang", "X-Stainless-OS",
    "X-Stainless-Package-Version", "X-Stainless-Retry-Count", "X-Stainless-Runtime", "X-Stainless-Runtime-Version",
    "X-Stainless-Timeout",
)  # fmt: skip
REQUEST_HEADERS = (
    "Accept", "Authorization", "Content-Type", "X-API-Key", "X-Request-Id", "traceparent", "tracestate",
    *EXTRA_HEADERS, HEADER_LENGTH, *OPENAI_HEADERS,
)  # fmt: skip
