"""Fifteen minutes of ordinary abuse: visitors who leave, nonsense, and two workers killed; then all counts are checked.

    python benchmarks/load/soak.py                # fifteen minutes
    python benchmarks/load/soak.py --minutes 1    # a smoke

Ends with exit code 1 when a slot leaked, memory grew, a visitor was left without an answer, or the server's counts do
not add up with what the visitors saw.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import ROOT, percentile_ms, result_file, table, write_result
from benchmarks.load.arrivals import STEP_MIX, mean_steps, poisson
from benchmarks.load.closed_loop import saturate
from benchmarks.load.cores import available, pin
from benchmarks.load.fixed_cost import Cost
from benchmarks.load.http_client import Pool, error_code, generate, request
from benchmarks.load.ledger import NO_ANSWER, Books, Ending, Scrape, balance
from benchmarks.load.memory import Growth, Sample, growth, sample
from benchmarks.load.servers import Running, ours, stop
from benchmarks.load.visits import MEAN_IMAGES, Visit, plan
from export.manifest import read_manifest
from fewstep.ranges import POSITIVE, SHARE, number, whole

TIMEOUT_S = 90.0  # longer than the server's own, so that a timeout here is the server's fault
SAMPLE_EVERY_S = 5.0
KILLS_AT = (0.35, 0.7)  # of the whole time
GROWN_MB = 4.0  # growth of one process that still counts as flat
SETTLE_S = 20.0
RESTART_S = 60.0
PROBES = tuple({"seed": seed, "steps": steps} for seed, steps in ((7, 1), (8, 4), (9, 8)))


class Soak:
    """One soak of one running server."""

    def __init__(self, server: Running, minutes: float, seed: int) -> None:
        self.server = server
        self.pool = Pool(server.url)
        self.seconds = minutes * 60
        self.seed = seed
        self.samples: list[Sample] = []
        self.kills: list[dict[str, Any]] = []
        self.started = 0.0

    async def run(self, load: float, leaving: float, bad: float) -> dict[str, Any]:
        """Everything but the start and the end of the server."""
        most = await saturate(self.server.url, 32, 1, min(6.0, 1 + self.seconds / 10))
        first = await self.probe()
        await self.at_rest()
        before = await self.scrape()
        call_s = before.total("fewstep_slots") / mean_steps() / most
        # Who leaves has had half of the images made, on average.
        rate = load * most / (MEAN_IMAGES * (1 - bad - leaving / 2))
        schedule = poisson(rate, self.seconds, seed=self.seed)
        visits = plan(schedule, leaving=leaving, bad=bad, call_s=call_s, seed=self.seed)
        self.started = time.perf_counter()
        watcher, killer = asyncio.create_task(self.watch()), asyncio.create_task(self.kill())
        endings = await self.play(visits)
        await killer
        rested = await self.at_rest()
        watcher.cancel()
        after = await self.scrape()
        last = await self.probe()
        self.pool.close()
        return {
            "saturated_per_s": most,
            "rate_per_s": rate,
            "visits": len(visits),
            "left_share": sum(ending.left for ending in endings) / len(endings),
            **_waits(endings),
            "books": balance(endings, before, after),
            "same_bytes": first == last,
            "rested": rested,
        }

    async def play(self, visits: Sequence[Visit]) -> list[Ending]:
        tasks = []
        for visit in visits:
            wait = self.started + visit.due_s - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self.visit(visit)))
        return await asyncio.gather(*tasks)

    async def visit(self, visit: Visit) -> Ending:
        """One visitor on a connection of their own choosing; whoever leaves closes it."""
        try:
            connection = await self.pool.take()
        except OSError as error:
            return Ending(visit, NO_ANSWER, type(error).__name__, left=False)
        waiter, sent = connection.send(visit.payload), time.perf_counter()
        try:
            answer = await asyncio.wait_for(waiter, TIMEOUT_S if visit.patience_s is None else visit.patience_s)
            code = error_code(answer) if answer.status >= 400 else ""
            return Ending(visit, answer.status, code, left=False, waited_s=answer.done_s - sent)
        except TimeoutError:
            connection.abort()
            return Ending(visit, NO_ANSWER, "timeout", left=visit.patience_s is not None)
        except OSError as error:
            return Ending(visit, NO_ANSWER, str(error), left=False)
        finally:
            self.pool.give(connection)

    async def kill(self) -> None:
        """kill -9 of a worker at the given moments; notes how long the server was not ready."""
        for share in KILLS_AT:
            await asyncio.sleep(self.started + share * self.seconds - time.perf_counter())
            worker = self.server.roles()["worker"][0]
            worker.kill()
            killed = time.perf_counter()
            while not await self.replaced(worker.pid):
                if time.perf_counter() - killed > RESTART_S:
                    raise RuntimeError(
                        f"no worker was ready {RESTART_S:g} s after one was killed; see the server's log"
                    )
                await asyncio.sleep(0.02)
            self.kills.append({
                "at_s": killed - self.started, "pid": worker.pid, "ready_again_s": time.perf_counter() - killed,
            })  # fmt: skip

    async def watch(self) -> None:
        while True:
            self.samples += sample(time.perf_counter() - self.started, self.server.roles())
            await asyncio.sleep(min(SAMPLE_EVERY_S, self.seconds / 40))

    async def at_rest(self) -> bool:
        """Waits until no slot is held and nobody queues; False when that does not come."""
        deadline = time.perf_counter() + SETTLE_S
        while time.perf_counter() < deadline:
            await asyncio.sleep(0.3)  # statistics come four times a second
            now = await self.scrape()
            if not now.total("fewstep_active_slots") and not now.total("fewstep_waiting_images"):
                return True
        return False

    async def replaced(self, pid: int) -> bool:
        """Whether another worker is there in its place and warm."""
        if pid in [worker.pid for worker in self.server.roles()["worker"]]:
            return False
        try:
            return (await self.pool.fetch(request("GET", "/readyz"), 5)).status == 200
        except OSError:
            return False

    async def scrape(self) -> Scrape:
        answer = await self.pool.fetch(request("GET", "/metrics"))
        if answer.status != 200:
            raise RuntimeError(f"/metrics answered {answer.status}; a soak needs it")
        return Scrape.parse(answer.body.decode())

    async def probe(self) -> list[str]:
        """Hashes of a few images made on an idle server."""
        answers = [await self.pool.fetch(generate(fields)) for fields in PROBES]
        if statuses := {answer.status for answer in answers} - {200}:
            raise RuntimeError(f"an idle server answered {statuses} to a request that is in order")
        return [hashlib.sha256(answer.body).hexdigest() for answer in answers]


def _waits(endings: Sequence[Ending]) -> dict[str, float]:
    """Of those who stayed and got their images."""
    waits = [ending.waited_s for ending in endings if ending.status == 200 and ending.visit.kind == "stays"]
    return {name: percentile_ms(waits, percent) for name, percent in (("p50_ms", 50), ("p99_ms", 99), ("max_ms", 100))}


def problems(found: dict[str, Any], grown: Sequence[Growth], exit_code: int | None, orphans: int) -> list[str]:
    """Everything that is not as it should be, in sentences."""
    books: Books = found["books"]
    sentences = list(books.problems)
    if not found["rested"]:
        sentences.append(f"slots were still held {SETTLE_S:g} s after the last visitor")
    if not found["same_bytes"]:
        sentences.append("the same seeds gave other bytes at the end than at the beginning")
    sentences += [f"{g.role} {g.pid} grew by {g.grown_mb:.1f} MB" for g in grown if g.grown_mb > GROWN_MB]
    if exit_code != 0:
        sentences.append(f"the server ended with {exit_code} after SIGTERM")
    if orphans:
        sentences.append(f"{orphans} processes outlived the server")
    return sentences


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine",
        type=Path,
        default=ROOT / "models/fashion/engine",
        metavar="DIR",
        help="engine of the student (default %(default)s)",
    )
    parser.add_argument("--cost", type=Cost.parse, metavar="A,B[,FLOOR]", help="a fixed-cost network in milliseconds")
    parser.add_argument("--minutes", type=number(POSITIVE), default=15, help="of load (default %(default)s)")
    parser.add_argument(
        "--load", type=number(POSITIVE), default=0.6, help="of what the server gives when saturated (default 0.6)"
    )
    parser.add_argument("--leaving", type=number(SHARE), default=0.2, help="share of visitors who leave (default 0.2)")
    parser.add_argument(
        "--bad", type=number(SHARE), default=0.1, help="share of visitors who ask for nonsense (default 0.1)"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, help="of the arrivals and of what visitors do (default %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=result_file,
        default=ROOT / "build" / "soak.json",
        help="the JSON with the result (default %(default)s)",
    )
    parser.add_argument("server", nargs="*", help="after --: further flags of python -m server")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cores = available()
    pin(psutil.Process(), cores.rest)
    flags = ["--engine", str(args.engine), "--threads", str(len(cores.engine)), *args.server]
    with ours(flags, cores, cost=args.cost, log=args.out.with_suffix(".log")) as server:
        soak = Soak(server, args.minutes, args.seed)
        found = asyncio.run(soak.run(args.load, args.leaving, args.bad))
        exit_code, orphans = stop(server)
    grown = growth(soak.samples)
    wrong = problems(found, grown, exit_code, orphans)
    books: Books = found["books"]
    rows = [{"outcome": name, "seen": books.seen.get(name, 0), "counted": books.counted.get(name)} for name in
            sorted({*books.seen, *books.counted})]  # fmt: skip
    memory = [asdict(one) for one in grown]
    headings = ("role", "pid", "samples", "first_mb", "last_mb", "peak_mb", "grown_mb", "mb_per_hour")
    print(table(rows, {"outcome": "outcome", "seen": "visitors saw", "counted": "server counted"}))
    print("", table(memory, {name: name for name in headings}), "", sep="\n")
    for kill in soak.kills:
        print(f"worker {kill['pid']} killed at {kill['at_s']:.0f} s, ready again after {kill['ready_again_s']:.2f} s")
    print(
        f"{found['visits']} visits, {found['rate_per_s']:.1f} a second; {found['left_share']:.0%} left; "
        f"p50 {found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms, longest {found['max_ms']:.0f} ms"
    )
    print(*(wrong or ["no slot leaked, memory is flat, every visitor is accounted for"]), sep="\n")
    model = read_manifest(args.engine)
    settings = {key: getattr(args, key) for key in ("minutes", "load", "leaving", "bad", "seed", "server")}
    settings |= {
        "model": model.name,
        "checkpoint": model.checkpoint,
        "cost_ms": asdict(args.cost) if args.cost else None,
    }
    settings |= {"cores": asdict(cores), "steps": STEP_MIX}
    result = {key: value for key, value in found.items() if key != "books"} | {
        "exit_code": exit_code,
        "orphans": orphans,
    }
    write_result(
        args.out,
        "soak",
        settings,
        rows,
        **result,
        books=asdict(books),
        kills=soak.kills,
        memory=memory,
        samples=[one._asdict() for one in soak.samples],
        problems=wrong,
    )
    print(f"\nwrote {args.out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
