"""The command `fewstep trainer classifier`: train a classifier that takes the noise level as an input."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fewstep.ranges import RangeError
from trainer.critics.classifier import (
    ADAM,
    Classification,
    ClassifierConfig,
    NoisyClassifier,
    save_classifier,
)
from trainer.data.format import DataError, ImageSet
from trainer.data.loader import batches, order_facts
from trainer.options import RunOptions
from trainer.recipes.by_name import recipe
from trainer.run.artifacts import environment
from trainer.run.clock import Clock
from trainer.run.compute import Compute, move_to_device, usable_device, use_tf32, worth_compiling
from trainer.run.loop import train
from trainer.run.recorded import CudaGraphs
from trainer.runs import divides, loop_config, own_folder, records_graphs


def train_classifier(options: RunOptions, data: ImageSet) -> bool:
    """Returns False when interrupted. Raises DataError for images without labels or of an odd size."""
    with own_folder(options):
        return _train_classifier(options, data)


def _train_classifier(options: RunOptions, data: ImageSet) -> bool:
    config = loop_config(options, chosen := recipe(options.recipe), chosen.classifier_images)
    _, side, _, channels = data.images.shape
    if not (data.labels >= 0).all() or len(data.class_names) < 2:
        raise DataError(f"{data.name} has images without a class; a classifier needs a class for every image")
    if side < 8 or side % 2:
        raise DataError(f"{data.name} is {side}x{side}; a classifier takes images of an even side from 8 up")
    if options.rows is not None:
        raise RangeError("--rows-at-once: a classifier is trained on whole batches; choose a smaller --batch instead")
    torch.manual_seed(options.seed)
    settings = ClassifierConfig(side, channels, len(data.class_names), data.sigma_data())
    device = usable_device(options.device)
    compile = worth_compiling(device, options.budget_s) if options.compile == "auto" else options.compile == "on"
    precision = "fp32" if options.precision == "auto" else options.precision
    tf32 = use_tf32(device, options.tf32 == "on")
    graphs = records_graphs(options, device)
    compute = Compute(device, precision, compile, tf32=tf32, shard=divides(options), cuda_graphs=graphs)
    network = move_to_device(NoisyClassifier(settings), device)
    identity = json.loads(
        json.dumps({
            "recipe": options.recipe, "data": data.provenance().sha256, "seed": config.seed, "batch": config.batch,
            **asdict(settings), "adam": asdict(ADAM), **order_facts(data),
        })
    )  # fmt: skip

    def save(average: nn.Module, clock: Clock, folder: Path) -> None:
        assert isinstance(average, NoisyClassifier)
        facts = {
            "images": clock.images, "seconds": round(clock.elapsed_s, 1), "precision": compute.precision,
            "tf32": compute.tf32, "cuda_graphs": graphs, "environment": environment(),
        }  # fmt: skip
        save_classifier(folder, average, {**identity, **facts})

    method = Classification(network, compute)
    return train(
        method, partial(batches, data, config), config, options.out, save, resume=options.resume, identity=identity,
        shard=compute.shard, recorder=CudaGraphs if graphs else None,
    )  # fmt: skip
