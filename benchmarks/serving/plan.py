"""How many devices a load needs: a simulation of the server's own scheduling on a virtual clock.

    fewstep bench plan --rate 500 --mix 1:.5,4:.5 --p99 50ms --a 1ms --b 5us
    fewstep bench plan --rate 90 --mix 4 --p99 100ms --times times.json --capacity 8

Searches the fewest devices whose p99 is within the bound, for Poisson, bursty and diurnal arrivals, and prints what one
device less would do. What HTTP adds to a request is --overhead; the network's part is --a + --b B, or measured times.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import result_file, table, write_result
from benchmarks.serving.arrivals import PROCESSES, Process, times
from benchmarks.serving.costs import Fit, chosen_capacity, fitted, linear, measured, read_times
from benchmarks.serving.mix import Mix, described, draw_kinds, mean_calls, parse_mix
from benchmarks.serving.simulate import Requests, Site, simulate
from benchmarks.serving.units import RATES, seconds, seconds_from_zero, shown
from fewstep.ranges import Range, number, whole
from fewstep.subcommands import Parser, refuse
from server.scheduler.policy import policy_of

MAX_DEVICES = 100_000
WARM_UP = 0.1  # of the requests, the first ones, which find the devices idle, are not counted
CAPACITY = 128  # slots for --a and --b, whose throughput grows with every slot
COLUMNS = {
    "arrivals": "arrivals", "devices": "devices", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "refused": "refused",
    "busy": "busy", "rows_per_call": "images/call", "within": "within the bound",
}  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """Of one simulation. Percentiles count a refused request as infinitely late; infinite ones are None."""

    arrivals: Process
    devices: int
    requests: int  # counted, without the warm-up
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    refused: int  # by the bound of the queue
    busy: float  # share of the time, mean over the devices
    rows_per_call: float
    within: bool  # p99 <= the bound


def draw_requests(process: Process, rate: float, mix: Mix, count: int, seed: int) -> Requests:
    """About `count` requests, of `rate` a second; a function of its arguments. Raises ValueError without a request."""
    due_rng, kind_rng = np.random.default_rng(seed).spawn(2)
    due_s = times(process, rate, count / rate, due_rng)
    if not len(due_s):
        raise ValueError(f"no request came; --requests {count} is too few")
    kinds = draw_kinds(mix, len(due_s), kind_rng)
    steps, images = (np.array([getattr(kind, name) for kind in mix])[kinds] for name in ("steps", "images"))
    batch = np.array([kind.priority == "batch" for kind in mix])[kinds]
    return Requests(due_s, steps, images, batch)


def figures(process: Process, requests: Requests, site: Site, bound_s: float, overhead_s: float) -> Figures:
    """What a site makes of requests."""
    outcome = simulate(requests, site)
    counted = outcome.latency_s[int(WARM_UP * len(requests.due_s)) :] + overhead_s
    p50, p95, p99 = (float(np.percentile(counted, p, method="higher")) for p in (50, 95, 99))
    p50_ms, p95_ms, p99_ms = (1000 * value if math.isfinite(value) else None for value in (p50, p95, p99))
    return Figures(
        process, site.devices, len(counted), p50_ms, p95_ms, p99_ms, int(np.isinf(counted).sum()),
        outcome.busy_s / (outcome.ended_s * site.devices), outcome.rows / outcome.network_calls, p99 <= bound_s,
    )  # fmt: skip


def fewest(within: Callable[[int], bool], least: int) -> int | None:
    """The smallest number of devices from `least` up that is within the bound; None: none up to MAX_DEVICES is.

    Doubles the distance from `least`, then halves it: more devices are never worse, but for the noise of a draw.
    """
    bad, step = least - 1, 1
    while not within(good := bad + step):
        bad, step = good, 2 * step
        if bad + step > MAX_DEVICES:
            return None
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if within(middle) else (good, middle)
    return good


def plan(args: argparse.Namespace, call_s: Sequence[float], tell: Callable[[Figures], None]) -> list[Figures]:
    """For each process the fewest devices, and one less where there is one to leave out. Raises ValueError."""
    fastest = args.overhead + max(kind.steps for kind in args.mix) * call_s[1]
    if fastest > args.p99:
        raise ValueError(
            f"no number of devices is enough: the longest request alone takes {shown(fastest)}, "
            f"and --p99 is {shown(args.p99)}"
        )
    capacity = len(call_s) - 1
    most_per_s = max(images / call_s[images] for images in range(1, capacity + 1)) / mean_calls(args.mix)
    least = max(1, math.ceil(args.rate / most_per_s))  # below it, a queue grows for ever
    site = Site(least, call_s, policy_of(args.policy, args.ageing, args.batch_delay), args.max_queue)
    rows = []
    for process in args.arrivals:
        requests = draw_requests(process, args.rate, args.mix, args.requests, args.seed)

        @cache
        def tried(devices: int, process: Process = process, requests: Requests = requests) -> Figures:
            found = figures(process, requests, replace(site, devices=devices), args.p99, args.overhead)
            tell(found)
            return found

        chosen = fewest(lambda devices: tried(devices).within, least)
        if chosen is None:
            raise ValueError(
                f"up to {MAX_DEVICES:,} devices are not enough for {process} arrivals; is --p99 too tight?"
            )
        rows += [tried(devices) for devices in (chosen - 1, chosen) if devices >= 1]
    return rows


def sized(args: argparse.Namespace) -> tuple[list[float], Fit | None]:
    """The cost of a call by the images in it, and what measured times are as a + b B. Raises ValueError."""
    if (args.times is None) == (args.a is None):
        raise ValueError("give --times FILE, or --a and --b: what a network call takes")
    if args.times is not None:
        known = read_times(args.times, args.variant)
        return measured(known, args.capacity or chosen_capacity(known)), fitted(known)
    return linear(args.a, args.b, args.capacity or CAPACITY), None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="fewstep bench plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args = _options(parser).parse_args(arguments)
    began = time.perf_counter()

    def tell(found: Figures) -> None:
        p99 = "not finite" if found.p99_ms is None else f"{found.p99_ms:.3g} ms"
        print(f"plan  {found.arrivals}, {found.devices} devices: p99 {p99}", file=sys.stderr, flush=True)

    try:
        call_s, fit = sized(args)
        mean_calls(args.mix)  # refuses a mix without steps
        rows = plan(args, call_s, tell)
    except ValueError as error:
        refuse(str(error))
    lines = [{**asdict(row), "within": "yes" if row.within else "no"} for row in rows]
    print(table(lines, COLUMNS))
    if fit:
        a, b = (shown(value).replace(" ", "") for value in (fit.a_s, fit.b_s))
        print(f"the measured times are --a {a} --b {b} within {fit.off:.0%}; the plan is of the times themselves")
    for row in rows:
        if row.within:
            devices = f"{row.devices} device{'s' * (row.devices > 1)} of {len(call_s) - 1} slots"
            print(f"{row.arrivals}: {devices} for {args.rate:g} requests/s of {described(args.mix)}")
    print(f"simulated in {time.perf_counter() - began:.1f} s; {args.requests:,} requests each", file=sys.stderr)
    if args.json:
        write_result(args.json, "plan", _settings(args, call_s, fit), [asdict(row) for row in rows])
        print(f"wrote {args.json}")
    return 0


def _options(parser: Parser) -> Parser:
    add = parser.add_argument
    add("--rate", type=number(RATES), required=True, metavar="R", help="requests a second")
    add("--mix", type=argument(parse_mix), required=True, metavar="MIX", help="STEPS:SHARE,..., such as 1:.5,4:.5; "
        "4x8:.1 for 8 images of 4 steps; 4x8b:.1 for batch priority; or the peers' JSON list")  # fmt: skip
    add("--p99", type=argument(seconds), required=True, metavar="TIME", help="within which 99 %% of the requests are "
        "answered, such as 50ms")  # fmt: skip
    add("--a", type=argument(seconds_from_zero), metavar="TIME", help="of a network call, whatever its images: 1ms")
    add("--b", type=argument(seconds_from_zero), default=0.0, metavar="TIME", help="of each image in it: 5us")
    add("--times", type=Path, metavar="FILE", help='measured: JSON of milliseconds by batch size, '
        '{"1": 1.3, "8": 1.4}, or a result of benchmarks/engine_speed.py')  # fmt: skip
    add("--variant", metavar="NAME", help="which rows of such a result")
    add("--capacity", type=whole(1, 4096), metavar="N", help="slots of a device (default: 128 with --a, with --times "
        "what the server's --capacity 0 chooses)")  # fmt: skip
    add("--overhead", type=argument(seconds_from_zero), default=0.0, metavar="TIME", help="that HTTP adds to a request "
        "(default: 0)")  # fmt: skip
    add("--policy", choices=("fifo", "deadline", "shortest"), default="fifo", help="the server's (default: fifo)")
    add("--ageing", type=number(Range(0.01)), default=15.0, help="of policy shortest (default: 15)")
    add("--batch-delay", type=argument(seconds_from_zero), default=10.0, metavar="TIME", help="the server's "
        "batch_delay_s (default: 10s)")  # fmt: skip
    add("--max-queue", type=whole(0), default=256, metavar="N", help="images that may wait, of all devices together, "
        "as the server's max_queue (default: 256)")  # fmt: skip
    add("--arrivals", choices=PROCESSES, nargs="+", default=list(PROCESSES), help="default: all three")
    add("--requests", type=whole(1_000, 10**8), default=100_000, metavar="N", help="of a simulation (default: 100000)")
    add("--seed", type=whole(0), default=0, help="of the arrivals (default: 0)")
    add("--json", type=result_file, metavar="FILE", help="write the figures here, too")
    return parser


def argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse's type of a reader that raises ValueError with a sentence."""

    def typed(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def _settings(args: argparse.Namespace, call_s: Sequence[float], fit: Fit | None) -> dict[str, Any]:
    names = ("rate", "p99", "overhead", "policy", "ageing", "batch_delay", "max_queue", "requests", "seed")
    return {
        **{name: getattr(args, name) for name in names},
        "mix": json.loads(json.dumps([asdict(kind) for kind in args.mix])),
        "capacity": len(call_s) - 1,
        "fit": fit and asdict(fit),
        "call_ms": [1000 * taken for taken in call_s[1:]],
    }


if __name__ == "__main__":
    sys.exit(main())
