"""The feature extractors behind every distance, and how to get one by name.

`fashion128`     our own Fashion-MNIST classifier, shipped with its statistics: the default for 32x32 gray images
`fashion128-b`   the same, trained on half b of the images, which the panel keeps from networks
`effl0-pca64`    EfficientNet-Lite0 on any images, projected on 64 principal axes of the reference
`random-pca64`   untrained random convolutions, projected likewise
`pixels-pca64`   the pixels themselves, likewise projected
`inception-2015` the network of the standard FID, from a weight file of the user's

Only the last one's distance may be called FID: other feature nets give other scales. A distance is biased upwards by
about c / N, so two distances compare only at equal N, and the floor (real held-out images against the same reference)
at that N belongs beside them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.card import CheckpointError
from fewstep.metrics.extractors.fashion128 import FOLDER, FOLDER_B, load_extractor

FASHION128, EFFL0, INCEPTION = "fashion128", "effl0-pca64", "inception-2015"
FASHION128_B, RANDOM, PIXELS = "fashion128-b", "random-pca64", "pixels-pca64"
NAMES = (FASHION128, FASHION128_B, EFFL0, RANDOM, PIXELS, INCEPTION)

Pixels = NDArray[np.uint8]  # [N, H, W, C]
Outputs = tuple[NDArray[np.float32], NDArray[np.int64] | None]  # features [N, d]; classes [N] if it is a classifier


@dataclass(frozen=True)
class FeatureNet:
    """A frozen network in whose features images are compared."""

    name: str
    sha256: str  # of its weights
    settings: str  # what an image goes through before it
    run: Callable[[Pixels], Outputs]  # one batch
    image_shape: tuple[int, int, int] | None = None  # (H, W, C) it wants; None: any
    axes: int | None = None  # its features are projected on so many principal axes of the reference

    def __call__(self, pixels: Pixels) -> Outputs:
        """uint8 [N, H, W, 1 or 3] -> features [N, d], and the classes it sees. Raises ValueError for a wrong shape."""
        if self.image_shape and pixels.shape[1:] != self.image_shape:
            raise ValueError(f"{self.name} wants images of {self.image_shape}, not {pixels.shape[1:]}")
        return self.run(np.require(pixels, requirements=["C", "W"]))


def load_feature_net(name: str, inception: Path | None = None, threads: int = 0) -> FeatureNet:
    """Raises CheckpointError with a sentence when its weights are not to be had."""
    if name in (FASHION128, FASHION128_B):
        extractor = load_extractor(FOLDER if name == FASHION128 else FOLDER_B, threads)
        digest = extractor.facts["network_sha256"]
        return FeatureNet(name, digest, "32x32 gray, fp32", extractor, image_shape=(32, 32, 1))
    if name == EFFL0:
        from fewstep.metrics.extractors import efficientnet_lite0 as effl0  # torch is needed for these two only

        network = effl0.load_efficientnet_lite0()
        return FeatureNet(name, effl0.SHA256, "64x64, bicubic antialiased, fp32", _on_torch(network, threads), axes=64)
    if name == RANDOM:
        from fewstep.metrics.extractors.random_convolutions import RandomConvolutions

        layers = RandomConvolutions()
        return FeatureNet(name, layers.sha256(), "any size, fp32", _on_torch(layers, threads), axes=64)
    if name == PIXELS:
        return FeatureNet(name, "none", "all values, in [-1, 1]", _pixels, axes=64)
    if name == INCEPTION:
        from fewstep.metrics.extractors import inception as inception_2015

        if inception is None:
            raise CheckpointError(f"{name} needs its weight file: --inception {inception_2015.FILE}")
        network = inception_2015.load_inception(inception)
        return FeatureNet(
            name, inception_2015.SHA256, "299x299, TensorFlow 1 bilinear, fp32", _on_torch(network, threads)
        )
    raise CheckpointError(f"there is no feature extractor {name!r}; there are {', '.join(NAMES)}")


def _pixels(pixels: Pixels) -> Outputs:
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(127.5) - 1, None


def _on_torch(network: Any, threads: int) -> Callable[[Pixels], Outputs]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    network = network.to(memory_format=torch.channels_last)

    def run(pixels: Pixels) -> Outputs:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy(), None

    return run
