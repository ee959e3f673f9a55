"""How far images are from the training images in one feature space, beside the floor at the same number of images."""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.card import CheckpointError
from fewstep.metrics.cache import Cache
from fewstep.metrics.extractors.by_name import EFFL0, FASHION128, Outputs, load_feature_net
from fewstep.metrics.extractors.fashion128 import load_extractor
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.reference import make_reference, shuffled
from trainer.data.format import DataError
from trainer.data.named import read_data


@dataclass(frozen=True)
class Space:
    """Where images are compared with the training images."""

    name: str
    features: Callable[[NDArray[np.uint8]], Outputs]
    reference: Moments
    floor: Callable[[int], float | None]  # distance of so many held-out images; None where there are fewer

    def compare(self, pixels: NDArray[np.uint8], classes: int) -> dict[str, float | None]:
        """Distance to the training images, its floor, and how often a classifier sees the class that was asked for."""
        features, predicted = self.features(pixels)
        asked = np.arange(len(pixels)) % max(classes, 1)
        return {
            "distance": frechet_distance(Moments.of(features), self.reference),
            "floor": self.floor(len(pixels)),
            "accuracy": None if predicted is None else float((predicted == asked).mean()),
        }


def load_space(args: argparse.Namespace, image_shape: tuple[int, ...]) -> Space:
    """The features of --extractor, with the training images of --data; without it, Fashion-MNIST's shipped statistics.

    Raises CheckpointError or DataError.
    """
    if not args.data:
        shipped = load_extractor(threads=args.threads)
        return Space(FASHION128, shipped, shipped.reference, shipped.floor)
    train = read_data(args.data, image_shape[1])
    height, width, channels = train.images.shape[1:]
    if (channels, height, width) != tuple(image_shape):
        raise DataError(f"{args.data} holds {height}x{width} images with {channels} channels, not {image_shape}")
    held_out = read_data(args.held_out, image_shape[1]) if args.held_out else None
    if held_out is None:
        order, tenth = shuffled(train), max(len(train.images) // 10, 2)
        held_out = replace(train, images=train.images[order[:tenth]], labels=train.labels[order[:tenth]])
        train = replace(train, images=train.images[order[tenth:]], labels=train.labels[order[tenth:]])
    net = load_feature_net(args.extractor, threads=args.threads)
    if net.image_shape and net.image_shape != train.images.shape[1:]:
        raise CheckpointError(f"{net.name} wants images of {net.image_shape}; take --extractor {EFFL0}")
    with tempfile.TemporaryDirectory() as folder:
        reference = make_reference(net, train, held_out, Cache(Path(folder)))
    floor = lambda count: next(iter(reference.floor(count)), None)  # noqa: E731
    return Space(net.name, reference.features, reference.moments, floor)
