"""Shared by all training commands: options, limits, precision, and running a method."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.card import Card, CheckpointError, read_card
from fewstep.checkpoint import NetworkModule, save_checkpoint
from fewstep.conditions import LOW, enlarged, find
from fewstep.metrics.extractors.teacher import evenly
from fewstep.outputs import STATE_FILE, check_folder, check_writable
from fewstep.pixels import from_pixels
from fewstep.unet_config import UNetConfig
from trainer.data.format import DataError, ImageSet
from trainer.data.loader import batches, order_facts
from trainer.methods.conditions import enlarged_again, of_images
from trainer.options import RunOptions
from trainer.recipes.recipe import Recipe
from trainer.run.artifacts import GRID_COLUMNS, environment, write_sheet
from trainer.run.claim import claim
from trainer.run.clock import Clock
from trainer.run.compute import (
    Compute,
    Precision,
    faster_precision,
    step_seconds,
    usable_device,
    use_tf32,
    worth_compiling,
)
from trainer.run.distributed import from_first, rank, ranks
from trainer.run.loop import LoopConfig, Method, train
from trainer.run.recorded import CudaGraphs
from trainer.run.state import settle_state
from trainer.settings import MachineError

CPU_PROBE = 16  # images of the batch that two precisions are timed with
MEASURED = 2_000  # images whose residuals are measured
LOGGED = 200  # points of a curve, at least, where the length of a run is known


def run_method(
    method: Method,
    data: ImageSet,
    config: LoopConfig,
    options: RunOptions,
    card: Card,
    settings: dict[str, Any],
    compute: Compute,
) -> bool:
    """Train, and save the card with the weights. Returns False when interrupted."""
    identity = {
        "recipe": options.recipe,
        "data": card.dataset.sha256,
        "teacher": card.parent,
        "seed": config.seed,
        "batch": config.batch,
        **order_facts(data),
        **settings,
    }
    identity = json.loads(json.dumps(identity))  # as it will be read back

    def save(average: nn.Module, clock: Clock, folder: Path) -> None:
        training = {
            **identity,
            "images_planned": clock.planned,
            "budget_s": config.budget_s,
            "images": clock.images,
            "seconds": round(clock.elapsed_s, 1),
            "images_per_s": round(clock.images_per_s, 1),
            "processes": ranks(),
            "device": compute.device,
            "precision": compute.precision,
            "tf32": compute.tf32,
            "compiled": compute.compile,
            "sharded": compute.shard,
            "cuda_graphs": compute.cuda_graphs,
            "environment": environment(),
        }
        save_checkpoint(folder, average.state_dict(), replace(card, training=training))

    def draw(average: nn.Module, clock: Clock, folder: Path) -> None:
        write_sheet(folder, average, card, clock.images, sheet_conditions(card, data, compute.device))

    sheets = draw if options.sheets else None
    recorder = CudaGraphs if compute.cuda_graphs else None
    return train(
        method, partial(batches, data, config), config, options.out, save, draw=sheets, resume=options.resume,
        identity=identity, shard=compute.shard, recorder=recorder,
    )  # fmt: skip


def sheet_conditions(card: Card, data: ImageSet, device: str) -> dict[str, Tensor]:
    """Conditions of a sample sheet's columns that follow from pictures, of pictures spread evenly over the data."""
    if not card.conditions:
        return {}
    shown = data.images[evenly(len(data.images), GRID_COLUMNS)]
    return of_images(card.conditions, torch.from_numpy(from_pixels(shown)).to(device))


