"""A tiny world in which everything is known: Gaussian images, their closed-form networks, raw pixels as features."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.generators import Generator
from fewstep.analytic import Gaussian, as_network
from fewstep.metrics.cache import Cache
from fewstep.metrics.extractors.by_name import FeatureNet
from fewstep.metrics.reference import Reference, make_reference
from fewstep.pixels import to_pixels
from fewstep.precond import Denoiser
from trainer.data.format import ImageSet

PAIR = Gaussian(mean=0.1, std=0.3)  # far enough from black and white that clipping is rare
SHAPE = (1, 4, 4)  # (C, H, W)
CLASSES = ("even", "odd")


def image_set(count: int, seed: int) -> ImageSet:
    images = np.random.default_rng(seed).normal(PAIR.mean, PAIR.std, size=(count, *SHAPE)).astype(np.float32)
    labels = np.arange(count, dtype=np.int32) % len(CLASSES)
    return ImageSet(f"gaussian-{seed}", to_pixels(images), labels, CLASSES, "CC0-1.0", "drawn")


def generator(denoise: Callable = PAIR.teacher, levels: dict | None = None) -> Generator:
    return Generator(
        checkpoint=denoise.__name__,
        backend="engine",
        denoiser=Denoiser(as_network(denoise, PAIR.std), PAIR.std, len(CLASSES)),
        image_shape=SHAPE,
        latent_shape=(0, *SHAPE[1:]),
        class_names=CLASSES,
        levels=levels or {},
        to_array=lambda array: array,
        to_numpy=lambda array: array,
    )


def pixel_net(name: str = "pixels", classes: bool = False) -> FeatureNet:
    """Raw pixels as features; as a classifier it sees class 1 in every image."""

    def run(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        features = pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1
        return features, np.ones(len(pixels), np.int64) if classes else None

    return FeatureNet(name, f"sha of {name}", "none", run)


def reference(cache: Cache, net: FeatureNet | None = None) -> Reference:
    return make_reference(net or pixel_net(), image_set(400, 0), image_set(200, 1), cache)
