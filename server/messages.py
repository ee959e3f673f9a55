"""What crosses the two pipes between the HTTP process and the engine worker. Plain frozen data, no arrays."""

from dataclasses import dataclass

from server.requests import GenerateRequest


@dataclass(frozen=True)
class Submit:
    id: int
    request: GenerateRequest
    accepted_s: float  # monotonic clock, which the processes of one machine share


@dataclass(frozen=True)
class Cancel:
    id: int


@dataclass(frozen=True)
class Ready:
    """The worker's first message: it is warm."""

    tick_s: float  # measured time of one network call over all slots


@dataclass(frozen=True)
class Done:
    id: int
    images: tuple[bytes, ...]  # encoded, in the order of the seeds
    queue_s: float  # accepted -> first image in a slot
    engine_s: float  # first image in a slot -> last image finished
    encode_s: float


@dataclass(frozen=True)
class Failed:
    id: int
    code: str
    message: str


Message = Submit | Cancel
Answer = Ready | Done | Failed
