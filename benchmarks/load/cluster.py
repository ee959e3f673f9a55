"""Two replicas of the server on a local Ray cluster: how much more they give than one, and what a dead node costs.

    python benchmarks/load/cluster.py

The network is one of fixed cost that only sleeps, so that replicas share no processor. First turns of one replica,
then of two, under the same closed loop. Then the node of one replica is killed in the middle of a run: each request is
either answered, refused with 503, lost or hanging, and the images of a seed must be the same bytes from every replica.
The killed replica starts again on a third node.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.harness import ROOT, need, result_file, table, write_result
from benchmarks.load.fixed_cost import Cost, install
from benchmarks.load.http_client import Pool, generate
from export.manifest import read_student
from fewstep.ranges import Range, number, whole
from server.hosts.ray import NAME, Plan, build, join, prepare_environment, start_proxies
from server.settings.settings import Settings

need("ray")  # with a sentence where it is missing

SLOTS = 8
STEPS = 8
IMAGES = 4  # of a request
COST = Cost(125, 0)  # 8 images of 8 calls take a second: 8 images/s of a replica, which cost little processor time
OUTSTANDING = 16  # requests: four times the slots of two replicas
SEEDS = 16 * IMAGES  # each is asked for again and again: every answer must have the same bytes
WARM_UP_S = 4.0
HANGING_S = 60.0  # a request without an answer for so long hangs
WINDOW_S = 2.0  # over which images per second are counted after a node has died
RECOVERED = 0.9  # of the rate before
STORE_BYTES = 80 * 2**20  # of each node: images do not go through Ray's store


@dataclass(frozen=True)
class Sent:
    """One request. Seconds since the loop began."""

    sent_s: float
    done_s: float
    outcome: str  # the status of the answer, or "lost" or "hanging"
    replayed: bool


@contextmanager
def local_cluster(settings: Settings, others: int) -> Iterator[Any]:
    """A Ray cluster on this machine: a head, which has the proxy, and other nodes, each with room for one replica."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # which would count the memory of other programs
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # Python processes without a use here
    prepare_environment()
    node = {"object_store_memory": STORE_BYTES, "num_cpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        join(cluster.address)
        for _ in range(others):
            cluster.add_node(**node)
        start_proxies(settings, everywhere=False)  # the nodes of one machine have one port 8000
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def serve_on(settings: Settings, replicas: int, prepare: Callable[[], None]) -> None:
    """So many replicas, from now on. prepare: called in each before it loads its engine."""
    from ray import serve  # pyright: ignore[reportMissingImports]

    manifests = {name: read_student(folder, name) for name, folder in settings.engines.items()}
    plan = Plan(min_replicas=replicas, max_replicas=replicas)
    serve.run(build(settings, manifests, plan, prepare), name=NAME, route_prefix="/")


class ClosedLoop:
    """A fixed number of requests always outstanding, for `seconds` from `run`."""

    def __init__(self, url: str, outstanding: int, seconds: float) -> None:
        self.url, self.outstanding, self.seconds = url, outstanding, seconds
        self.sent: list[Sent] = []
        self.digests: dict[int, set[str]] = {}  # of the answers for each seed
        self.began_s = 0.0

    @property
    def now_s(self) -> float:
        return time.perf_counter() - self.began_s

    async def run(self) -> None:
        self.began_s = time.perf_counter()
        pool = Pool(self.url)
        async with asyncio.TaskGroup() as group:
            for user in range(self.outstanding):
                group.create_task(self._user(pool, user * IMAGES))
        pool.close()

    async def _user(self, pool: Pool, seed: int) -> None:
        while (sent_s := self.now_s) < self.seconds:
            seed = (seed + self.outstanding * IMAGES) % SEEDS
            replayed = False
            try:
                answer = await pool.fetch(generate({"steps": STEPS, "n": IMAGES, "seed": seed, "label": 0}), HANGING_S)
            except TimeoutError:
                outcome = "hanging"
            except OSError:
                outcome = "lost"
                await asyncio.sleep(0.1)
            else:
                outcome, replayed = str(answer.status), "x-replays" in answer.headers
                if answer.status == 200:
                    images = json.dumps(json.loads(answer.body)["data"])  # the rest says how long it took
                    self.digests.setdefault(seed, set()).add(hashlib.sha256(images.encode()).hexdigest())
            self.sent.append(Sent(sent_s, self.now_s, outcome, replayed))

    def rate(self, begin_s: float, end_s: float) -> float:
        """Images per second answered between two times."""
        done = [each for each in self.sent if each.outcome == "200" and begin_s <= each.done_s < end_s]
        return IMAGES * len(done) / (end_s - begin_s)

    @property
    def seeds_of_one_image(self) -> bool:
        """Whether each seed had the same bytes in every answer."""
        return all(len(found) == 1 for found in self.digests.values())


def turn(url: str, replicas: int, seconds: float) -> float:
    """Images per second of so many replicas."""
    loop = ClosedLoop(url, OUTSTANDING, seconds + WARM_UP_S)
    asyncio.run(loop.run())
    if other := {each.outcome for each in loop.sent} - {"200"}:
        raise RuntimeError(f"with {replicas} replicas and no trouble, requests ended as {sorted(other)}")
    return loop.rate(WARM_UP_S, WARM_UP_S + seconds)


def recovered_after_s(loop: ClosedLoop, killed_s: float, before: float) -> float | None:
    """Seconds from the death of a node to the first window with the rate before it; None where there is none."""
    end_s = killed_s
    while (end_s := end_s + 0.25) <= loop.seconds:
        if end_s - WINDOW_S >= killed_s and loop.rate(end_s - WINDOW_S, end_s) >= RECOVERED * before:
            return end_s - WINDOW_S - killed_s
    return None


async def survive(cluster: Any, url: str, seconds: float, kill_s: float) -> dict[str, Any]:
    """Load on two replicas, one of whose nodes is killed at kill_s."""
    loop = ClosedLoop(url, OUTSTANDING, seconds)
    loop.began_s = time.perf_counter()
    running = asyncio.create_task(loop.run())
    await asyncio.sleep(kill_s)
    node = next(node for node in cluster.worker_nodes if node.node_id in placed())
    killed_s = loop.now_s
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
    await running
    before = loop.rate(WARM_UP_S, killed_s)
    outcomes = Counter(each.outcome for each in loop.sent)
    after = [each for each in loop.sent if each.done_s >= killed_s]
    return {
        "requests": len(loop.sent),
        "outcomes": dict(outcomes),
        "made_again": sum(each.replayed for each in loop.sent),
        "refused_503": outcomes["503"],
        "lost": outcomes["lost"] + sum(count for name, count in outcomes.items() if name in ("500", "502", "504")),
        "hanging": outcomes["hanging"],
        "longest_s": max(each.done_s - each.sent_s for each in after),
        "before_per_s": before,
        "survivor_s": recovered_after_s(loop, killed_s, before / 2),
        "recovered_s": recovered_after_s(loop, killed_s, before),
        "same_bytes": loop.seeds_of_one_image,
    }


def placed() -> list[str]:
    """The node of each replica that runs. Ray's public list of actors needs its dashboard."""
    from ray._private.state import actors  # pyright: ignore[reportMissingImports]

    alive = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
    return [actor["Address"]["NodeID"] for actor in alive if actor["ActorClassName"] == f"ServeReplica:{NAME}:{NAME}"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", type=Cost.parse, default=COST, metavar="A,B[,FLOOR]", help="milliseconds of a call")
    parser.add_argument("--port", type=whole(1024, 65_535), default=8_000, help="of the proxy (default %(default)s)")
    parser.add_argument("--rounds", type=whole(1, 100), default=3, help="turns of one and of two replicas each")
    parser.add_argument("--seconds", type=number(Range(2, 3_600)), default=12.0, help="of a turn")
    parser.add_argument(
        "--kill-seconds", type=number(Range(10, 3_600)), default=60.0, help="of the run with a dead node"
    )
    parser.add_argument(
        "--out", type=result_file, default=ROOT / "build" / "cluster.json", metavar="FILE", help="the JSON"
    )
    args = parser.parse_args(arguments)
    engines = {"fashion": ROOT / "models" / "fashion" / "engine"}
    settings = Settings(engines, port=args.port, mode="exact", capacity=SLOTS, log_level="error")
    url = f"http://127.0.0.1:{args.port}"
    rates: dict[int, list[float]] = {1: [], 2: []}
    with local_cluster(settings, others=2) as cluster:
        for replicas, turns in rates.items():
            serve_on(settings, replicas, partial(install, args.cost))
            for _ in range(args.rounds):
                turns.append(turn(url, replicas, args.seconds))
                print(f"{replicas} replicas: {turns[-1]:.2f} images/s", flush=True)
        death = asyncio.run(survive(cluster, url, args.kill_seconds, WARM_UP_S + args.seconds))
    ideal = SLOTS / args.cost.seconds(SLOTS) / STEPS
    ratio = sum(rates[2]) / sum(rates[1])
    rows = [{"replicas": count, "images_per_s": found, "ideal_per_s": count * ideal} for count, found in rates.items()]
    shown = [{**row, "images_per_s": sum(row["images_per_s"]) / args.rounds} for row in rows]
    print(table(shown, {"replicas": "replicas", "images_per_s": "images/s", "ideal_per_s": "ideal"}))
    print(f"two over one: {ratio:.3f}\na node killed: {death}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    chosen = {
        "cost_ms": str(args.cost),
        "slots": SLOTS,
        "steps": STEPS,
        "images": IMAGES,
        "seconds": args.seconds,
        "outstanding": OUTSTANDING,
    }
    write_result(args.out, "cluster", chosen, rows, two_over_one=ratio, killed=death)
    return 0


if __name__ == "__main__":
    sys.exit(main())
