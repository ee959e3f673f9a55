"""Users for Locust (https://locust.io): each asks for an image, waits for it, and asks again.

    python3 -m venv build/locust && build/locust/bin/pip install 'locust>=2.30'
    build/locust/bin/locust -f benchmarks/load/locustfile.py --headless -u 16 -r 16 -t 30s --host http://127.0.0.1:8000

A closed loop: when the server is slow, its users are too. It shows what many users get and where the server is full;
for latency at a given load use benchmarks/load/capacity.py, which keeps its schedule. Needs nothing of this checkout.
"""

import itertools
import os
import random

import locust.stats  # pyright: ignore[reportMissingImports]
from locust import FastHttpUser, events, tag, task  # pyright: ignore[reportMissingImports]

# "" asks without a key. Sent as Authorization: Bearer.
API_KEY = os.environ.get("FEWSTEP_API_KEY", "")
SEEDS = itertools.count()


@events.init.add_listener
def fine_buckets(environment: object, **_: object) -> None:
    """Locust rounds to whole milliseconds, and to ten from 100 on; a few-step image takes less. Here: three digits."""
    locust.stats.bucket_response_time = lambda ms: float(f"{ms:.3g}")


class Visitor(FastHttpUser):
    """Asks for images of mixed step counts without a pause."""

    host = "http://127.0.0.1:8000"
    default_headers = {"Authorization": f"Bearer {API_KEY}"} if API_KEY else {}

    @tag("single")
    @task(9)
    def one_image(self) -> None:
        self.generate(random.choice((1, 2, 4, 8)), 1)

    @tag("several")
    @task(1)
    def several_images(self) -> None:
        self.generate(random.choice((1, 2, 4, 8)), 8)

    def generate(self, steps: int, images: int) -> None:
        """One request. 429 is the server's answer to too many users: listed apart, not as a failure."""
        name = f"/v1/generate steps={steps} n={images}"
        fields = {"steps": steps, "n": images, "seed": next(SEEDS)}
        with self.client.post("/v1/generate", json=fields, name=name, catch_response=True) as answer:
            if answer.status_code == 429:
                answer.request_meta["name"] = "429 queue full"
                answer.success()
