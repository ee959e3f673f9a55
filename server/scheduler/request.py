"""What the scheduler is asked for: the only form of a request below the HTTP dialects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from export.manifest import engine_of
from fewstep.blend import Blend
from fewstep.pixels import Format, from_pixels
from server.scheduler.slots import Start

ImageFormat = Format | Literal["pixels"]
Previews = Literal["none", "steps", "images"]
Priority = Literal["interactive", "batch"]  # batch: others may be served first for a while


@dataclass(frozen=True)
class Edit:
    """What the images of a request begin at, as bytes, because a request crosses a process boundary."""

    shape: tuple[int, int, int]  # C, H, W
    image: bytes  # uint8 [H, W, C]
    known: bytes | None  # bool [H, W], True where the pixel is kept; None: no pixel is kept

    def start(self) -> Start:
        """As arrays, for a slot."""
        channels, height, width = self.shape
        image = from_pixels(np.frombuffer(self.image, np.uint8).reshape(1, height, width, channels))[0]
        if self.known is None:
            return Start(image)
        return Start(image, np.frombuffer(self.known, np.bool_).reshape(1, height, width).copy())


class Given(Struct, frozen=True):
    """Values of one condition, as bytes, because a request crosses a process boundary."""

    name: str  # as the model's manifest has it
    shape: tuple[int, ...]  # of a row
    data: bytes  # float32 [n, *shape]: a row for each image, or one for all

    @classmethod
    def of(cls, name: str, rows: NDArray[np.floating]) -> "Given":
        """rows [n, *shape], n the number of images or 1."""
        return cls(name, rows.shape[1:], np.ascontiguousarray(rows, np.float32).tobytes())

    def rows(self) -> NDArray[np.float32]:
        """[n, *shape]. Raises ValueError where there are other bytes than of whole rows."""
        return np.frombuffer(self.data, np.float32).reshape(-1, *self.shape)

    def row(self, image: int) -> NDArray[np.float32]:
        """Of one image, by its index."""
        rows = self.rows()
        return rows[image if len(rows) > 1 else 0]

    def number(self, image: int) -> float:
        """Of one image, where a row is a number: 2.6 for the float32 that is nearest to it, not 2.5999999046325684."""
        return float(str(self.row(image)))


class ImageRequest(Struct, frozen=True):
    """Image i has the noise of seeds[i], the class labels[i] and the levels `levels(i)`."""

    model: str  # as it is served: an engine, or one of its adapters
    steps: int  # the step count whose levels were asked for, the largest of them; reported, not computed with
    seeds: tuple[int, ...]  # in [0, 2^63)
    labels: tuple[int, ...]  # one per image; -1: no class
    sigmas: tuple[float, ...]  # one network call per level, high to low; of an edit, the last levels only
    format: ImageFormat = "png"  # what Finished holds: encoded bytes, or arrays ("pixels")
    edit: Edit | None = None  # None: the images begin at noise alone
    previews: Previews = "none"  # whether Progress is sent after calls, and whether with the denoised image
    quality: int | None = None  # of WebP and JPEG, see fewstep.pixels.encode
    schedules: tuple[tuple[float, ...], ...] = ()  # the levels of each image where they differ; `sigmas`: the longest
    blends: tuple[Blend, ...] = ()  # of each image: another seed, whose noise is mixed in; empty: none is
    priority: Priority = "interactive"
    preview_count: int | None = None  # how many calls of each image `previews` is about, see spread_calls; None: all
    every_call: bool = False  # whether Progress is sent after the others, too, without an image
    conditions: tuple[Given, ...] = ()  # what the images are made by beside their classes; absent ones: their defaults
    log_weight: bool = False  # whether Finished tells the log weight of each image

    @property
    def images(self) -> int:
        """How many images are asked for."""
        return len(self.seeds)

    @property
    def engine(self) -> str:
        """What makes the images, by name."""
        return engine_of(self.model)

    @property
    def calls(self) -> int:
        """Network calls per image; where images differ, the most."""
        return len(self.sigmas)

    @property
    def slots(self) -> int:
        """Slots of each image: the second one is for the prior's call at the same state."""
        return 2 if self.log_weight else 1

    @property
    def rows(self) -> int:
        """Rows of network calls per image; where images differ, the most."""
        return self.calls * self.slots

    @property
    def total_rows(self) -> int:
        """Rows of network calls of all images."""
        calls = sum(map(len, self.schedules)) if self.schedules else self.images * self.calls
        return calls * self.slots

    def levels(self, image: int) -> tuple[float, ...]:
        """Of one image, by its index."""
        return self.schedules[image] if self.schedules else self.sigmas

    def given(self, image: int) -> dict[str, NDArray[np.float32]] | None:
        """The conditions of one image, by its index, as arrays of a row; None: there are none."""
        return {each.name: each.row(image) for each in self.conditions} if self.conditions else None

    def condition(self, name: str) -> Given | None:
        return next((each for each in self.conditions if each.name == name), None)

    def previewed(self, image: int) -> Sequence[int]:
        """The calls of one image, from 1, whose denoised image is sent with Progress; never its last, which ends it."""
        return self._chosen(image) if self.previews == "images" else ()

    def reported(self, image: int) -> Sequence[int]:
        """The calls of one image, from 1, that Progress is sent after without an image."""
        if self.every_call:
            sent = self.previewed(image)
            return [call for call in range(1, len(self.levels(image))) if call not in sent]
        return self._chosen(image) if self.previews == "steps" else ()

    def _chosen(self, image: int) -> Sequence[int]:
        return spread_calls(self.preview_count, len(self.levels(image)))


def spread_calls(count: int | None, calls: int) -> Sequence[int]:
    """Which of an image's network calls, from 1: `count` of all but the last, the first among them and the others at
    equal distances; all of them for None, or where there are no more than `count`."""
    before = calls - 1
    if count is None or count >= before:
        return range(1, calls)
    return tuple(1 + place * before // count for place in range(count))


class Submit(Struct, frozen=True):
    """A request for the engine loop."""

    id: int
    request: ImageRequest
    accepted_s: float  # monotonic clock, which the processes of one machine share
    deadline_s: float  # same clock; from then on the images are of no use


class Cancel(Struct, frozen=True):
    """The client has left: the request's slots become free before the next network call."""

    id: int


Message = Submit | Cancel
