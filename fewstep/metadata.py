"""What model.safetensors says of itself, for viewers that do not know card.json. No torch.

The header's `__metadata__` holds strings: what the network takes, and a hash of the entries of the card that nothing
rewrites. Levels and measurements are added to a card later, and times differ between equal runs, so that equal weights
of equal runs stay equal files.
"""

import hashlib
import json
from collections.abc import Mapping

from fewstep.card import CARD_FORMAT, Card, CheckpointError, card_to_json

LASTING = ("role", "network", "sigma_data", "dataset", "class_names", "parent")  # entries of the card that are hashed
_LENGTH = 8  # bytes of the header's length, little-endian, at the start of a safetensors file


def metadata(card: Card) -> dict[str, str]:
    """The entries of `__metadata__`. format: that of the tensors, as loaders of Hugging Face's hub ask for it."""
    channels, resolution, _ = card.image_shape
    return {
        "format": "pt",
        "fewstep_format": str(CARD_FORMAT),
        "role": card.role,
        "resolution": str(resolution),
        "channels": str(channels),
        "classes": str(card.network["classes"]),
        "sigma_data": repr(card.sigma_data),
        "card_sha256": card_sha256(card),
    }


def card_sha256(card: Card) -> str:
    """SHA-256 of the lasting entries, as JSON with sorted keys and without spaces."""
    entries = json.loads(card_to_json(card))
    lasting = {name: entries[name] for name in LASTING}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def with_metadata(content: bytes, entries: Mapping[str, str]) -> bytes:
    """A safetensors file with these entries of `__metadata__`. The library writes them in an order that varies."""
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    header = {"__metadata__": None} | json.loads(content[_LENGTH:start]) | {"__metadata__": dict(entries)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return b"".join((len(text).to_bytes(_LENGTH, "little"), text, memoryview(content)[start:]))


def read_metadata(content: bytes) -> dict[str, str]:
    """The entries of `__metadata__` of a safetensors file that could be read; {} of older files."""
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    return json.loads(content[_LENGTH:start]).get("__metadata__") or {}


def check_metadata(entries: Mapping[str, str], card: Card, where: object) -> None:
    """Raise CheckpointError where the card has another sigma_data: its images would be wrong, and nothing would say so.

    A card with another resolution, channels or classes has another network, which the tensors do not fit.
    """
    told = metadata(card)["sigma_data"]
    if (saved := entries.get("sigma_data", told)) != told:
        raise CheckpointError(
            f"the card in {where} was changed: it says sigma_data {told}, and the weights were saved with {saved}"
        )
