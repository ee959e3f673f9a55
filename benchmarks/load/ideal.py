"""What a first-come server would do if everything but its network calls took no time: the best that `capacity.py` can
measure.

    python benchmarks/load/ideal.py --capacity 8 16 24 32              # on the fixed-cost network of capacity.py
    python benchmarks/load/ideal.py --cost 4,3.1 --overhead-ms 2       # t(B) of your own, and something around it

Prints the 99th percentile over its goal, (S_max + 2) t(cap) + 10 ms, over many draws of the arrivals: whether the goal
can be reached at all, and how much a measured figure depends on the draw. Simulated in seconds; nothing is served.
"""

from fewstep import extras

extras.name_missing()

import argparse
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import table
from benchmarks.load.arrivals import STEP_MIX, Arrival, mean_steps, poisson
from benchmarks.load.fixed_cost import Cost
from benchmarks.load.targets import latency_limit_s
from fewstep.ranges import POSITIVE, Range, number, whole

WARMUP_S = 1.5


def ideal_latencies(schedule: Sequence[Arrival], capacity: int, tick_s: Callable[[int], float]) -> NDArray[np.float64]:
    """Seconds from due to done of each request of one image, in order of arrival.

    tick_s: seconds of a network call by the images in it. Whoever has arrived when a call begins and finds a slot takes
    part in it, the first to come first; a finished image leaves at once.
    """
    latencies = np.zeros(len(schedule))
    waiting: deque[int] = deque()
    left: dict[int, int] = {}  # request -> calls it still needs
    now, nxt = 0.0, 0
    while nxt < len(schedule) or waiting or left:
        if not waiting and not left:
            now = max(now, schedule[nxt].due_s)
        while nxt < len(schedule) and schedule[nxt].due_s <= now:
            waiting.append(nxt)
            nxt += 1
        while waiting and len(left) < capacity:
            request = waiting.popleft()
            left[request] = schedule[request].steps
        now += tick_s(len(left))
        left = {request: calls - 1 for request, calls in left.items()}
        for request in [request for request, calls in left.items() if calls == 0]:
            del left[request]
            latencies[request] = now - schedule[request].due_s
    return latencies


def p99_over_goal(cost: Cost, capacity: int, load: float, seconds: float, draw: int, overhead_s: float) -> float:
    """The figure that `capacity.py` compares with its targets, for one draw of the arrivals."""
    full_s = cost.seconds(capacity)
    schedule = poisson(load * capacity / full_s / mean_steps(), WARMUP_S + seconds, seed=draw)
    latencies = ideal_latencies(schedule, capacity, lambda images: cost.seconds(images) + overhead_s)
    counted = [arrival.due_s >= WARMUP_S for arrival in schedule]
    return float(np.percentile(latencies[counted], 99)) / latency_limit_s(max(STEP_MIX), full_s)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", type=Cost.parse, default=Cost(20, 1.25), metavar="A,B[,FLOOR]",
                        help="ms of a call over B images, max(floor, a + b B) (default 20,1.25)")  # fmt: skip
    parser.add_argument(
        "--capacity",
        type=whole(1),
        nargs="+",
        default=[8, 16, 24, 32],
        metavar="N",
        help="slots of the server (default %(default)s)",
    )
    parser.add_argument("--load", type=number(POSITIVE), default=0.8, help="offered images/s over R* (default 0.8)")
    parser.add_argument(
        "--seconds", type=number(POSITIVE), default=27, help="of a draw, as capacity.py counts (default 27)"
    )
    parser.add_argument(
        "--draws", type=whole(1), default=40, help="of the arrivals, for each capacity (default %(default)s)"
    )
    parser.add_argument("--overhead-ms", type=number(Range(0)), default=0.0, help="added to every call (default 0)")
    args = parser.parse_args(arguments)
    rows = []
    for capacity in args.capacity:
        ratios = [
            p99_over_goal(args.cost, capacity, args.load, args.seconds, draw, args.overhead_ms / 1000)
            for draw in range(args.draws)
        ]
        rows.append({
            "capacity": capacity, "mean": float(np.mean(ratios)), "std": float(np.std(ratios)), "least": min(ratios),
            "most": max(ratios), "reached": float(np.mean(np.array(ratios) <= 1)),
        })  # fmt: skip
    print(table(rows, {name: name for name in rows[0]}))


if __name__ == "__main__":
    main()
