"""What generated images are held against: the real ones, in the features of one net, training and held-out."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fewstep.metrics.cache import Cache
from fewstep.metrics.extractors.by_name import FeatureNet, Outputs
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.pca import Axes

SHUFFLE_SEED = 0  # datasets may be sorted by class, so whatever takes a part of one takes a random part


class Images(Protocol):
    """Real images with their labels, as a data set of the trainer has them."""

    @property
    def name(self) -> str: ...
    @property
    def images(self) -> NDArray[np.uint8]: ...  # [N, H, W, C]
    @property
    def labels(self) -> NDArray[np.integer]: ...  # [N]
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Reference:
    """Features [N, d] of the real images, in a fixed random order, and the axes they are projected on."""

    net: FeatureNet
    axes: Axes | None
    train: NDArray[np.float32]
    held_out: NDArray[np.float32]
    held_out_accuracy: float | None
    moments: Moments  # of the training images: what distances are taken to
    data: str  # hashes of the two image sets

    @property
    def identity(self) -> str:
        """A hash of all that turns pixels into features: weights, preprocessing, axes."""
        digest = hashlib.sha256(f"{self.net.sha256} {self.net.settings}".encode())
        if self.axes:
            digest.update(self.axes.mean.tobytes() + self.axes.basis.tobytes())
        return digest.hexdigest()

    def features(self, pixels: NDArray[np.uint8]) -> Outputs:
        """uint8 [N, H, W, C] -> features [N, d], and the classes seen where the net is a classifier."""
        features, classes = self.net(pixels)
        return (self.axes.project(features) if self.axes else features), classes

    def floor(self, count: int) -> list[float]:
        """Distances of real held-out images to the training images, one for every disjoint `count` of them."""
        starts = range(0, len(self.held_out) - count + 1, count)
        return [frechet_distance(Moments.of(self.held_out[i : i + count]), self.moments) for i in starts]


def shuffled(images: Images) -> NDArray[np.int64]:
    """The fixed random order of a set's images."""
    return np.random.default_rng(SHUFFLE_SEED).permutation(len(images.images))


def make_reference(net: FeatureNet, train: Images, held_out: Images, cache: Cache) -> Reference:
    """The reference of two image sets, from the cache or made now. The axes come from the training images alone."""
    data = f"{train.sha256()} {held_out.sha256()}"
    key = {"kind": "reference", "net": net.sha256, "settings": net.settings, "axes": net.axes, "data": data}
    stored = cache.read(key)
    if stored is None:
        features, _ = _run(net, train)
        other, classes = _run(net, held_out)
        axes = Axes.of(features, net.axes) if net.axes else None
        labels = held_out.labels[shuffled(held_out)]
        stored = {
            "train": axes.project(features) if axes else features,
            "held_out": axes.project(other) if axes else other,
            "accuracy": np.array(np.nan if classes is None else np.mean(classes == labels)),
            **({"mean": axes.mean, "basis": axes.basis} if axes else {}),
        }
        cache.write(key, **stored)
    axes = Axes(stored["mean"], stored["basis"]) if net.axes else None
    accuracy = float(stored["accuracy"])
    return Reference(
        net=net,
        axes=axes,
        train=stored["train"],
        held_out=stored["held_out"],
        held_out_accuracy=None if np.isnan(accuracy) else accuracy,
        moments=Moments.of(stored["train"]),
        data=data,
    )


def _run(net: FeatureNet, images: Images, batch: int = 200) -> Outputs:
    """Features of a whole set, shuffled."""
    from tqdm import tqdm  # of [bench]

    order = shuffled(images)
    parts = np.array_split(order, -(-len(order) // batch))
    outputs = [net(images.images[part]) for part in tqdm(parts, desc=f"{net.name} of {images.name}", unit="batch")]
    features = np.concatenate([features for features, _ in outputs])
    classes = [seen for _, seen in outputs if seen is not None]
    return features, np.concatenate(classes) if classes else None
