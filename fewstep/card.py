"""The card: card.json beside model.safetensors says what the weights are and where they come from. No torch."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fewstep.conditions import Conditions, conditions_from_json
from fewstep.described import check_counts, check_deviation, check_names, from_json

CARD_FORMAT = 1
CARD_FILE = "card.json"
WEIGHTS_FILE = "model.safetensors"
UNET_FAMILY = "unet"  # the network of fewstep.network; what a card without a family means

Levels = dict[int, tuple[float, ...]]  # step count -> sigmas, high to low


class CheckpointError(ValueError):
    """A checkpoint or engine that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Dataset:
    """Provenance of the training images."""

    name: str
    sha256: str
    licence: str
    images: int
    sigma_data: float | None = None  # deviation of their pixels in [-1, 1]; None: not known


@dataclass(frozen=True)
class Card:
    role: Literal["teacher", "student"]
    # The configuration of F, field by field. Every family has resolution, channels and classes; which family it is
    # says the key "family", absent for UNET_FAMILY.
    network: dict[str, Any]
    sigma_data: float
    weights: str  # sha256 of model.safetensors
    dataset: Dataset
    class_names: tuple[str, ...] = ()
    levels: Levels = field(default_factory=dict)  # students only: one list per served step count
    parent: str | None = None  # sha256 of the teacher's weights
    training: dict[str, Any] = field(default_factory=dict)  # recipe, images seen, seconds, seed, precision, versions
    metrics: dict[str, Any] = field(default_factory=dict)
    format: int = CARD_FORMAT

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.network["channels"], self.network["resolution"], self.network["resolution"]

    @property
    def conditions(self) -> Conditions:
        """What the network takes beside images, levels and classes; its configuration names them where there are any.

        Raises ValueError, TypeError or KeyError for what this version does not know.
        """
        return conditions_from_json(self.network.get("conditions", ()))


def distilled_from(student: Card, teacher: Card) -> bool:
    """Whether the student was distilled from these weights, or from the run whose float16 copy they are."""
    return student.parent is not None and student.parent in (teacher.weights, teacher.training.get("published_from"))


def card_to_json(card: Card) -> str:
    return json.dumps(asdict(card), indent=2) + "\n"


def card_from_json(text: str, where: Path) -> Card:
    """Raises CheckpointError when the text is not a card this version can read."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or "format" not in data:
            raise CheckpointError(f"{where} is not a fewstep card: it has no format number")
        if data["format"] != CARD_FORMAT:
            raise CheckpointError(
                f"{where} has card format {data['format']}; this version reads format {CARD_FORMAT}. "
                "Install the fewstep version that wrote it, or train again"
            )
        return _checked(from_json(Card, data))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not a readable fewstep card ({error})") from error


def _checked(card: Card) -> Card:
    """The card. Raises ValueError for values that no image can be made with."""
    for name, low in (("channels", 1), ("resolution", 1), ("classes", 0)):
        value = card.network.get(name)
        if type(value) is not int or value < low:
            raise ValueError(f"its network has {name} {value!r}; a whole number from {low} up is allowed")
    try:
        _ = card.conditions
    except (TypeError, KeyError) as error:
        raise ValueError(f"the conditions of its network cannot be read ({error!r})") from error
    check_deviation(card.sigma_data)
    check_names(card.class_names, card.network["classes"])
    check_counts(card.levels)
    return card


def read_card(folder: Path) -> Card:
    """The card of a checkpoint folder. Raises CheckpointError when there is none."""
    path = folder / CARD_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {CARD_FILE}: it is not a fewstep checkpoint")
    return card_from_json(path.read_text("utf-8", errors="replace"), path)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside `path`; flushed to disk and renamed there at the end, removed if anything fails.

    A reader sees the old file or the new one, never a part of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.part")
    try:
        with staged.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path` by these bytes, whole or not at all."""
    with replacing(path) as file:
        file.write(content)
