"""The reward of `benchmarks/posterior_fashion.py`: is a garment light? By a classifier, and another that judges.

Fashion-MNIST has a class for every image, and the shipped models are told it: a posterior of classes would be the label
itself. So the classes here are of another kind, two for every label: a garment is light when the mean of its pixels,
those above `BACKGROUND`, is above the median of the images the classifier is trained on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fewstep.pixels import Pixels, from_pixels
from trainer.run.draws import seeded

LIGHT = 1  # of the two classes
BACKGROUND = 25  # of 255: pixels up to it are no garment
NOISE, SMOOTHING, BATCH = 0.1, 0.02, 128


def tones(pixels: Pixels) -> NDArray[np.float64]:
    """uint8 [N, H, W, 1] -> the mean of the garment's pixels [N], 0 to 255; 0 for an image without any."""
    garment = pixels > BACKGROUND
    return (pixels * garment).sum(axis=(1, 2, 3)) / np.maximum(garment.sum(axis=(1, 2, 3)), 1)


def build() -> nn.Sequential:
    """images [N, 1, 32, 32] in [-1, 1] -> logits [N, 2]. About 50,000 weights."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 2))


def fit(pixels: Pixels, light: NDArray[np.bool_], updates: int, seed: int) -> nn.Sequential:
    """A classifier of `light`, frozen. Images are noised a little, as those of a chain are; label smoothing keeps log r
    of the wrong class above log(SMOOTHING / 2) or so."""
    torch.manual_seed(seed)
    network, rng = build(), seeded(seed)
    answers = torch.from_numpy(light).long()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for update in range(updates):
        rows = rng.integers(len(pixels), BATCH)
        images = torch.from_numpy(from_pixels(pixels[rows.numpy()]))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - update / updates)
        loss = functional.cross_entropy(
            network(images + NOISE * rng.normal_like(images)), answers[rows], label_smoothing=SMOOTHING
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Tone:
    classifier: nn.Sequential  # its probability of "light" is r, at most 1
    judge: nn.Sequential  # trained on other images; nothing is trained on its answers
    threshold: float  # of `tones`: the median of the classifier's images

    def log_reward(self, images: Tensor, y: Tensor | None = None) -> Tensor:
        """images [B, 1, 32, 32] -> log r [B]; y is not read."""
        with torch.no_grad():
            return self.classifier(images).log_softmax(dim=1)[:, LIGHT]

    @torch.no_grad()
    def features(self, images: Tensor) -> NDArray[np.float32]:
        """[N, 64] of the judge."""
        return self.judge[:-1](images).numpy()

    @torch.no_grad()
    def judged(self, images: Tensor) -> float:
        """Share of the images that the judge calls light."""
        return float((self.judge(images).argmax(dim=1) == LIGHT).float().mean())
