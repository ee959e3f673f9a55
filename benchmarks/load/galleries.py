"""How much of its network a server gives to requests of 1, 8 and 64 images, with 1, 2 and 4 HTTP processes.

    python benchmarks/load/galleries.py             # fifteen minutes
    python benchmarks/load/galleries.py --smoke     # two minutes; proves that it runs
    python benchmarks/load/galleries.py --peer-python build/peers/bin/python     # where BentoML, Ray and Triton are

The network is the one of fixed cost of peers.py, 1 ms + 5 us a row, 128 slots; steps are mixed from 1, 2, 4 and 8.
Every server has as many images outstanding, four full batches of them. The peers of peers.py take one image a request;
whoever wants eight of them sends eight requests, so their figure for one image stands for every number. All take turns.
R* is the back-to-back limit of the network, measured before each round. Where HTTP processes, client and network share
two cores, more processes cannot help; the CPU time per image says what each costs.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks.harness import table, write_result
from benchmarks.load.capacity import Campaign
from benchmarks.load.closed_loop import saturate
from benchmarks.load.cores import available, pin
from benchmarks.load.peers import (
    OURS,
    Contest,
    Peer,
    add_shared_options,
    available_peers,
    circumstances,
    cpu_s,
    spread,
)
from fewstep.ranges import whole

BATCHES = 4  # full ones that are outstanding
MOST = 64  # images of a request, the default of the server
COLUMNS = {
    "server": "server", "api_processes": "HTTP processes", "images": "images a request", "images_per_s": "images/s",
    "share": "share of R*", "cpu_ms": "CPU ms/image", "ratio": "images/s, ours/it",
}  # fmt: skip
Turn = tuple[Peer, int, int]  # server, HTTP processes, images of a request


def turns(peers: Sequence[Peer], processes: Sequence[int], images: Sequence[int]) -> Iterator[Turn]:
    """Ours in every combination, the first one being the one that others are compared with; then each peer."""
    for count in processes:
        for n in images:
            yield OURS, count, n
    for each in peers:
        if each is not OURS:
            yield each, 1, 1


def measure(contest: Contest, turn: Turn) -> dict[str, Any]:
    """One server under a closed loop."""
    each, processes, n = turn
    args, capacity = contest.args, contest.campaign.args.capacity
    with contest.running(each, ["--api-processes", str(processes)]) as server:
        end_s, before_s = args.warmup_s + args.seconds, cpu_s(server)
        outstanding = max(1, BATCHES * capacity // n)
        made = saturate(server.url, outstanding, args.warmup_s, end_s, images=n, body=each.body)
        rate = asyncio.run(made)
        cpu_ms = 1e3 * (cpu_s(server) - before_s) / max(rate * end_s, 1)
    return {
        "server": each.name, "api_processes": processes, "images": n, "images_per_s": rate, "cpu_ms": cpu_ms,
    }  # fmt: skip


def medians(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each turn: medians over the rounds, and the ratios of the first turn's images/s in each round."""
    grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["server"], row["api_processes"], row["images"]), []).append(row)
    first = {row["round"]: row["images_per_s"] for row in next(iter(grouped.values()))}
    made = []
    for (server, processes, n), group in grouped.items():
        found: dict[str, Any] = {"server": server, "api_processes": processes, "images": n}
        found |= {key: median(row[key] for row in group) for key in ("images_per_s", "share", "cpu_ms")}
        ratios = [first[row["round"]] / row["images_per_s"] for row in group if row["images_per_s"]]
        made.append({**found, "ratio": spread(ratios)})
    return made


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, "galleries", rounds=3, seconds=8)
    parser.add_argument("--capacity", type=whole(2), default=128, help="rows of a call (default %(default)s)")
    parser.add_argument("--images", type=whole(1, MOST), nargs="+", default=[1, 8, 64], metavar="N",
                        help="images of a request (default 1 8 64)")  # fmt: skip
    parser.add_argument("--api-processes", type=whole(1), nargs="+", default=[1, 2, 4], metavar="N",
                        help="HTTP processes (default 1 2 4)")  # fmt: skip
    args = parser.parse_args(arguments)
    args.backend = None  # the network is the one of fixed cost
    if args.smoke:
        args.rounds, args.seconds, args.warmup_s, args.limit_s = 1, 2, 0.5, 0.2
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    args.logs.mkdir(parents=True, exist_ok=True)
    cores = available()
    peers, missing = available_peers(args.peer_python)
    print(*missing, sep="\n", file=sys.stderr)
    pin(psutil.Process(), cores.rest)
    contest = Contest(args, Campaign(args, "fixed", cores), peers, [])
    every = list(turns(peers, args.api_processes, args.images))
    rows: list[dict[str, Any]] = []
    with tqdm(total=args.rounds * len(every), unit="turn") as progress:
        for round_number in range(args.rounds):
            limit = contest.campaign.alone(rounds=2, round_s=args.limit_s)["limit_per_s"]
            for turn in np.random.default_rng(round_number).permutation(len(every)):
                found = measure(contest, every[turn])
                rows.append(
                    {"round": round_number, "limit_per_s": limit, "share": found["images_per_s"] / limit, **found}
                )
                progress.update()
    order = {(each.name, processes, n): place for place, (each, processes, n) in enumerate(every)}
    rows.sort(key=lambda row: (order[row["server"], row["api_processes"], row["images"]], row["round"]))
    print(table(medians(rows), COLUMNS))
    names = ("capacity", "images", "api_processes", "rounds", "seconds", "warmup_s", "batch_timeout_s")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"outstanding_batches": BATCHES, **circumstances(args, cores, missing)}
    write_result(args.out, "galleries", settings, rows, medians=medians(rows))
    print(f"\nwrote {args.out}; the servers' logs are in {args.logs}")


if __name__ == "__main__":
    main()
