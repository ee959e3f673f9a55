"""Whose request gets the next slot: --policy shortest and --priority beside first come, first served, simulated.

    python benchmarks/load/policies.py            # about a minute

One device of 24 slots, steps 1, 2, 4 and 8 in equal shares, a tenth of the requests with eight images, on a network
whose rows cost (a CPU's) and one of nearly fixed cost (a GPU's shape). The policies get the same arrivals. The rows
"galleries batch" are fifo with the requests of eight images of priority batch. benchmarks/serving/simulate.py is the
simulation; nothing is served.
"""

from fewstep import extras

extras.name_missing()

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ROOT, result_file, table, write_result
from benchmarks.load.arrivals import STEP_MIX, mean_steps
from benchmarks.load.fixed_cost import Cost
from benchmarks.serving.arrivals import times
from benchmarks.serving.simulate import Requests, Site, simulate
from fewstep.ranges import POSITIVE, number, whole
from server.scheduler.policy import Policy, behind_interactive, fifo, shortest

COSTS = (Cost(4, 3.1), Cost(20, 1.25))
LOADS = (0.6, 0.8, 0.9)
CAPACITY = 24
GALLERY, SHARE = 8, 0.1  # images of a large request, and how many are large
BATCH_DELAY_S = 10.0
WARMUP_S = 10.0
POLICIES: Mapping[str, Policy] = {
    "fifo": fifo,
    **{f"shortest, ageing {ageing:g}": partial(shortest, ageing=ageing) for ageing in (5.0, 15.0, 50.0)},
    "galleries batch": partial(behind_interactive, policy=fifo, delay_s=BATCH_DELAY_S),
}
GROUPS = ("all", "one_step", "single", "gallery")
COLUMNS = {
    "cost_ms": "a,b ms", "load": "load", "policy": "policy", "mean_ms": "mean", "all_p99_ms": "p99",
    "one_step_p50_ms": "1 step p50", "one_step_p99_ms": "1 step p99", "single_p99_ms": "single p99",
    "gallery_p50_ms": "eight p50", "gallery_p99_ms": "eight p99",
}  # fmt: skip


def draw(cost: Cost, load: float, seconds: float, seed: int) -> Requests:
    """Poisson arrivals at a load: offered images over what full batches back to back would make."""
    due_rng, step_rng, size_rng = np.random.default_rng(seed).spawn(3)
    images_per_s = load * CAPACITY / cost.seconds(CAPACITY) / mean_steps()
    due_s = times("poisson", images_per_s / (1 + SHARE * (GALLERY - 1)), seconds, due_rng)
    large = size_rng.random(len(due_s)) < SHARE
    return Requests(due_s, step_rng.choice(STEP_MIX, len(due_s)), np.where(large, GALLERY, 1), large)


def latencies_ms(requests: Requests, cost: Cost, policy: Policy) -> dict[str, float]:
    """Mean, median and 99th percentile by group, of what came after the warm-up."""
    site = Site(1, [cost.seconds(images) for images in range(CAPACITY + 1)], policy)
    found = 1000 * simulate(requests, site).latency_s
    counted = requests.due_s >= WARMUP_S
    single = requests.images == 1
    groups: dict[str, NDArray[np.bool_]] = {
        "all": counted, "one_step": counted & single & (requests.steps == 1), "single": counted & single,
        "gallery": counted & ~single,
    }  # fmt: skip
    figures = {"mean_ms": float(found[counted].mean())}
    for name in GROUPS:
        p50, p99 = np.percentile(found[groups[name]], (50, 99))
        figures |= {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}
    return figures


def compare(cost: Cost, load: float, seconds: float, draws: int) -> list[dict[str, Any]]:
    """A row of each policy: means over the draws, and the standard deviations of the draws' ratios to fifo."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    for seed in range(draws):
        requests = draw(cost, load, seconds, seed)
        for name, policy in POLICIES.items():
            found[name].append(latencies_ms(requests, cost, policy))
    made = []
    for name, some in found.items():
        ratios = {
            key: [one[key] / other[key] for one, other in zip(some, found["fifo"], strict=True)] for key in some[0]
        }
        made.append({
            "cost_ms": f"{cost.a_ms:g},{cost.b_ms:g}", "load": load, "policy": name,
            **{key: float(np.mean([one[key] for one in some])) for key in some[0]},
            "over_fifo": {key: {"mean": float(np.mean(r)), "std": float(np.std(r))} for key, r in ratios.items()},
        })  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=number(POSITIVE), default=1_000.0, help="of a draw (default 1000)")
    parser.add_argument("--draws", type=whole(1), default=10, help="of the arrivals (default 10)")
    parser.add_argument("--smoke", action="store_true", help="two draws of 60 s")
    parser.add_argument(
        "--out", type=result_file, default=ROOT / "build" / "policies.json", metavar="FILE", help="JSON to write"
    )
    args = parser.parse_args(arguments)
    seconds, draws = (60.0, 2) if args.smoke else (args.seconds, args.draws)
    rows = [row for cost in COSTS for load in LOADS for row in compare(cost, load, seconds, draws)]
    print(table(rows, COLUMNS))
    settings = {
        "capacity": CAPACITY, "steps": STEP_MIX, "gallery_images": GALLERY, "gallery_share": SHARE, "seconds": seconds,
        "draws": draws, "warmup_s": WARMUP_S, "batch_delay_s": BATCH_DELAY_S, "seeds": [0, draws],
    }  # fmt: skip
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    write_result(args.out, "policies", settings, rows)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