def loop_config(options: RunOptions, chosen: Recipe, images: int) -> LoopConfig:
    """The limits of a run: those of the command line, or those it was started with if it is resumed, else `images`.

    Raises DataError on an indivisible batch.
    """
    limited = options.images is not None or options.budget_s is not None or options.resume
    batch = options.batch or chosen.batch_of(options.network)
    limit = options.images if limited else images
    if batch % ranks():
        raise DataError(f"a batch of {batch} cannot be shared by {ranks()} processes; choose --batch accordingly")
    return LoopConfig(
        batch=batch,
        images=limit,
        budget_s=options.budget_s,
        checkpoint_s=options.checkpoint_s,
        snapshot_images=options.snapshot_images,
        seed=options.seed,
        flip=chosen.flip,
        log_every=min(max(limit // batch // LOGGED, 1), 50) if limit else 50,
        label=options.label or options.out.name,
    )


def compute_for(options: RunOptions, network: NetworkModule, config: LoopConfig) -> Compute:
    """Where and how a run computes, the same in every process."""
    divides(options)  # refused before anything is timed
    device, rows = usable_device(options.device), config.batch // ranks()
    graphs = records_graphs(options, device)
    tf32 = use_tf32(device, options.tf32 == "on")
    rows = min(rows, options.rows or rows)  # what is timed must fit into memory, too
    precision = _decide_precision(options, network, device, rows)
    compile = _decide_compile(options, config, device, lambda: step_seconds(network, device, rows, precision))
    if rank() == 0 and options.announces:
        how = "compiled, so the first updates take minutes" if compile else "eager"
        print(f"device {device}, {precision}, {how}", file=sys.stderr, flush=True)
    return Compute(device, precision, compile, options.rows, tf32, options.shard, graphs)


def divides(options: RunOptions) -> bool:
    """Whether networks are divided. Raises MachineError when there is one process."""
    if options.shard and ranks() == 1:
        raise MachineError(
            "--shard divides networks among processes, and there is one: start several with torchrun, or leave it out"
        )
    return options.shard


def records_graphs(options: RunOptions, device: str) -> bool:
    """Whether whole updates are recorded as CUDA graphs. Raises MachineError where that cannot be."""
    if not options.cuda_graphs:
        return False
    if device != "cuda":
        raise MachineError(f"--cuda-graphs needs an NVIDIA GPU, and this run is on {device}; leave it out")
    if options.shard or ranks() > 1 or options.rows is not None:
        raise MachineError(
            "--cuda-graphs is for one process and whole calls; leave it out, or --shard, --rows-at-once and torchrun"
        )
    return True


def _decide_compile(options: RunOptions, config: LoopConfig, device: str, step_s: Callable[[], float]) -> bool:
    """Whether networks are compiled. step_s: measures the seconds of a training step, for a run limited by images."""
    if options.compile != "auto":
        return options.compile == "on"
    if options.resume:  # a run is resumed as it was started
        return read_card(options.out).training.get("compiled", False)
    seconds = config.budget_s or (config.images or 0) / config.batch * step_s()
    return from_first(worth_compiling(device, seconds))


def _decide_precision(options: RunOptions, network: NetworkModule, device: str, rows: int) -> Precision:
    if options.precision != "auto":
        return options.precision
    if options.resume:
        return read_card(options.out).training["precision"]  # a run is resumed as it was started
    probed = rows if device == "cuda" else min(rows, CPU_PROBE)
    measured: Precision = faster_precision(network, device, probed)
    return from_first(measured)


@contextmanager
def own_folder(options: RunOptions) -> Iterator[None]:
    """While open, no other run can use `options.out`. Raises CheckpointError as `check_out` does, or when another run
    uses it."""
    with claim(options.out):
        if rank() == 0:
            settle_state(options.out)
        from_first(None)  # the other processes wait for that
        check_out(options)
        yield


def check_out(options: RunOptions) -> None:
    """Raise CheckpointError when the folder holds a model, or no state to resume."""
    if (options.out / STATE_FILE).exists():
        if not options.resume:
            raise CheckpointError(
                f"{options.out} already holds a training run; add --resume to continue it, or choose another --out"
            )
        check_writable(options.out)
        return
    check_folder(options.out)
    if options.resume:
        raise CheckpointError(
            f"{options.out} holds no {STATE_FILE}: there is nothing to resume; start without --resume"
        )


def deviation(network: UNetConfig, data: ImageSet) -> float:
    """sigma_data of a network of these images: their deviation, or that of what an enlarged image lacks."""
    low = find(network.conditions, LOW)
    if network.precond != "residual" or low is None:
        return data.sigma_data()
    chosen = data.images[evenly(len(data.images), min(len(data.images), MEASURED))]
    images = torch.from_numpy(from_pixels(chosen))
    return (images - enlarged_again(images, low)).square().mean().sqrt().item()


def fit_to_data(network: UNetConfig, data: ImageSet) -> UNetConfig:
    """The network configuration with the shape of the data. Raises DataError when the network cannot have it."""
    _, resolution, _, channels = data.images.shape
    classes = len(data.class_names) if (data.labels >= 0).any() else 0
    stride = network.patch * 2 ** (len(network.mult) - 1)
    if resolution % stride:
        sides = (resolution // stride * stride, -(-resolution // stride) * stride)
        fitting = " or ".join(str(side) for side in sides if side)
        raise DataError(
            f"{data.name} is {resolution}x{resolution}, and the recipe's network takes sides that are multiples of "
            f"{stride}; make the data again with --resolution {fitting}"
        )
    try:
        conditions = enlarged(network.conditions, network.resolution, resolution)
    except ValueError as error:
        raise DataError(f"{data.name} does not fit the recipe: {error}") from error
    if (low := find(conditions, LOW)) and low.shape[0] != channels:
        raise DataError(f"{data.name} has {channels} channels, and the recipe enlarges images of {low.shape[0]}")
    return replace(network, resolution=resolution, channels=channels, classes=classes, conditions=conditions)
