"""The training commands: settings in, a trained checkpoint folder out."""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from fewstep.card import Card, CheckpointError, read_card
from fewstep.checkpoint import load_denoiser
from fewstep.network import UNet
from trainer.artifacts import describe, environment, write_checkpoint
from trainer.compute import Compute, default_device, faster_precision, placed, worth_compiling
from trainer.dataset import DataError, ImageSet, sigma_data
from trainer.loop import Clock, LoopConfig, train
from trainer.recipes import fitted, recipe
from trainer.renoise import Rule, served_lists
from trainer.state import STATE_FILE
from trainer.student import Student
from trainer.teacher import Teacher


@dataclass(frozen=True)
class RunOptions:
    """What the command line decides; everything else is the recipe's."""

    recipe: str
    out: Path
    images: int | None = None
    budget_s: float | None = None
    batch: int | None = None
    seed: int = 0
    resume: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    device: str | None = None
    checkpoint_s: float = 300.0


def train_teacher(options: RunOptions, data: ImageSet) -> bool:
    """Returns False when interrupted. The checkpoint in options.out is usable either way."""
    chosen = recipe(options.recipe)
    config = _loop_config(options, chosen.batch, chosen.teacher_images, chosen.flip)
    _check_out(options)
    torch.manual_seed(options.seed)
    network = UNet(fitted(chosen.network, data))
    compute = _compute(options, network, config.batch)
    placed(network, compute.device)
    sigma = sigma_data(data.images)
    method = Teacher(network, sigma, chosen.teacher, compute)
    card = Card("teacher", describe(network), sigma, "", data.provenance(), data.class_names)
    return _run(method, data, config, options, card, asdict(chosen.teacher), compute)


def train_student(options: RunOptions, data: ImageSet, teacher_dir: Path, renoise: Rule | None = None) -> bool:
    """Returns False when interrupted. Raises CheckpointError when teacher and data do not belong together."""
    chosen = recipe(options.recipe)
    config = _loop_config(options, chosen.batch, chosen.student_images, chosen.flip)
    denoiser, parent = load_denoiser(teacher_dir)
    _check_match(parent, data, teacher_dir)
    _check_out(options)
    network = denoiser.network
    assert isinstance(network, UNet)
    torch.manual_seed(options.seed)
    compute = _compute(options, network.requires_grad_(True), config.batch)
    placed(network, compute.device)
    settings = replace(chosen.student, renoise=renoise) if renoise else chosen.student
    method = Student(network, parent.sigma_data, settings, compute)
    levels = dict(zip(settings.steps, served_lists(settings.steps, settings.sigma_min), strict=True))
    card = Card(
        "student",
        describe(network),
        parent.sigma_data,
        "",
        data.provenance(),
        data.class_names,
        levels,
        parent.weights,
    )
    return _run(method, data, config, options, card, asdict(settings), compute)


def _run(
    method: Teacher | Student,
    data: ImageSet,
    config: LoopConfig,
    options: RunOptions,
    card: Card,
    settings: dict[str, Any],
    compute: Compute,
) -> bool:
    identity = {
        "recipe": options.recipe,
        "data": card.dataset.sha256,
        "teacher": card.parent,
        "seed": config.seed,
        "batch": config.batch,
        **settings,
    }
    identity = json.loads(json.dumps(identity))  # as it will be read back
    print(json.dumps({"role": card.role, "network": card.network, **identity}, indent=2), file=sys.stderr)

    def save(average: torch.nn.Module, clock: Clock) -> None:
        training = {
            **identity,
            "images_planned": config.images,
            "budget_s": config.budget_s,
            "images": clock.images,
            "seconds": round(clock.elapsed_s, 1),
            "device": compute.device,
            "precision": compute.precision,
            "environment": environment(),
        }
        write_checkpoint(options.out, average, replace(card, training=training), f"{clock.images:09d}")

    return train(method, data, config, options.out, save, resume=options.resume, identity=identity)


def _loop_config(options: RunOptions, batch: int, images: int, flip: bool) -> LoopConfig:
    limited = options.images is not None or options.budget_s is not None
    return LoopConfig(
        batch=options.batch or batch,
        images=options.images if limited else images,
        budget_s=options.budget_s,
        checkpoint_s=options.checkpoint_s,
        seed=options.seed,
        flip=flip,
    )


def _compute(options: RunOptions, network: UNet, batch: int) -> Compute:
    device = options.device or default_device()
    precision = options.precision
    if precision == "auto" and options.resume:
        precision = read_card(options.out).training["precision"]  # a run goes on as it began
    if precision == "auto":
        precision = faster_precision(network, device, batch)
    compile = worth_compiling(device, options.budget_s) if options.compile == "auto" else options.compile == "on"
    print(f"device {device}, {precision}, {'compiled' if compile else 'eager'}", file=sys.stderr)
    return Compute(device, precision, compile)


def _check_out(options: RunOptions) -> None:
    if not options.resume and (options.out / STATE_FILE).exists():
        raise CheckpointError(
            f"{options.out} already holds a training run; add --resume to continue it, or choose another --out"
        )


def _check_match(parent: Card, data: ImageSet, folder: Path) -> None:
    """Refuse a teacher that was made for other images, before the first step."""
    if parent.role != "teacher":
        raise CheckpointError(f"{folder} is a {parent.role}; a student is distilled from a teacher")
    channels, resolution, _ = parent.image_shape
    _, height, _, data_channels = data.images.shape
    if (channels, resolution) != (data_channels, height):
        raise DataError(
            f"the teacher makes {resolution}x{resolution} images with {channels} channels, "
            f"{data.name} has {height}x{height} with {data_channels}"
        )
    if parent.network["classes"] not in (0, len(data.class_names)):
        raise DataError(
            f"the teacher knows {parent.network['classes']} classes, {data.name} has {len(data.class_names)}"
        )
    measured = sigma_data(data.images)
    if abs(measured / parent.sigma_data - 1) > 0.1:
        raise DataError(
            f"{data.name} has sigma_data {measured:.3f}, the teacher was trained at {parent.sigma_data:.3f}: "
            "it was made for other images"
        )
