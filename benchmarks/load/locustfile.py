"""Users for Locust (https://locust.io): each asks for images, waits for them, and asks again.

    python3 -m venv build/locust && build/locust/bin/pip install 'locust>=2.30'
    build/locust/bin/locust -f benchmarks/load/locustfile.py --headless --host http://127.0.0.1:8000 \
        -u 16 -r 16 -t 30s --html build/locust.html             # all four kinds of users; a report with graphs
    build/locust/bin/locust ... Single Gallery                  # users of these kinds alone
    FEWSTEP_SHAPE=spike build/locust/bin/locust ...             # in place of -u, -r and -t: ramp, spike or soak

FEWSTEP_USERS=16 and FEWSTEP_MINUTES=5 are the users and the length of a shape (a soak takes 60 minutes).

Kinds: Single asks for one image of four calls, Mixed for one of 1, 2, 4 or 8, Gallery for eight images, and Edit for
other versions of an image of its own. A closed loop: when the server is slow, its users are too. It shows what many
users get and where the server is full; for latency at a given load use `fewstep bench serve` or
benchmarks/load/capacity.py, which keep their schedules. Needs nothing of this checkout.
"""

import itertools
import os
import random
import struct
import zlib
from base64 import b64encode

import locust.stats  # pyright: ignore[reportMissingImports]
from locust import FastHttpUser, LoadTestShape, events, task  # pyright: ignore[reportMissingImports]

# "" asks without a key. Sent as Authorization: Bearer.
API_KEY = os.environ.get("FEWSTEP_API_KEY", "")
SHAPE = os.environ.get("FEWSTEP_SHAPE", "")
SEEDS = itertools.count()
GALLERY = 8  # images

if SHAPE not in ("", "ramp", "spike", "soak"):
    raise SystemExit(f"error: FEWSTEP_SHAPE is {SHAPE!r}; it can be ramp, spike or soak, or absent")
try:
    USERS = int(os.environ.get("FEWSTEP_USERS", "16"))  # of a shape: in the calm; a spike has four times as many
    MINUTES = float(os.environ.get("FEWSTEP_MINUTES", "0"))  # of a shape; 0: its own
except ValueError as error:
    raise SystemExit(f"error: FEWSTEP_USERS and FEWSTEP_MINUTES are numbers: {error}") from None


@events.init.add_listener
def fine_buckets(environment: object, **_: object) -> None:
    """Locust rounds to whole milliseconds, and to ten from 100 on; a few-step image takes less. Here: three digits."""
    locust.stats.bucket_response_time = lambda ms: float(f"{ms:.3g}")


class Visitor(FastHttpUser):
    """What all users have in common; asks without a pause."""

    abstract = True
    host = "http://127.0.0.1:8000"
    default_headers = {"Authorization": f"Bearer {API_KEY}"} if API_KEY else {}

    def generate(self, name: str, accept: str = "image/png", **fields: object) -> bytes | None:
        """The body of an answer with images; None without one. name: the line of the report.

        429 is the server's answer to too many users: a line of its own, and no failure.
        """
        fields["seed"] = next(SEEDS) * GALLERY
        headers = {"Accept": accept}
        with self.client.post("/v1/generate", json=fields, headers=headers, name=name, catch_response=True) as answer:
            if answer.status_code == 429:
                answer.request_meta["name"] = "429 queue full"
                answer.success()
            return answer.content if answer.status_code == 200 else None


class Single(Visitor):
    """One image of four calls."""

    weight = 6

    @task
    def one_image(self) -> None:
        self.generate("single, 4 steps", steps=4)


class Mixed(Visitor):
    """One image of one of four step counts."""

    weight = 2

    @task
    def one_image(self) -> None:
        steps = random.choice((1, 2, 4, 8))
        self.generate(f"mixed, {steps} steps", steps=steps)


class Gallery(Visitor):
    """Several images in one answer."""

    weight = 1

    @task
    def several_images(self) -> None:
        self.generate(f"gallery of {GALLERY}, 4 steps", accept="application/json", steps=4, n=GALLERY)


class Edit(Visitor):
    """The lower half of an image made again, and each picture changed as a whole."""

    weight = 1
    picture: str = ""  # base64 of the PNG that is edited

    @task
    def edit(self) -> None:
        if not self.picture:
            made = self.generate("edit, the picture", steps=1)
            if made is None:  # asked for again at the next turn
                return
            self.picture, self.mask = b64encode(made).decode(), b64encode(lower_half(*size_of(made))).decode()
        if random.random() < 0.5:
            self.generate("edit, lower half", steps=4, image=self.picture, mask=self.mask)
        else:
            self.generate("edit, strength 0.5", steps=4, image=self.picture, strength=0.5)


class Stages(LoadTestShape):
    """Numbers of users, stage by stage; Locust asks every second. Locust takes the one shape that is not abstract."""

    abstract = True
    minutes = 5.0
    stages: tuple[tuple[float, float], ...] = ()  # until this share of the time, so many times USERS

    def tick(self) -> tuple[int, float] | None:
        share = self.get_run_time() / (60 * (MINUTES or self.minutes))
        users = next((round(USERS * times) for until, times in self.stages if share < until), None)
        return None if users is None else (max(users, 1), max(users, 1))  # all of a stage come within a second


class Ramp(Stages):
    """From a tenth of the users to twice as many, in ten steps: where do latencies begin to grow?"""

    abstract = SHAPE != "ramp"
    stages = tuple((step / 10, 0.1 + 1.9 * (step - 1) / 9) for step in range(1, 11))


class Spike(Stages):
    """A calm, four times the users for a fifth of the time, and a calm: does the server recover?"""

    abstract = SHAPE != "spike"
    stages = ((0.4, 1.0), (0.6, 4.0), (1.0, 1.0))


class Soak(Stages):
    """The same users for an hour: does memory grow, does anything fail?"""

    abstract = SHAPE != "soak"
    minutes = 60.0
    stages = ((1.0, 1.0),)


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height that a PNG's header says."""
    return struct.unpack(">II", png[16:24])


def lower_half(width: int, height: int) -> bytes:
    """A gray PNG, white below: what is to be made again."""
    rows = b"".join(b"\0" + (b"\xff" if y >= height // 2 else b"\0") * width for y in range(height))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
