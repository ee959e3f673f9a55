"""What requests ask for: kinds of requests and their shares, from a command line or from the peers' JSON."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Priority = Literal["interactive", "batch"]
MAX_STEPS, MAX_IMAGES = 1000, 256  # of the generator; what a server takes, it says itself
FORM = "write STEPS:SHARE,..., such as 1:.5,4:.5; 4x8:.1 for 8 images of 4 steps; 4x8b:.1 for batch priority"
PEERS = {"width", "height", "num_inference_steps", "weight"}  # vLLM-Omni's and SGLang's --random-request-config


@dataclass(frozen=True)
class Kind:
    """One kind of request."""

    steps: int | None  # network calls per image; None: what the server makes of a request without them
    images: int = 1
    weight: float = 1.0  # its share is this over the sum of all
    size: str | None = None  # such as "512x512"; None: nothing is said of it
    priority: Priority = "interactive"

    @property
    def name(self) -> str:
        """As in a mix: 4, 4x8, 4x8b."""
        text = "any" if self.steps is None else str(self.steps)
        text += f"x{self.images}" if self.images > 1 else ""
        return text + ("b" if self.priority == "batch" else "") + (f" {self.size}" if self.size else "")

    @property
    def calls(self) -> int | None:
        """Network calls of all its images, counted one by one."""
        return None if self.steps is None else self.steps * self.images


Mix = tuple[Kind, ...]


def parse_mix(text: str) -> Mix:
    """From "1:.5,4:.5", or from a JSON list as the peers' benchmarks take it. Raises ValueError with a sentence."""
    if text.lstrip().startswith("["):
        return _from_json(text)
    kinds = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,3}))?(b?)(?::(\d+\.?\d*|\.\d+))?", part.strip())
        if not match:
            raise ValueError(f"{part!r} is no part of a mix; {FORM}")
        steps, images, batch, weight = match.groups()
        priority: Priority = "batch" if batch else "interactive"
        kinds.append(Kind(int(steps), int(images or 1), float(weight or 1), priority=priority))
    return _checked(tuple(kinds))


def shares(mix: Mix) -> NDArray[np.float64]:
    """The share of each kind among the requests; they add up to 1."""
    weights = np.array([kind.weight for kind in mix])
    return weights / weights.sum()


def mean_calls(mix: Mix) -> float:
    """E[network calls of a request]. Raises ValueError where a kind leaves its steps to the server."""
    calls = [kind.calls for kind in mix]
    if None in calls:
        raise ValueError(f"every kind of this mix needs its steps; {FORM}")
    return float(shares(mix) @ np.array(calls, np.float64))


def _from_json(text: str) -> Mix:
    try:
        entries: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the mix is not valid JSON ({error}); {FORM}") from error
    kinds = []
    for entry in entries:
        if not isinstance(entry, dict) or not {"weight"} <= set(entry) <= PEERS:
            raise ValueError(f"an entry of the mix has {', '.join(sorted(PEERS))}, and weight at least; not {entry!r}")
        numbers = [entry.get(name) for name in ("num_inference_steps", "width", "height")]
        if not all(number is None or (isinstance(number, int) and number > 0) for number in numbers):
            raise ValueError(f"num_inference_steps, width and height are whole numbers above 0, not {entry!r}")
        if not isinstance(entry["weight"], int | float) or (entry.get("width") is None) != (
            entry.get("height") is None
        ):
            raise ValueError(f"weight is a number, and width comes with height; not {entry!r}")
        steps, width, height = numbers
        size = None if width is None else f"{width}x{height}"
        kinds.append(Kind(steps, weight=float(entry["weight"]), size=size))
    return _checked(tuple(kinds))


def _checked(mix: Mix) -> Mix:
    for kind in mix:
        if kind.steps is not None and not 1 <= kind.steps <= MAX_STEPS:
            raise ValueError(f"the steps of a mix are from 1 to {MAX_STEPS}, not {kind.steps}")
        if not 1 <= kind.images <= MAX_IMAGES:
            raise ValueError(f"the images of a request are from 1 to {MAX_IMAGES}, not {kind.images}")
        if not kind.weight > 0:
            raise ValueError(f"the share of {kind.name} must be above 0; leave the kind out instead")
    if not mix:
        raise ValueError(f"a mix needs at least one kind of request; {FORM}")
    if len({kind.name for kind in mix}) < len(mix):
        raise ValueError("a mix names each kind of request once")
    return mix


def draw_kinds(mix: Mix, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The kind of each of `count` requests, as an index into the mix [count], drawn independently."""
    return rng.choice(len(mix), size=count, p=shares(mix))


def described(mix: Sequence[Kind]) -> str:
    """A mix in one line."""
    return ", ".join(f"{kind.name}: {share:.3g}" for kind, share in zip(mix, shares(tuple(mix)), strict=True))
