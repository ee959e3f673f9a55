"""Which network should a CPU train at 64 pixels? Teachers of several shapes, each given the same minutes of one core.

    python benchmarks/networks.py --data runs/data/earth.zip --held-out runs/data/earth-test.zip --minutes 10
    python benchmarks/networks.py --smoke                             # a minute; proves that it runs

Every network is trained as `fewstep trainer teacher` trains it (compiled, bf16), on as many images as fit into its
minutes: the CPU seconds of an update are measured first. The networks train side by side, one process and one thread
each, and minutes are CPU time, so that other work on the machine costs all of them the same. Compilation is not
counted. Each is measured by its denoising error on held-out images, relative to the noise, at several noise levels; a
sheet of samples lies beside it. Networks in KEEP are not trained again: the same command goes on after an interruption.
At the end the calls of all networks are timed in turns. Prints a table, writes JSON.
"""

from fewstep import extras

extras.name_missing()

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, WORK, new_folder, result_file, table, time_interleaved, write_result
from benchmarks.inputs import fixture
from fewstep.card import Card, write_atomically
from fewstep.checkpoint import load_denoiser
from fewstep.network import UNet
from fewstep.pixels import from_pixels
from fewstep.precond import Denoiser
from fewstep.ranges import POSITIVE, number, whole
from fewstep.unet_config import UNetConfig
from trainer.data.format import ImageSet, read_image_set, write_image_set
from trainer.data.loader import batches
from trainer.methods.edm import Teacher, denoising_loss
from trainer.options import RunOptions
from trainer.recipes.by_name import recipe
from trainer.run.artifacts import describe
from trainer.run.compute import Compute
from trainer.run.draws import Draws
from trainer.run.loop import LoopConfig
from trainer.runs import fit_to_data, run_method
from trainer.settings import TeacherConfig

SHAPES: dict[str, dict[str, Any]] = {
    "patch 2, width 32, (1, 2, 3), 1 block": dict(patch=2, width=32, mult=(1, 2, 3), blocks=1),
    "patch 2, width 32, (1, 2, 3), 2 blocks": dict(patch=2, width=32, mult=(1, 2, 3), blocks=2),
    "patch 2, width 48, (1, 2, 2), 1 block": dict(patch=2, width=48, mult=(1, 2, 2), blocks=1),
    "patch 2, width 32, (1, 2, 4, 4), 1 block": dict(patch=2, width=32, mult=(1, 2, 4, 4), blocks=1),
    "patch 1, width 16, (1, 2, 3, 4), 1 block": dict(patch=1, width=16, mult=(1, 2, 3, 4), blocks=1),
    "patch 4, width 64, (1, 2), 2 blocks": dict(patch=4, width=64, mult=(1, 2), blocks=2),
}
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
COMPUTE = Compute("cpu", "bf16", compile=True)
TIMED = 12  # updates that are timed, after three that compile
PART = 50  # images of a call when errors are measured
CALLS = 30  # single calls that are timed; the least time counts
COLUMNS = {
    "network": "network",
    "parameters_m": "M parameters",
    "call_ms": "ms a call",
    "images_per_s": "images/s",
    "images": "images",
    "loss": "held-out loss",
    **{f"error_{sigma:g}": f"at {sigma:g}" for sigma in SIGMAS},
}


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    if args.alone:
        write_atomically(row_file(args.keep, args.alone), json.dumps(measured(args, args.alone)).encode())
        return
    if args.smoke:
        args.data = args.held_out = args.keep / "fixture.zip"
        write_image_set(args.data, fixture())
    rows = side_by_side(args)
    calls = milliseconds_of_calls(args.keep, args.networks)
    rows = [{**row, "call_ms": ms} for row, ms in zip(rows, calls, strict=True)]
    print(table(rows, COLUMNS))
    settings = {"minutes": args.minutes, "data": args.data.name, "held_out": args.held_out.name, "seed": args.seed}
    write_result(args.out, "networks", settings, rows)
    print(f"wrote {args.out}; the networks and their sheets are in {args.keep}")


