"""Images per second and memory of the server against its workers, its slots and the size of its images.

    python benchmarks/load/scaling.py            # four minutes
    python benchmarks/load/scaling.py --smoke    # half a minute; proves that it runs

Every server is saturated with images of four calls. Beside its rate stands what its network calls alone allow: call
times of as many processes side by side, as `--workers auto` measures them, and the same from a + b B fitted to them.
The processor time per image holds on a machine that does other work, too.
"""

from fewstep import extras

extras.name_missing()

import argparse
import asyncio
import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from benchmarks.busy import Watch
from benchmarks.harness import ROOT, result_file, table, write_result
from benchmarks.load.closed_loop import saturate
from benchmarks.load.cores import Layout as Cores
from benchmarks.load.peers import cpu_s
from benchmarks.load.servers import Running, ours
from benchmarks.serving.costs import fitted
from export.manifest import read_manifest
from fewstep import cores
from fewstep.ranges import POSITIVE, number, whole
from server.machine.choice import Layout
from server.machine.trial import measure_layout
from server.scheduler.calibration import call_time
from server.settings.sources import DEFAULT_MODELS, model_engine

STEPS = 4  # of every image
COLUMNS = {
    "model": "model", "pixels": "pixels", "workers": "workers", "threads": "threads each", "slots": "slots each",
    "images_per_s": "images/s", "allowed_per_s": "calls allow", "fitted_per_s": "a + b B allows",
    "cpu_ms": "CPU ms/image", "http_mb": "HTTP MB", "worker_mb": "worker MB",
}  # fmt: skip
FITS = {
    "model": "model",
    "workers": "workers",
    "threads": "threads each",
    "a_ms": "a ms",
    "b_ms": "b ms",
    "off": "off by",
}


def measured(layout: Layout, model: str, slots: int, seconds: float, warmup_s: float, watch: Watch) -> dict[str, Any]:
    """A server that is saturated: images a second, processor time an image, and memory that it does not share."""
    flags = ["--model", model, "--workers", str(layout.workers), "--threads", str(layout.threads)]
    flags += ["--capacity", str(slots), "--backend", layout.backend]
    with ours(flags, Cores((), ()), pinned=False) as server:
        before_s, end_s = cpu_s(server), warmup_s + seconds
        rate = asyncio.run(saturate(server.url, 4 * slots * layout.workers, warmup_s, end_s, steps=(STEPS,)))
        found = {"images_per_s": rate, "cpu_ms": 1e3 * (cpu_s(server) - before_s) / max(rate * end_s, 1)}
        found |= memory(server)
        watch.count(server.family())
        return found


def memory(server: Running) -> dict[str, float]:
    """Megabytes of the HTTP process, and of a worker in the mean; shared pages are divided among those that share."""
    roles = server.roles()
    mean = lambda some: sum(each.memory_full_info().pss for each in some) / len(some) / 2**20  # noqa: E731
    return {"http_mb": mean(roles["http"]), "worker_mb": mean(roles["worker"])}


def rows(
    model: str, layout: Layout, calls: Mapping[int, float], args: argparse.Namespace, watch: Watch
) -> list[dict[str, Any]]:
    """A row for each number of slots."""
    fit, made = fitted(calls), []
    for slots in args.slots:
        print(f"scaling  {model}: {layout}, {slots} slots each", file=sys.stderr, flush=True)
        found = measured(layout, model, slots, args.seconds, args.warmup_s, watch)
        limits = {"allowed_per_s": call_time(calls, slots), "fitted_per_s": fit.seconds(slots)}
        made.append({
            "model": model, "pixels": read_manifest(model_engine(model)).resolution, "workers": layout.workers,
            "threads": layout.threads, "slots": slots, **found,
            **{name: layout.workers * slots / (STEPS * call_s) for name, call_s in limits.items()},
        })  # fmt: skip
    return made


def fit_row(model: str, layout: Layout, calls: Mapping[int, float]) -> dict[str, Any]:
    fit = fitted(calls)
    return {
        "model": model, "workers": layout.workers, "threads": layout.threads, "a_ms": 1e3 * fit.a_s,
        "b_ms": 1e3 * fit.b_s, "off": f"{fit.off:.0%}", "calls_ms": {size: 1e3 * s for size, s in calls.items()},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=DEFAULT_MODELS, default=list(DEFAULT_MODELS), help="shipped ones (default: all)")
    add("--workers", type=whole(1, 64), nargs="+", metavar="N", help="of a server, the cores shared out among them "
        "(default: 1 and as many as there are cores)")  # fmt: skip
    add(
        "--slots",
        type=whole(1, 4096),
        nargs="+",
        default=[4, 8, 16, 32],
        metavar="N",
        help="of each (default 4 8 16 32)",
    )
    add("--seconds", type=number(POSITIVE), default=8.0, help="measured of each server (default 8)")
    add("--warmup-s", type=number(POSITIVE), default=2.0, help="sent before and not counted (default 2)")
    add("--out", type=result_file, default=ROOT / "build" / "scaling.json", metavar="FILE", help="JSON to write")
    add("--smoke", action="store_true", help="one model, one worker, two numbers of slots, short turns")
    args = parser.parse_args(arguments)
    count = cores.physical()
    workers = sorted(set(args.workers or (1, count)))
    if args.smoke:
        args.models, workers, args.slots, args.seconds, args.warmup_s = args.models[:1], [1], [4, 16], 2.0, 1.0
    watch, made, fits = Watch(), [], []
    for model, each in itertools.product(args.models, workers):
        engine = model_engine(model)
        layout = Layout(read_manifest(engine).backend, each, max(1, count // each))
        print(f"scaling  {model}: {layout}", file=sys.stderr, flush=True)
        calls = measure_layout(engine, layout)
        fits.append(fit_row(model, layout, calls))
        made += rows(model, layout, calls, args, watch)
    busy = watch.seen()
    head = [warning] if (warning := busy.warning()) else []
    print("\n".join([*head, table(made, COLUMNS), "", "Call times as a + b B:", table(fits, FITS)]))
    settings = {"steps": STEPS, "seconds": args.seconds, "warmup_s": args.warmup_s, "load_average": psutil.getloadavg()}
    write_result(
        args.out, "scaling", settings, made, fits=fits, busy={**dataclasses.asdict(busy), "warning": busy.warning()}
    )
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
