"""t(B): milliseconds of one network call over the batch size, for every backend that this machine has.

    python benchmarks/engine_speed.py            # minutes: B = 1 .. 128
    python benchmarks/engine_speed.py --quick    # seconds: three batch sizes, one thread

Prints a table and writes JSON after every batch size, and a PNG at the end. Backends are interleaved call by call: read
the figures as ratios to eager PyTorch, in its default layout ("eager") and in channels_last, and as shares of the rate
at which the same run multiplied large matrices in the same precision.
"""

from fewstep import extras

extras.name_missing()

import argparse
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine_plot import draw_engine_speed
from benchmarks.engine_variants import (
    EAGER,
    EAGER_LAST,
    FASHION,
    RANDOM,
    Variant,
    checkpoint_of,
    eager_variants,
    engine_variant,
    open_engines,
    spinning_variant,
)
from benchmarks.harness import ROOT, percentile_ms, result_file, table, time_interleaved, write_result
from export.manifest import BACKEND_TORCH, BACKENDS
from fewstep.checkpoint import load_denoiser
from fewstep.latent import latent_shape
from fewstep.ranges import whole

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
QUICK = (1, 8, 32)
COLUMNS = {
    "variant": "variant", "precision": "precision", "batch": "batch", "ms": "ms", "ms_per_image": "ms/image",
    "vs_eager": "x eager", "vs_channels_last": "x channels_last", "gflops": "GFLOP/s", "of_limit": "of gemm",
    "mb": "MB",
}  # fmt: skip
GEMM = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices behind the limit: enough to fill the machine


def opened(args: argparse.Namespace, folder: Path) -> tuple[list[Variant], dict[str, float]]:
    """The variants, and by name the MB that each has added to the memory in use."""
    largest = max(args.batches)
    variants, memory = [], {}
    for open_variants in _openers(args, folder, largest):
        before = _memory_mb()
        for variant in open_variants():
            variant.call(largest)
            variants.append(variant)
            memory[variant.name] = _memory_mb() - before
            before = _memory_mb()
    return variants, memory


def measure(
    variants: list[Variant], batch: int, rounds: int, gflop: float, limits: dict[str, float]
) -> list[dict[str, Any]]:
    """A row per variant. gflop: of one image; limits: GFLOP/s by precision."""
    calls = {variant.name: (lambda v=variant: v.call(batch)) for variant in variants}
    seconds = time_interleaved(calls, max(3, rounds // max(batch // 8, 1)))
    ms = {name: percentile_ms(values, 50) for name, values in seconds.items()}
    rows = []
    for variant in variants:
        rate = gflop * batch / ms[variant.name] * 1000
        rows.append({
            "variant": variant.name, "precision": variant.precision, "batch": batch, "ms": ms[variant.name],
            "p95_ms": percentile_ms(seconds[variant.name], 95), "ms_per_image": ms[variant.name] / batch,
            "vs_eager": ms[EAGER] / ms[variant.name], "vs_channels_last": ms[EAGER_LAST] / ms[variant.name],
            "gflops": rate, "of_limit": rate / limits[variant.precision],
        })  # fmt: skip
    return rows


def _openers(args: argparse.Namespace, folder: Path, largest: int) -> list[Callable[[], list[Variant]]]:
    """Opened one after the other, so that memory can be told apart."""
    openers: list[Callable[[], list[Variant]]] = [lambda: eager_variants(folder, largest)]
    cpu = not torch.cuda.is_available()
    if cpu and args.threads != 1 and not args.backends:
        openers.append(lambda: [spinning_variant(folder, args.threads, largest)])
    for backend in args.backends or [name for name in BACKENDS if name != "torch-compile"]:
        if backend == BACKEND_TORCH and cpu:
            continue  # the same calls as eager

        def opener(backend: str = backend) -> list[Variant]:
            engines = open_engines(folder, [backend], args.threads, args.batches)
            return [engine_variant(name, engine, largest) for name, engine in engines.items()]

        openers.append(opener)
    return openers


def flops(folder: Path) -> int:
    """Floating-point operations of one image's network call: 2 per multiplication and addition."""
    denoiser, card = load_denoiser(folder)
    channels, side, _ = card.image_shape
    with FlopCounterMode(display=False) as counter:
        x = torch.zeros(1, channels + latent_shape(card)[0], side, side)
        denoiser.network(x, torch.zeros(1), torch.zeros(1, denoiser.classes))
    return counter.get_total_flops()


def gemm_limits(precisions: set[str], rounds: int) -> dict[str, float]:
    """GFLOP/s of large matrix products per precision, the best of `rounds`: what a network cannot exceed.

    Only the precisions that some variant has: a CPU without float16 would spend minutes on one such product.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limits, side = {}, GEMM[device]
    for name in sorted(precisions):
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, name)) for _ in range(2))

        def product(a=a, b=b) -> None:
            torch.mm(a, b)
            if device == "cuda":
                torch.cuda.synchronize()

        best = min(time_interleaved({name: product}, max(3, rounds // 4))[name])
        limits[name] = 2 * side**3 / best / 1e9
    return limits


def _memory_mb() -> float:
    gc.collect()
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20
    return psutil.Process().memory_info().rss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=(FASHION, *RANDOM), default=FASHION,
                        help="all but fashion in colour, of random weights; colour has 32 pixels")  # fmt: skip
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, metavar="B", help="default: all that run here")
    parser.add_argument(
        "--batches",
        type=whole(1),
        nargs="+",
        default=BATCHES,
        metavar="N",
        help="images per network call (default %(default)s)",
    )
    parser.add_argument("--rounds", type=whole(1), default=40, help="calls up to batch 8; fewer above (default 40)")
    parser.add_argument("--threads", type=whole(0), default=0, help="0: as many as there are cores")
    parser.add_argument(
        "--out", type=result_file, default=ROOT / "build" / "engine_speed.json", help="JSON; the PNG beside it"
    )
    parser.add_argument("--quick", action="store_true", help=f"B = {QUICK}, 8 rounds")
    args = parser.parse_args()
    if args.quick:
        args.batches, args.rounds = QUICK, 8
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 for eager too, as it does for the engines
    settings = {name: getattr(args, name) for name in ("network", "batches", "rounds", "threads")}
    rows: list[dict[str, Any]] = []
    with checkpoint_of(args.network) as folder:
        variants, memory = opened(args, folder)
        gflop = flops(folder) / 1e9
        limits = gemm_limits({variant.precision for variant in variants}, args.rounds)
        found = {"gflop_per_image": gflop, "gemm_gflops": limits, "facts": {each.name: each.facts for each in variants}}
        for batch in args.batches:
            more = measure(variants, batch, args.rounds, gflop, limits)
            rows += [row | {"mb": memory[row["variant"]]} for row in more]
            write_result(args.out, "engine_speed", settings, rows, **found)  # whatever ends this run leaves so much
            print(table(rows[-len(variants) :], COLUMNS), flush=True)
    print(f"{gflop:.3f} GFLOP per image; large matrix products, GFLOP/s:", end=" ")
    print(", ".join(f"{name} {rate:.0f}" for name, rate in limits.items()))
    draw_engine_speed(rows, args.out.with_suffix(".png"))
    print(f"\nwrote {args.out} and {args.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
