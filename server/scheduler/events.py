"""What becomes of a request, in order: Accepted, Progress (if asked for), then one Finished or one Failed.

They are structs, not dataclasses: every request makes several, and a struct is made in a tenth of the time.
"""

from typing import Any

from msgspec import Struct

from server.scheduler.refusal import Kind, Refusal
from server.scheduler.request import ImageFormat

# bytes in the event's format; uint8 [H, W, C] for "pixels", and in every format until server.scheduler.encoding
Image = Any


class Accepted(Struct, frozen=True):
    """A worker has the request."""

    id: int


class Progress(Struct, frozen=True):
    """One image has made a network call that the request asks about. Or its last one, where other images of the request
    have more to make and the request asks for previews as images."""

    id: int
    image: int  # index into the request's seeds
    step: int  # calls made so far, from 1
    of: int  # calls in all
    format: ImageFormat
    preview: Image | None  # the denoised image of that call; None where the request does not ask for it
    quality: int | None = None  # that the request asks for


class Finished(Struct, frozen=True):
    """All images are there, in the order of the request's seeds."""

    id: int
    format: ImageFormat
    images: tuple[Image, ...]
    queue_s: float  # acceptance -> first image in a slot
    engine_s: float  # first image in a slot -> last image finished
    encode_s: float = 0.0
    quality: int | None = None  # that the request asks for
    log_weights: tuple[float, ...] = ()  # of each image, see fewstep.step.step_log_weight; empty: not asked for


class Failed(Struct, frozen=True):
    """The request ends without images; the fields are those of Refusal."""

    id: int
    kind: Kind
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    @classmethod
    def of(cls, id: int, why: Refusal) -> "Failed":
        return cls(id, why.kind, why.code, why.message, why.param, why.retry_after_s)

    def refusal(self) -> Refusal:
        return Refusal(self.kind, self.code, self.message, self.param, retry_after_s=self.retry_after_s)


class Health(Struct, frozen=True):
    """Sent when a model's network calls have failed several times in a row, and when they succeed again."""

    model: str
    ok: bool


Event = Accepted | Progress | Finished | Failed


def is_last(event: Event) -> bool:
    """Whether a request has no event after this one."""
    return isinstance(event, Finished | Failed)
