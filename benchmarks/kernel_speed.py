"""What the arithmetic around the network costs.

    python benchmarks/kernel_speed.py                  # on a GPU: every kernel against copying, eager and torch.compile
    python benchmarks/kernel_speed.py --compile-only   # no GPU needed: registers and spills for sm_80 and sm_90
    python benchmarks/kernel_speed.py --cpu            # numpy's step and noise beside a network call of ONNX Runtime

Prints a table and writes JSON. Variants are interleaved; read the figures as ratios. Rates count the bytes an operation
must move, each input read once and each output written once, over the shorter of its time within a CUDA graph ("us")
and launched from Python ("launched us"); ratios to the others are of calls from Python, the host's share included.
"""

from fewstep import extras

extras.name_missing()

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, percentile_ms, result_file, table, time_interleaved, write_result
from fewstep.precond import Network
from fewstep.ranges import whole
from fewstep.schedule import student_levels
from fewstep.step import advance, network_input

CPU_COLUMNS = {
    "network": "network", "batch": "batch", "network_ms": "network ms", "step_ms": "step + noise ms", "share": "share",
}  # fmt: skip
GPU_COLUMNS = {
    "operation": "operation", "shape": "shape", "layout": "layout", "us": "us", "launched_us": "launched us",
    "gb_per_s": "GB/s", "of_copy": "of copy", "vs_eager": "x eager", "vs_compiled": "x compiled",
    "vs_reference": "x reference",
}  # fmt: skip
COMPILE_COLUMNS = {
    "kernel": "kernel", "dtype": "dtype", "sm": "sm", "warps": "warps", "registers": "registers",
    "spilled_bytes": "spilled B", "shared_bytes": "shared B", "instructions": "instructions",
    "sector_requests": "requests a sector",
}  # fmt: skip
SHAPES = ((64, 3, 32, 32), (64, 3, 256, 256))
SIGMA_DATA = 0.5


