"""What the visitors of a soak do: most want images, some leave before they are ready, some ask for nonsense."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.load.arrivals import Arrival
from benchmarks.load.http_client import GENERATE, generate, request
from server.http.dialects.native import MIN_TIMEOUT_S
from server.http.edits import MIN_BODY_LIMIT

SEVERAL, SEVERAL_SHARE = 4, 0.2  # images of a visitor who wants more than one, and how many do
LEAVES_WITHIN = 0.2  # of full calls per step; a call for few images is that short
HURRIED_SHARE = 0.1
MEAN_IMAGES = 1 + (SEVERAL - 1) * SEVERAL_SHARE

Kind = Literal["stays", "leaves", "bad"]


@dataclass(frozen=True)
class Visit:
    """One request of a soak."""

    due_s: float
    kind: Kind
    what: str  # "generate", or the name of the bad request
    payload: bytes
    expected: tuple[int, ...]  # statuses that are in order; others are failures of the server
    patience_s: float | None = None  # the visitor leaves after this time, answered or not
    generates: bool = True  # whether the server counts it as a generate request


def plan(schedule: Sequence[Arrival], *, leaving: float, bad: float, call_s: float, seed: int) -> list[Visit]:
    """A visit per arrival. leaving, bad: shares of all visits.

    call_s: seconds of a network call over all slots. Whoever leaves does so after a time uniform up to LEAVES_WITHIN
    calls per step, which nearly all images take longer than: while queued or in a slot, now and then just too late.
    One in ten of those who stay sets a deadline of a call per step, and gets either the images or 504.
    """
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["leaves", "bad", "stays"], size=len(schedule), p=[leaving, bad, 1 - leaving - bad])
    nonsense = bad_requests()
    visits = []
    for arrival, kind in zip(schedule, kinds, strict=True):
        if kind == "bad":
            name = str(rng.choice(list(nonsense)))
            payload, expected, generates = nonsense[name]
            # Half a body is all this visitor sends; the server waits for the rest until it has gone.
            leaves_s = 0.05 if not expected else None
            visits.append(Visit(arrival.due_s, "bad", name, payload, expected, leaves_s, generates))
            continue
        images = SEVERAL if rng.random() < SEVERAL_SHARE else 1
        fields = {
            "steps": arrival.steps,
            "n": images,
            "seed": arrival.seed,
            "format": str(rng.choice(["png", "webp", "npy"])),
        }
        expected = (200, 429, 503)
        if kind == "stays" and rng.random() < HURRIED_SHARE:
            fields["timeout_s"] = max(MIN_TIMEOUT_S, arrival.steps * call_s)
            expected = (200, 429, 503, 504)
        # 429 is right for a queue that filled while no worker was there, 503 to a worker that was killed.
        leaves_s = float(rng.uniform(0, LEAVES_WITHIN * arrival.steps * call_s)) if kind == "leaves" else None
        visits.append(Visit(arrival.due_s, kind, "generate", generate(fields), expected, leaves_s))
    return visits


def bad_requests() -> Mapping[str, tuple[bytes, tuple[int, ...], bool]]:
    """Name -> bytes, the statuses in order (none: the visitor leaves first), and whether it is a generate request."""
    bodies: dict[str, Any] = {
        "no steps": {"steps": 0},
        "nine steps": {"steps": 9},
        "steps as text": {"steps": "4"},
        "true images": {"n": True},
        "no images": {"n": 0},
        "a million images": {"n": 1_000_000},
        "negative seed": {"seed": -1},
        "huge seed": {"seed": 2**63},
        "unknown class": {"label": "No such thing"},
        "unknown format": {"format": "tiff"},
        "unknown field": {"guidance": 7.5},
        "no time": {"timeout_s": 0},
        "a list": [1, 2, 3],
    }
    found: dict[str, tuple[bytes, tuple[int, ...], bool]] = {
        name: (generate(body), (400,), True) for name, body in bodies.items()
    }
    json_type = {"Content-Type": "application/json"}
    half = generate({"steps": 4}).replace(b"Content-Length: ", b"Content-Length: 9")
    return found | {
        "unknown model": (generate({"model": "../../etc/passwd"}), (404,), True),
        "broken JSON": (request("POST", GENERATE, b'{"steps": 4', json_type), (400,), True),
        "not text": (request("POST", GENERATE, bytes(range(256)), json_type), (400,), True),
        "deep JSON": (request("POST", GENERATE, b"[" * 20_000, json_type), (400,), True),
        "large body": (request("POST", GENERATE, json.dumps("x" * MIN_BODY_LIMIT).encode(), json_type), (413,), True),
        "half a body": (half, (), True),
        "foreign host": (generate({}).replace(b"Host: 127.0.0.1", b"Host: evil.example"), (421,), True),
        "wrong method": (request("PUT", GENERATE), (405,), False),
        "unknown route": (request("GET", "/v1/nothing"), (404,), False),
        "not HTTP": (b"\x16\x03\x01 this is no request\r\n\r\n", (400,), False),
    }
