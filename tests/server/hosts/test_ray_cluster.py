"""Two replicas on a local Ray cluster of two nodes: one image of a seed, streams, and a node that is killed.

Each network call sleeps, too, so that requests are in flight when the node dies. A minute on a quiet machine.
"""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray.serve", reason="ray is not installed; it comes with [cluster]")

from benchmarks.load.cluster import local_cluster, placed, serve_on
from export.manifest import read_student
from server.hosts.ray import proxies_replay
from server.scheduler.loading import LoadOptions
from server.scheduler.local import LocalService
from server.scheduler.validate import image_request
from server.settings.settings import Settings
from tests.server.slow_engine import install

pytestmark = pytest.mark.timeout(1200)  # on a machine that does other things, Ray takes minutes to start
CALL_S = 0.25
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Served:
    cluster: Any
    url: str
    settings: Settings


@pytest.fixture(scope="module")
def served(engine_dir: Path) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = Settings({"tiny": engine_dir}, port=port, mode="exact", capacity=4, max_queue=8, max_images=8)
    with local_cluster(settings, others=1) as cluster:
        serve_on(settings, 2, partial(install, CALL_S))
        yield Served(cluster, f"http://127.0.0.1:{port}", settings)


def test_the_proxy_makes_requests_again(served: Served):
    assert proxies_replay(served.settings)


def test_every_dialect_answers_with_its_own_headers_and_errors(served: Served):
    with httpx.Client(base_url=served.url, timeout=DEADLINE_S) as client:
        image = client.post("/v1/generate", json={"seed": 7, "steps": 1}, headers={"X-Request-Id": "mine"})
        assert (image.status_code, image.headers["content-type"]) == (200, "image/png"), image.text
        assert (image.headers["x-mode"], image.headers.get_list("x-request-id")) == ("exact", ["mine"])
        openai = client.post("/v1/images/generations", json={"model": "tiny", "prompt": "coat", "n": 2})
        assert len(openai.json()["data"]) == 2
        assert client.get("/v2/models/tiny").json()["name"] == "tiny" and client.get("/readyz").text == "ok\n"
        refused = client.post("/v1/generate", json={"sead": 7})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "sead")
        too_many = client.post("/v1/generate", json={"n": 9})
        assert too_many.status_code == 400
        assert "fewstep_ready 1.0" in client.get("/metrics").text


def test_events_come_as_they_are_made(served: Served):
    asked = {"seed": 7, "steps": 4, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/generate", json=asked, timeout=DEADLINE_S) as stream:
        names = [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]
    assert names == [*["preview"] * 3, "images"]


def test_a_killed_node_loses_no_request_and_every_answer_has_the_bytes_of_one_machine(served: Served, engine_dir: Path):
    async def scene() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.url, timeout=DEADLINE_S) as client:
            posts = [client.post("/v1/generate", json=body) for _ in range(8)]
            asked = [asyncio.ensure_future(post) for post in posts]
            await asyncio.sleep(2 * CALL_S)
            await asyncio.to_thread(served.cluster.remove_node, node, allow_graceful=False)
            return await asyncio.gather(*asked)

    body = {"seed": 3, "steps": 8, "label": 1, "format": "webp"}
    (node,) = served.cluster.worker_nodes
    assert node.node_id in placed() and len(placed()) == 2
    answers = asyncio.run(scene())
    assert {answer.status_code for answer in answers} <= {200, 503}, [answer.text for answer in answers]
    images = {answer.content for answer in answers if answer.status_code == 200}
    asked = image_request(read_student(engine_dir, "tiny"), seed=3, steps=8, label=1, format="webp")
    with LocalService.open({"tiny": engine_dir}, LoadOptions(mode="exact", capacity=4)) as service:
        (alone,) = service.submit(asked).result().images
    assert images == {alone}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(answer.json()["error"]["code"] == "worker_lost" for answer in refused)
    assert refused or any("x-replays" in answer.headers for answer in answers), "no request was on the dead node"
    again = httpx.post(f"{served.url}/v1/generate", json=body, timeout=DEADLINE_S)
    assert {again.content} == images
