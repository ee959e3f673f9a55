"""What a worker says about itself, and the form in which every message crosses a socket: length, kind, MessagePack."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from server.scheduler.events import Failed, Finished, Health, Progress
from server.scheduler.model import ModelInfo
from server.scheduler.request import Cancel, Submit
from server.scheduler.stats import Stats


@dataclass(frozen=True)
class Loading:
    """A worker begins to load a model; the last of these is followed by Ready."""

    model: str


@dataclass(frozen=True)
class Ready:
    """The worker is warm: from now on it answers requests."""

    models: Mapping[str, ModelInfo]
    warm_up_s: float  # from the start of loading to now


Message = Submit | Cancel  # HTTP process -> worker
Answer = Loading | Ready | Health | Stats | Progress | Finished | Failed  # worker -> HTTP process

_TYPES: tuple[type, ...] = (Submit, Cancel, Loading, Ready, Health, Stats, Progress, Finished, Failed)
_KINDS = {each: number for number, each in enumerate(_TYPES)}
_DECODERS = [msgspec.msgpack.Decoder(each) for each in _TYPES]
_ENCODER = msgspec.msgpack.Encoder()
_HEAD = struct.Struct("!IB")  # bytes of the payload, kind
MAX_BYTES = 2**31  # of a payload; a body of the largest limit and 256 large images are below


def encode(message: Message | Answer) -> bytes:
    """One message as bytes."""
    payload = _ENCODER.encode(message)
    return _HEAD.pack(len(payload), _KINDS[type(message)]) + payload


class MessageReader:
    """Turns received bytes into messages; keeps what is not yet complete."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that these bytes complete, in order. Raises ValueError on anything else."""
        rest = self.rest
        rest += data
        messages: list[Any] = []
        at = 0
        while len(rest) - at >= _HEAD.size:
            size, kind = _HEAD.unpack_from(rest, at)
            if size > MAX_BYTES or kind >= len(_TYPES):
                raise ValueError(f"no message begins with {bytes(rest[at : at + _HEAD.size]).hex()}")
            end = at + _HEAD.size + size
            if end > len(rest):
                break
            messages.append(_DECODERS[kind].decode(memoryview(rest)[at + _HEAD.size : end]))
            at = end
        del rest[:at]
        return messages
