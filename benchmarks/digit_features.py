"""How far 8x8 digits are from the data: Fréchet distance in the features of a small classifier, and its floor.

At this size a two-layer perceptron is as good an extractor as any; it is trained here, on the images the models train
on, with a fixed seed. Its numbers compare only with one another.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torch.nn import functional

from fewstep.card import write_atomically
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.pixels import Pixels, from_pixels
from trainer.data.format import ImageSet
from trainer.data.sources.digits import read_digits

FEATURES = 48
FILE = "classifier.safetensors"
UPDATES, BATCH, SEED = 1500, 128, 0


@dataclass(frozen=True)
class Yardstick:
    network: nn.Sequential
    sha256: str  # of its weights
    reference: Moments  # of the images the models train on
    held_out: NDArray[np.float32]  # features [N, 48] of real images that nothing was trained on
    accuracy: float  # on those

    def distance(self, pixels: Pixels) -> float:
        """uint8 [N, 8, 8, 1] -> distance to the training images."""
        return frechet_distance(Moments.of(features(self.network, pixels)), self.reference)

    def floor(self, count: int) -> float | None:
        """The distance of `count` held-out images; None where there are fewer."""
        if count > len(self.held_out):
            return None
        return frechet_distance(Moments.of(self.held_out[:count]), self.reference)


def load_digit_sets() -> tuple[ImageSet, ImageSet]:
    """Two thirds of all digits to train on, and every third held out. Raises DataError without scikit-learn."""
    parts = [read_digits("train"), read_digits("test")]
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    order = np.random.default_rng(SEED).permutation(len(images))
    cut = len(images) * 2 // 3
    return tuple(  # pyright: ignore[reportReturnType]
        ImageSet(name, images[rows], labels[rows], parts[0].class_names, parts[0].licence, parts[0].source)
        for name, rows in (("digits-train", order[:cut]), ("digits-held-out", order[cut:]))
    )


def make_yardstick(folder: Path, data: ImageSet, held_out: ImageSet) -> Yardstick:
    """The classifier stored in `folder`, trained and stored there first if there is none."""
    path = folder / FILE
    network = build()
    if not path.is_file():
        fit(network, data)
        write_atomically(path, save_tensors(network.state_dict()))
    content = path.read_bytes()
    network.load_state_dict(load_tensors(content))
    network.eval().requires_grad_(False)
    logits = network(torch.from_numpy(from_pixels(held_out.images)))
    return Yardstick(
        network=network,
        sha256=hashlib.sha256(content).hexdigest(),
        reference=Moments.of(features(network, data.images)),
        held_out=features(network, held_out.images),
        accuracy=float((logits.argmax(dim=1).numpy() == held_out.labels).mean()),
    )


def build() -> nn.Sequential:
    """images [N, 1, 8, 8] -> logits [N, 10]; the features are what the last layer is given."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, FEATURES), nn.ReLU(), nn.Linear(FEATURES, 10)
    )


def fit(network: nn.Sequential, data: ImageSet) -> None:
    """Adam on noised images: without the noise it would learn the few training images by heart."""
    generator = torch.Generator().manual_seed(SEED)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    images, labels = torch.from_numpy(from_pixels(data.images)), torch.from_numpy(data.labels).long()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(UPDATES):
        index = torch.randint(len(images), (BATCH,), generator=generator)
        noisy = images[index] + 0.3 * torch.randn(BATCH, *images.shape[1:], generator=generator)
        loss = functional.cross_entropy(network(noisy), labels[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def features(network: nn.Sequential, pixels: Pixels) -> NDArray[np.float32]:
    """uint8 [N, 8, 8, 1] -> [N, 48]."""
    return network[:-1](torch.from_numpy(from_pixels(pixels))).numpy()
