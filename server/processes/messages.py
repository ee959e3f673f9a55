"""What crosses the two pipes between the HTTP process and an engine worker. Plain frozen data, no arrays."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.http.dialects.native import GenerateRequest

MODEL_FAILING = "model_failing"  # the request was not tried: another worker may make its images


@dataclass(frozen=True)
class Submit:
    id: int
    request: GenerateRequest
    accepted_s: float  # monotonic clock, which the processes of one machine share
    deadline_s: float  # same clock; nobody waits for the images any more from then on


@dataclass(frozen=True)
class Cancel:
    id: int


@dataclass(frozen=True)
class ServedModel:
    """One model as it really runs in a worker."""

    tick_s: float  # measured time of one network call over all slots, with the step around it
    capacity: int  # slots
    buckets: tuple[int, ...]  # batch sizes the network is called with, ascending, the last one being the capacity
    call_s: Mapping[int, float]  # measured time of a tick by batch size; what the two above were chosen from
    facts: Mapping[str, str]  # Engine.facts: backend, versions, device, precision, ...


@dataclass(frozen=True)
class Loading:
    """A worker begins to load a model; the last of these is followed by Ready."""

    model: str


@dataclass(frozen=True)
class Ready:
    """The worker is warm: from now on it answers requests."""

    models: Mapping[str, ServedModel]
    warm_up_s: float  # from the start of loading to now


@dataclass(frozen=True)
class Health:
    """Sent when a model's network calls have failed several times in a row, and when they succeed again."""

    model: str
    ok: bool


@dataclass(frozen=True)
class ModelStats:
    """What one model has done in a worker since the server started, and what it holds now."""

    calls_by_bucket: Mapping[int, int]  # network calls by batch size
    calls_by_fill: Mapping[tuple[int, int], int]  # the same calls by (rows that were images, batch size)
    call_s_by_bucket: Mapping[int, float]  # seconds in them, with the step around the network
    failed_calls: int  # calls that raised, or that brought no finite row at all
    rows: int  # rows that were images
    padded_rows: int  # rows that were padding
    evicted: Mapping[str, int]  # images given up, by the stage they were in: "waiting" or "running"
    active_slots: int  # this and the rest are of the moment
    waiting_images: int
    capacity: int

    @property
    def call_s(self) -> float:
        """Seconds in network calls of any size."""
        return sum(self.call_s_by_bucket.values())


@dataclass(frozen=True)
class Stats:
    """Sent after ticks, four times a second at most, and once when the worker has nothing left to do."""

    models: Mapping[str, ModelStats]
    rss_bytes: int  # memory of the worker process


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
    code: str  # "network_error", "network_not_finite", "encode_error", "timeout", or MODEL_FAILING
    message: str  # for the client: nothing of the exception, which the worker logs


Message = Submit | Cancel
Answer = Loading | Ready | Health | Stats | Done | Failed
