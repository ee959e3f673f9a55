"""A server of images, as a load generator sees it: where it is, how it is asked, and whether an answer is one.

openai: POST /v1/images/generations, of any server that has it. Only fields of OpenAI's API are sent, and of those only
prompt, model and n (above 1), unless others are asked for. native: POST /v1/generate of fewstep.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from benchmarks.load.arrivals import Arrival
from benchmarks.load.http_client import PORTS, Answer, error_code, request
from benchmarks.serving.mix import Mix

Api = Literal["openai", "native"]
PLACES = ("seed", "steps", "images")  # what {...} in the value of an extra field may be
WHOLE_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Target:
    """What is asked, and how. extra: fields by name; in their texts, {seed}, {steps} and {images} stand for numbers."""

    base_url: str
    api: Api
    mix: Mix
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    prompt: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """The path before /models: of the URL, or /v1."""
        return urlsplit(self.base_url).path.rstrip("/") or "/v1"

    @property
    def path(self) -> str:
        return self.prefix + ("/images/generations" if self.api == "openai" else "/generate")

    @property
    def headers(self) -> dict[str, str]:
        said = {"Content-Type": "application/json", "Accept": "application/json" if self.api == "openai" else "*/*"}
        return said | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def get(self, path: str) -> bytes:
        """The bytes of a GET."""
        return request("GET", path, headers=self.headers, host=urlsplit(self.base_url).netloc)

    def post(self, arrival: Arrival) -> bytes:
        """The bytes of a request for images."""
        body = json.dumps(self.fields(arrival)).encode()
        return request("POST", self.path, body, self.headers, urlsplit(self.base_url).netloc)

    def fields(self, arrival: Arrival) -> dict[str, Any]:
        """The body of a request for images."""
        kind = self.mix[arrival.kind]
        known: dict[str, Any] = {"prompt": self.prompt} if self.api == "openai" else {}
        known |= {"model": self.model} if self.model else {}
        known |= {"n": kind.images} if kind.images > 1 else {}
        if self.api == "native":
            known |= {"seed": arrival.seed} | ({"steps": kind.steps} if kind.steps else {})
        else:
            known |= {"num_inference_steps": kind.steps, "seed": arrival.seed} if kind.steps else {}
            known |= {"size": kind.size} if kind.size else {}
        known |= {"priority": kind.priority} if kind.priority == "batch" else {}
        numbers = {"seed": arrival.seed, "steps": kind.steps, "images": kind.images}
        return known | {name: _filled(value, numbers) for name, value in self.extra.items()}

    def judge(self, arrival: Arrival, answer: Answer) -> str:
        """What is wrong with an answer, as one phrase; empty: it holds the images that were asked for."""
        if answer.status != 200:
            code = error_code(answer)
            return f"{answer.status} {code}".rstrip()
        if self.api == "native" and answer.headers.get("content-type", "").startswith("image/"):
            return "" if answer.body else "200 without an image"
        found = images_in(answer.body)
        return "" if found == self.mix[arrival.kind].images else f"200 with {found} images"


def images_in(body: bytes) -> int:
    """How many images a JSON answer holds: entries of `data` with bytes or a url. 0 for what is no such answer."""
    try:
        data = json.loads(body)["data"]
        return sum(bool(entry.get("b64_json") or entry.get("url")) for entry in data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def checked_url(text: str) -> str:
    """http or https with a host, without the last slash. Raises ValueError with a sentence."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in PORTS and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:  # a port that is no number
        good = False
    if not good or urlsplit(text).username is not None:
        raise ValueError(f"{text!r} is no address of a server; write http://127.0.0.1:8000 or https://HOST/v1")
    return text.rstrip("/")


def extra_field(text: str) -> tuple[str, Any]:
    """From NAME=VALUE, where VALUE is JSON, or a text. Raises ValueError with a sentence."""
    name, found, value = text.partition("=")
    if not found or not name:
        raise ValueError(f"{text!r} is no field; write NAME=VALUE, such as seed={{seed}} or quality=low")
    for place in WHOLE_PLACE.findall(value):
        if place not in PLACES:
            raise ValueError(
                f"{{{place}}} in {text!r} stands for nothing; there are {{seed}}, {{steps}} and {{images}}"
            )
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _filled(value: Any, numbers: Mapping[str, int | None]) -> Any:
    """A text that is one {...} becomes its number; within a text, the number is written out."""
    if not isinstance(value, str):
        return value
    if match := WHOLE_PLACE.fullmatch(value):
        return numbers[match[1]]
    return WHOLE_PLACE.sub(lambda match: str(numbers[match[1]]), value)
