"""What a model takes beside noisy images, levels and classes: a named bundle of tensors with one row for each image.

The class is described by `classes` and enters as `onehot`. Every other member of the bundle is a `Condition`. The shape
of its row says how it enters a network (`fewstep.network`):

    ()           a number, such as a guidance weight: sines and cosines of it, into the embedding
    (n,)         a vector, such as the embedding of a text: into the embedding
    (c, h, w)    a map, such as an image of low resolution or a mask: enlarged to the size of the noisy image (bilinear,
                 corners not aligned), as channels behind it

A card and a manifest without conditions do not mention them. Standard library only: the server reads this.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GUIDANCE = "guidance"  # the weight w of D_w = D(no class) + w (D(class) - D(no class)); 1: the class alone
LOW = "low"  # the image of low resolution that a model enlarges
RESERVED = ("x", "c_noise", "onehot", "adapter", "output")  # names of a network's other inputs, and of its output
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
DTYPES = ("float32",)  # whatever a network computes in


@dataclass(frozen=True)
class Condition:
    """One input of a network: a tensor [B, *shape] of `dtype` whose values lie from low to high.

    default: what every element of a row is that is not given; None: it must be given. Raises ValueError for what no
    network can take.
    """

    name: str
    shape: tuple[int, ...]  # of a row
    low: float
    high: float
    default: float | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in RESERVED:
            raise ValueError(f"a condition cannot be called {self.name!r}; use small letters, and none of {RESERVED}")
        if len(self.shape) not in (0, 1, 3) or min(self.shape, default=1) < 1:
            raise ValueError(f"a row of {self.name} is a number (), a vector (n,) or a map (c, h, w), not {self.shape}")
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name} has the type {self.dtype}; conditions are {DTYPES[0]}")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"{self.name} needs a range from a lower to a higher number, not {self.low} to {self.high}"
            )
        if self.default is not None and not self.low <= self.default <= self.high:
            raise ValueError(f"the default {self.default} of {self.name} is not from {self.low} to {self.high}")

    @property
    def size(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape)

    @property
    def is_map(self) -> bool:
        return len(self.shape) == 3

    @property
    def fill(self) -> float:
        """What a row is filled with that no request asks for, such as padding of a batch."""
        return (self.low + self.high) / 2 if self.default is None else self.default


Conditions = tuple[Condition, ...]  # in the order of the network's inputs


def guidance_weight(high: float) -> Condition:
    """A guidance weight from 1 to `high` > 1, 1 where none is given."""
    return Condition(GUIDANCE, (), 1.0, high, default=1.0)


def low_image(channels: int, side: int) -> Condition:
    """An image of low resolution [channels, side, side] in [-1, 1], which must be given."""
    return Condition(LOW, (channels, side, side), -1.0, 1.0)


def find(conditions: Iterable[Condition], name: str) -> Condition | None:
    return next((condition for condition in conditions if condition.name == name), None)


def map_channels(conditions: Iterable[Condition]) -> int:
    """How many channels the maps among the conditions add to a network's input."""
    return sum(condition.shape[0] for condition in conditions if condition.is_map)


def check_bundle(conditions: Conditions) -> None:
    """Raise ValueError where two members have one name."""
    names = [condition.name for condition in conditions]
    if len(set(names)) < len(names):
        raise ValueError(f"a network takes each condition once, not {', '.join(names)}")


def enlarged(conditions: Conditions, before: int, after: int) -> Conditions:
    """The conditions of a network at another resolution: maps keep their share of the image's side.

    Raises ValueError where a map would have no whole number of pixels.
    """
    for condition in conditions:
        if condition.is_map and any(side * after % before for side in condition.shape[1:]):
            raise ValueError(
                f"{condition.name} is {condition.shape[1]}x{condition.shape[2]} for images of {before}x{before}; for "
                f"{after}x{after} it would have no whole number of pixels"
            )
    return tuple(_enlarged(condition, before, after) for condition in conditions)


def _enlarged(condition: Condition, before: int, after: int) -> Condition:
    if not condition.is_map:
        return condition
    channels, height, width = condition.shape
    shape = channels, height * after // before, width * after // before
    return Condition(condition.name, shape, condition.low, condition.high, condition.default, condition.dtype)


def conditions_from_json(entries: Iterable[Mapping[str, Any]]) -> Conditions:
    """What `dataclasses.asdict` and JSON made of conditions. Raises ValueError, TypeError or KeyError."""
    found = tuple(Condition(**{**entry, "shape": tuple(entry["shape"])}) for entry in entries)
    check_bundle(found)
    return found
