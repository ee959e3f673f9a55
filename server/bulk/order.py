"""What a bulk run makes: the same order gives the same bytes, however often it is interrupted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from export.manifest import Manifest
from fewstep.conditions import LOW, find
from fewstep.pixels import KEYWORD, Pixels, encode, with_text
from server.bulk.inputs import Inputs
from server.bulk.seeds import Seeds
from server.http.png_text import as_text, recipe
from server.scheduler.refusal import invalid
from server.scheduler.request import ImageRequest
from server.scheduler.validate import class_named, image_request

FORMAT = 1  # of the recipe, and of the journal
RANDOM, BALANCED = "random", "balanced"
MOST_IN_CHUNK = 256  # images that a kill loses at most, for each process
CHUNKS = 64  # a small run is cut into about so many, so that several processes share it


@dataclass(frozen=True)
class Picture:
    """One image of the order."""

    seed: int
    label: int  # -1: no class
    pixels: Pixels  # uint8 [H, W, C]
    png: bytes  # as the server answers it
    facts: dict[str, Any]  # what its PNG says


@dataclass(frozen=True)
class Order:
    """Images of `seeds`, by one model.

    label: "random" (each image's class is drawn from its seed, as by the server), "balanced" (class = seed modulo the
    number of classes), or the index of a class as text. capacity: images in one network call; it decides the bytes.
    output: the kind of what is written. per_file: images of one shard; 0 where there are none.
    guidance: the weight of the class in all images; None: the model's own, which no file mentions.
    inputs: the pictures that are enlarged, as many as seeds; None: the model makes images of noise alone.
    """

    manifest: Manifest
    seeds: Seeds
    steps: int
    label: str
    backend: str
    capacity: int
    output: str
    per_file: int
    chunk: int  # images that are kept together or not at all; a multiple of the capacity
    guidance: float | None = None
    inputs: Inputs | None = None

    @property
    def chunks(self) -> int:
        return -(-self.seeds.count // self.chunk)

    def request(self, first: int, count: int) -> ImageRequest:
        """For images number first to first + count - 1, as arrays, without the pictures that are enlarged."""
        seeds, classes = self.seeds.part(first, count), self.manifest.classes
        fixed = int(self.label) if self.label not in (RANDOM, BALANCED) else None
        labels = [seed % classes for seed in seeds] if self.label == BALANCED else None
        return image_request(
            self.manifest, steps=self.steps, seeds=seeds, label=fixed, labels=labels, format="pixels",
            guidance=self.guidance, pictured=pictured(self.manifest),
        )  # fmt: skip

    def whole_request(self, first: int, count: int) -> ImageRequest:
        """The same with those pictures, which are read now. Raises InputsError."""
        request = self.request(first, count)
        if self.inputs is None:
            return request
        return replace(request, conditions=(*request.conditions, self.inputs.given(first, count)))

    def pictures(self, number: int, pixels: Pixels) -> Iterator[Picture]:
        """The images of a chunk. pixels: uint8 [B, H, W, C]."""
        first = number * self.chunk
        request = self.request(first, self.chunk)
        for index, (seed, label) in enumerate(zip(request.seeds, request.labels, strict=True)):
            facts = recipe(request, index, self.manifest, edited=self.inputs is not None)
            if self.inputs is not None:
                facts["input"] = self.inputs.names[first + index]
            png = with_text(encode(pixels[index], "png"), KEYWORD, as_text(facts))
            yield Picture(seed, label, pixels[index], png, facts)

    def labels(self) -> Iterator[tuple[int, int]]:
        """Seed and class of every image; -1: no class."""
        for number in range(self.chunks):
            request = self.request(number * self.chunk, self.chunk)
            yield from zip(request.seeds, request.labels, strict=True)

    def recipe(self) -> dict[str, Any]:
        """What the images are made of, in JSON: equal recipes, equal bytes. What is not given it does not mention."""
        manifest = self.manifest
        given = {"guidance": self.guidance, "inputs": self.inputs and self.inputs.sha256}
        given = {name: value for name, value in given.items() if value is not None}
        return {
            "format": FORMAT, "model": manifest.name, "checkpoint": manifest.checkpoint,
            "network": manifest.network_sha256, "noise_version": manifest.noise_version, "seeds": str(self.seeds),
            "steps": self.steps, "label": self.label, "backend": self.backend, "capacity": self.capacity,
            "output": self.output, "per_file": self.per_file, "class_names": list(manifest.class_names), **given,
        }  # fmt: skip


# How a recipe's entries are called by who gave them.
OPTIONS = {
    "model": "--model", "checkpoint": "the model's checkpoint", "network": "the engine's network",
    "noise_version": "the noise version", "class_names": "the model's class names", "seeds": "--seeds",
    "steps": "--steps", "label": "--label", "guidance": "--guidance",
    "inputs": "the hash of --inputs", "backend": "--backend", "capacity": "--capacity", "output": "--format",
    "per_file": "--per-file", "format": "the format of its journal",
}  # fmt: skip


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In words, what two recipes do not have in common."""
    return [
        f"{OPTIONS.get(name, name)} was {_short(before.get(name))}, now {_short(now.get(name))}"
        for name in OPTIONS
        if before.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def chunk_size(images: int, capacity: int) -> int:
    """Images of a chunk: whole network calls, so that none of them is padded but the last."""
    wanted = min(MOST_IN_CHUNK, -(-images // CHUNKS))
    return max(1, -(-wanted // capacity)) * capacity


def pictured(manifest: Manifest) -> tuple[str, ...]:
    """The conditions that the pictures of --inputs bring to a model."""
    return (LOW,) if find(manifest.conditions, LOW) else ()


def chosen_label(text: str, manifest: Manifest) -> str:
    """A label as an Order holds it: of a class's name, in any case, or its number. Raises Refusal."""
    if text in (RANDOM, BALANCED):
        if text == BALANCED and not manifest.classes:
            raise invalid(f"{manifest.name} has no classes; leave --label out", code="unknown_label", param="label")
        return text
    index = class_named(text, manifest)
    if index is None:
        number: int | str = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
        index = image_request(manifest, label=number, seed=0, pictured=pictured(manifest)).labels[0]
    return str(index)