def measure_cpu(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The share of a step without its network call: next input, denoising and fresh noise for every row."""
    rows = []
    for name, shape, classes, network in cpu_networks(args.threads):
        step = numpy_step(shape, args.batch)
        x, c_noise = network_input(
            np.zeros((args.batch, *shape), np.float32), np.ones(args.batch, np.float32), SIGMA_DATA
        )
        onehot = np.zeros((args.batch, classes), np.float32)
        call = lambda network=network, x=x, c_noise=c_noise, onehot=onehot: network(x, c_noise, onehot)  # noqa: E731
        seconds = time_interleaved({"network": call, "step": step}, args.rounds or 15, warmup=3)
        network_ms, step_ms = (percentile_ms(seconds[part], 50) for part in ("network", "step"))
        rows.append({
            "network": name, "batch": args.batch, "network_ms": network_ms, "step_ms": step_ms,
            "share": step_ms / network_ms,
        })  # fmt: skip
    return rows


def cpu_networks(threads: int) -> Iterator[tuple[str, tuple[int, int, int], int, Network]]:
    """Name, image shape, classes and F: the shipped student, and colour students of its recipe and of a larger one."""
    import torch

    from export.backends.onnxruntime_cpu import open_session
    from export.engine import load_engine
    from export.to_onnx import network_to_onnx
    from fewstep.network import UNet
    from fewstep.unet_config import UNetConfig

    fashion = load_engine(ROOT / "models" / "fashion" / "engine", threads=threads)
    yield "fashion 32x32x1", fashion.manifest.image_shape, fashion.manifest.classes, fashion.network
    recipes = {
        "random 32x32x3, patch 2, width 48": UNetConfig(32, 3, 10, 48, (1, 2), 2, patch=2),
        "random 32x32x3, width 32": UNetConfig(32, 3, 10, 32, (1, 2, 2), 2, attention=(8,)),
    }
    for name, config in recipes.items():
        torch.manual_seed(0)
        content = network_to_onnx(UNet(config).eval(), weights_dtype="float32")
        session = open_session(content, Path(name), threads)
        run: Any = lambda x, c_noise, onehot, session=session: session.run(  # noqa: E731
            None, {"x": x, "c_noise": c_noise, "onehot": onehot}
        )[0]
        yield name, (3, 32, 32), 10, run


def numpy_step(shape: tuple[int, int, int], batch: int) -> Callable[[], None]:
    """A step of `batch` rows in the middle of their levels, so that all of them are re-noised."""
    random = np.random.default_rng(0)
    x, output = (random.standard_normal((batch, *shape), dtype=np.float32) for _ in range(2))
    levels = student_levels(8)
    done = np.arange(batch) % (len(levels) - 1)
    sigma, sigma_next = (np.array(levels, np.float32)[done + ahead] for ahead in (0, 1))
    seeds = np.arange(batch, dtype=np.uint64)

    def step() -> None:
        noisy = advance(x, output, sigma, sigma_next, seeds, done, SIGMA_DATA)
        network_input(noisy, sigma_next, SIGMA_DATA)

    return step


def measure_gpu(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per operation, shape and layout."""
    from triton.testing import do_bench, do_bench_cudagraph

    from benchmarks.kernel_contests import contests, copy_contest

    order = np.random.default_rng(0)
    copy_rate = 0.0
    for contest in chain([copy_contest()], contests(SHAPES, SIGMA_DATA, args.tiles)):
        names = list(contest.calls)
        times: dict[str, list[Any]] = {name: [] for name in names}  # ms; do_bench's type is wider
        for _ in range(args.rounds or 5):
            for index in order.permutation(len(names)):
                times[names[index]].append(
                    do_bench(contest.calls[names[index]], warmup=5, rep=20, return_mode="median")
                )
        medians = {name: float(np.median(values)) for name, values in times.items()}
        # Launched one by one from Python, a kernel of some ten microseconds waits for the host; in a graph it does not.
        # A large copy is a graph's own node and slower there: 0.88 ms of 1 GiB on an H100, and 0.71 launched.
        graphed: Any = do_bench_cudagraph(contest.calls["kernel"], rep=50, return_mode="median")
        rate = contest.moved_bytes / min(graphed, medians["kernel"]) / 1e6
        copy_rate = copy_rate or rate
        yield {
            "operation": contest.operation, "shape": "x".join(map(str, contest.shape)), "layout": contest.layout,
            "us": graphed * 1e3, "launched_us": medians["kernel"] * 1e3, "gb_per_s": rate, "of_copy": rate / copy_rate,
            **{f"{name}_us": value * 1e3 for name, value in medians.items()},
            **{f"vs_{name}": value / medians["kernel"] for name, value in medians.items() if name != "kernel"},
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--cpu", action="store_true", help="measure numpy beside ONNX Runtime")
    what.add_argument("--compile-only", action="store_true", help="compile for GPUs that are not here")
    parser.add_argument("--batch", type=whole(1), default=8, help="rows, with --cpu (default 8)")
    parser.add_argument(
        "--rounds", type=whole(0), default=0, help="measurements of each variant (default 15, 5 on a GPU)"
    )
    parser.add_argument("--tiles", action="store_true", help="on a GPU: also the step in other tiles, to choose one")
    parser.add_argument("--threads", type=whole(0), default=0, help="of ONNX Runtime; 0: as many as there are cores")
    parser.add_argument("--out", type=result_file, default=ROOT / "build" / "kernel_speed.json", help="JSON")
    args = parser.parse_args()
    settings = {"cpu": args.cpu, "batch": args.batch, "rounds": args.rounds, "threads": args.threads}
    more: dict[str, Any] = {}
    if args.cpu:
        rows, columns = measure_cpu(args), CPU_COLUMNS
    elif args.compile_only:
        from tests.ptx.report import compile_all

        rows, columns = [asdict(usage) for usage in compile_all()], COMPILE_COLUMNS
    else:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit(
                "this machine has no GPU, so there is nothing to measure: --compile-only compiles the kernels without "
                "one, and --cpu measures what the CPU server runs instead"
            )
        more["gpu"] = torch.cuda.get_device_name()
        rows, columns = [], GPU_COLUMNS
        for row in measure_gpu(args):
            rows.append(row)
            write_result(args.out, "kernel_speed", settings, rows, **more)  # whatever ends this run leaves so much
            print(table(rows[-1:], columns).splitlines()[-1], flush=True)
    print(table(rows, columns))
    write_result(args.out, "kernel_speed", settings, rows, **more)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
