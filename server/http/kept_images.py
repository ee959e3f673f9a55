"""Images that an answer names by url: signed, short-lived, in the memory of this process and nowhere else."""

import asyncio
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from fewstep.pixels import MEDIA_TYPES, Format
from server.http.openapi import Schema
from server.http.routes import Route
from server.scheduler.refusal import Refusal, invalid

PATH = "/v1/images/kept"
SIGNED = ("image", "expires", "signature")  # parameters of a url
HEADERS: Mapping[str, str] = {"X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True)
class Kept:
    """One image."""

    content: bytes
    media_type: str
    expires: int  # seconds since 1970


class KeptImages:
    """At most so many bytes of images, none for longer than age_s; the oldest go first.

    A url is its own credential: whoever has it may read the image, without an API key. clock: seconds since 1970.
    """

    def __init__(self, most_bytes: int, age_s: float, clock: Callable[[], float] = time.time) -> None:
        self.most_bytes = most_bytes
        self.age_s = age_s
        self.clock = clock
        self.key = secrets.token_bytes(32)  # a server that is started again does not know the urls of its last life
        self.images: dict[str, Kept] = {}  # by name, the oldest first
        self.bytes = 0
        self.timer: asyncio.TimerHandle | None = None

    def route(self) -> Route:
        """GET and HEAD of the urls."""
        summary = "An image whose url an answer has named."
        return Route(PATH, "GET", self.show, summary, _operation(), ("forbidden", "gone"), keyless=True)

    def keep(self, images: Sequence[bytes], format: Format, address: str) -> list[str]:
        """Their urls. address: of the server, such as http://127.0.0.1:8000. Raises Refusal for too many bytes."""
        size = sum(map(len, images))
        if size > self.most_bytes:
            message = (
                f"the images have {size} bytes, and the server keeps at most {self.most_bytes} for urls; "
                "ask for fewer images, or for b64_json"
            )
            raise invalid(message, code="out_of_range", param="response_format")
        self.drop(size)
        expires = math.ceil(self.clock() + self.age_s)
        urls = []
        for image in images:
            name = secrets.token_hex(16)
            self.images[name] = Kept(bytes(image), MEDIA_TYPES[format], expires)
            self.bytes += len(image)
            values = (name, str(expires), self.signature(name, str(expires)))
            urls.append(f"{address}{PATH}?{urlencode(dict(zip(SIGNED, values, strict=True)))}")
        return urls

    def drop(self, room: int = 0) -> None:
        """Forget what has expired, and the oldest images until there is room for so many bytes more."""
        now = self.clock()
        while self.images:
            name, oldest = next(iter(self.images.items()))
            if oldest.expires > now and self.bytes + room <= self.most_bytes:
                break
            del self.images[name]
            self.bytes -= len(oldest.content)

    def drop_in_time(self) -> None:
        """From now on expired images are forgotten without being asked for; needs a running event loop."""
        if self.timer is None and self.images:
            wait_s = max(0.0, next(iter(self.images.values())).expires - self.clock())
            self.timer = asyncio.get_running_loop().call_later(wait_s, self._on_time)

    def _on_time(self) -> None:
        self.timer = None
        self.drop()
        self.drop_in_time()

    def signature(self, name: str, expires: str) -> str:
        return hmac.new(self.key, f"{name}.{expires}".encode(), hashlib.sha256).hexdigest()

    def find(self, parameters: Mapping[str, str]) -> Kept:
        """The image of a url. Raises Refusal."""
        name, expires, signature = (parameters.get(each, "") for each in SIGNED)
        if not hmac.compare_digest(signature.encode(), self.signature(name, expires).encode()):
            message = "the url of the image is not one of this server's, or it was made before the server's last start"
            raise Refusal("forbidden", "wrong_signature", f"{message}; use it as the answer had it", "signature")
        if int(expires) <= self.clock():
            message = f"the url has expired: images are kept for {self.age_s:g} s; the same seed makes the image again"
            raise Refusal("gone", "url_expired", message)
        if name not in self.images:
            message = f"newer images took the image's place: the server keeps {self.most_bytes} bytes of them"
            raise Refusal("gone", "url_dropped", f"{message}; the same seed makes the image again")
        return self.images[name]

    async def show(self, http: Request) -> Response:
        kept = self.find(http.query_params)
        left_s = max(0, kept.expires - math.ceil(self.clock()))
        headers = {**HEADERS, "Cache-Control": f"private, max-age={left_s}, immutable"}
        return Response(kept.content, media_type=kept.media_type, headers=headers)


def _operation() -> Schema:
    parameters = [
        {"name": name, "in": "query", "required": True, "schema": {"type": "string"}, "description": "As in the url."}
        for name in SIGNED
    ]
    picture: Schema = {"schema": {"type": "string", "format": "binary"}}
    content = {MEDIA_TYPES[format]: picture for format in ("png", "jpeg", "webp")}
    return {"parameters": parameters, "responses": {"200": {"description": "The image.", "content": content}}}