def side_by_side(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains the shapes that have no row yet, one process each, all at once; the rows in the order of the shapes."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    given = [f"--data={args.data}", f"--held-out={args.held_out}", f"--minutes={args.minutes}", f"--keep={args.keep}"]
    for index, shape in enumerate(args.networks):
        if row_file(args.keep, shape).exists():
            print(f"kept: {shape}")
            continue
        command = [sys.executable, "-m", "benchmarks.networks", "--alone", shape, f"--seed={args.seed}", *given]
        command += ["--smoke"] * args.smoke
        if args.cores:
            command = ["taskset", "--cpu-list", str(args.cores[index % len(args.cores)]), *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        with log_file(args.keep, shape).open("w") as log:
            running[shape] = subprocess.Popen(command, stderr=log, cwd=ROOT, env=environment)
        print(f"started: {shape}; its progress is in {log_file(args.keep, shape)}", flush=True)
    for shape, process in running.items():
        if process.wait():
            raise SystemExit(f"{shape}: ended with {process.returncode}; see {log_file(args.keep, shape)}")
    return [json.loads(row_file(args.keep, shape).read_text("utf-8")) for shape in args.networks]


def folder_of(keep: Path, shape: str) -> Path:
    return keep / re.sub(r"[^a-z0-9]+", "-", shape)


def row_file(keep: Path, shape: str) -> Path:
    return folder_of(keep, shape) / "row.json"


def log_file(keep: Path, shape: str) -> Path:
    return folder_of(keep, shape).with_suffix(".log")


def measured(args: argparse.Namespace, shape: str) -> dict[str, Any]:
    """Train the teacher of one shape for its minutes of CPU time; its row of the table, without the time of a call."""
    data, held_out = read_image_set(args.data), read_image_set(args.held_out)
    out = folder_of(args.keep, shape)
    batch = recipe("photos-64").batch
    per_s = batch / seconds_of_update(shape, data, LoopConfig(batch, flip=True))
    images = max(int(60 * args.minutes * per_s), batch)
    config = LoopConfig(batch, images, checkpoint_s=1e9, seed=args.seed, flip=True, label=shape)
    options = RunOptions(recipe="photos-64", out=out, images=images, seed=args.seed, sheets=not args.smoke)
    network = new_network(shape, data, args.seed)
    method = Teacher(network, data.sigma_data(), TeacherConfig(), COMPUTE)
    card = Card("teacher", describe(network), data.sigma_data(), "", data.provenance(), data.class_names)
    if not run_method(method, data, config, options, card, {}, COMPUTE):
        raise SystemExit("interrupted")
    return {
        "network": shape,
        "parameters_m": sum(parameter.numel() for parameter in network.parameters()) / 1e6,
        "images_per_s": per_s,
        "images": images,
        **denoising_errors_of(out, held_out),
    }


def new_network(shape: str, data: ImageSet, seed: int) -> UNet:
    torch.manual_seed(seed)
    return UNet(fit_to_data(UNetConfig(data.images.shape[1], **SHAPES[shape]), data))


def seconds_of_update(shape: str, data: ImageSet, config: LoopConfig) -> float:
    """CPU seconds of a training update, without those that compile. The network is thrown away."""
    method = Teacher(new_network(shape, data, 0), data.sigma_data(), TeacherConfig(), COMPUTE)
    rng = Draws(torch.Generator().manual_seed(0), 0, 1, torch.device("cpu"))
    stream, began = batches(data, config, 0, torch.device("cpu")), 0.0
    for update in range(3 + TIMED):
        if update == 3:
            began = time.process_time()
        method.update(*next(stream), 0.5, rng)
    return (time.process_time() - began) / TIMED


@torch.no_grad()
def denoising_errors_of(folder: Path, held_out: ImageSet) -> dict[str, float]:
    """Root mean squared denoising error on the held-out images, as a share of the noise level, and EDM's mean loss."""
    denoiser, _ = load_denoiser(folder)
    generator = torch.Generator().manual_seed(0)
    images = torch.from_numpy(from_pixels(held_out.images)).float()
    labels = torch.from_numpy(held_out.labels.astype("int64")) if held_out.class_names else None
    levels = torch.exp(-1.2 + 1.2 * torch.randn(len(images), generator=generator))
    noise = torch.randn(images.shape, generator=generator)
    errors = {"loss": float(_losses(denoiser, images, labels, levels, noise).mean())}
    for sigma in SIGMAS:
        level = torch.full((len(images),), sigma)
        weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
        squared = float(_losses(denoiser, images, labels, level, noise).mean()) / weight
        errors[f"error_{sigma:g}"] = squared**0.5 / sigma
    return errors


def _losses(
    denoiser: Denoiser, images: torch.Tensor, labels: torch.Tensor | None, sigma: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    parts = (slice(first, first + PART) for first in range(0, len(images), PART))
    return torch.cat(
        [denoising_loss(denoiser, images[p], None if labels is None else labels[p], sigma[p], noise[p]) for p in parts]
    )


@torch.no_grad()
def milliseconds_of_calls(keep: Path, shapes: Sequence[str]) -> list[float]:
    """Least time of a call for one image, uncompiled, float32, on one thread, the networks in turns."""

    def call(shape: str) -> Callable[[], Any]:
        denoiser, card = load_denoiser(folder_of(keep, shape))
        config = card.network
        image = torch.zeros(1, config["channels"], config["resolution"], config["resolution"])
        label = torch.zeros(1, dtype=torch.int64) if config["classes"] else None
        return lambda: denoiser(image, torch.ones(1), label)

    taken = time_interleaved({shape: call(shape) for shape in shapes}, CALLS)
    return [1000 * min(taken[shape]) for shape in shapes]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=WORK / "runs/data/earth.zip", help="images to train on")
    add("--held-out", type=Path, default=WORK / "runs/data/earth-test.zip", help="images to judge by")
    add("--minutes", type=number(POSITIVE), default=10.0, help="CPU minutes of training a network (default 10)")
    add("--networks", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE", help="some of the shapes")
    add("--cores", nargs="+", type=whole(0), default=[], metavar="N", help="pin the processes to these cores in turn")
    add("--seed", type=whole(0), default=0, help="of weights, noise and order of images (default 0)")
    add("--keep", type=new_folder, default=WORK / "runs/networks", help="folder of the networks and logs")
    add("--out", type=result_file, default=WORK / "runs/networks.json", help="JSON to write")
    add("--smoke", action="store_true", help="one shape, a second, images of the test fixture")
    add("--alone", choices=list(SHAPES), help=argparse.SUPPRESS)  # train one network and print its row
    args = parser.parse_args()
    if args.smoke and not args.alone:
        args.minutes, args.networks = 1 / 60, list(SHAPES)[:1]
    args.keep.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
