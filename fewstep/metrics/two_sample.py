"""Classifier two-sample tests: can a classifier tell generated from real images? (Lopez-Paz & Oquab 2017). PyTorch.

Half of each side trains a classifier, the other half is ranked by it. The area under the ROC curve (AUC) is the chance
that a generated image is ranked above a real one: 0.5 says that the classifier cannot tell them apart, 1 that it always
can. It grows with the number of images that train it, so two AUCs compare only at equal N.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Pixels = NDArray[np.uint8]  # [N, H, W, C]
PENALTY = 1e-2  # of the ridge classifier, in units of a feature's variance


@dataclass(frozen=True)
class SmallCNN:
    """The network of `cnn_auc` and its training: four 3x3 convolutions, all but the first of stride 2, mean pooling."""

    widths: tuple[int, ...] = (24, 48, 72, 96)
    epochs: int = 6
    batch: int = 100
    lr: float = 4e-3  # the highest of a one-cycle schedule of AdamW


def auc(lower: NDArray[np.floating], higher: NDArray[np.floating]) -> float:
    """The chance that a value of `higher` [m] exceeds one of `lower` [n], ties counted half (Mann & Whitney 1947)."""
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, "left") + np.searchsorted(ordered, higher, "right")
    return float(below.sum() / (2 * len(lower) * len(higher)))


def in_16_levels(pixels: Pixels) -> Pixels:
    """uint8 pixels cut to 16 gray levels, 0, 17, .., 255: what is left when faint noise does not count."""
    return (pixels // 16 * 17).astype(np.uint8)


def halves(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A random half of the rows 0 .. count - 1 to train on, and the rest to rank.

    Raises ValueError for fewer than four rows.
    """
    if count < 4:
        raise ValueError(f"a two-sample test takes four images or more a side, not {count}")
    order = np.random.default_rng([seed, count]).permutation(count)
    return order[: count // 2], order[count // 2 :]


def ridge_auc(
    real: NDArray[np.floating], generated: NDArray[np.floating], seed: int, penalty: float = PENALTY
) -> float:
    """AUC of ridge regression on features real [n, d] and generated [m, d], each standardised by the training half."""
    (x, y), judged = _sides(real.astype(np.float64), generated.astype(np.float64), seed)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1  # a constant feature stays zero
    x, target = (x - mean) / scale, 2.0 * y - 1
    weights = np.linalg.solve(x.T @ x / len(x) + penalty * np.eye(x.shape[1]), x.T @ (target - target.mean()) / len(x))
    lower, higher = (((side - mean) / scale) @ weights for side in judged)
    return auc(lower, higher)


def cnn_auc(real: Pixels, generated: Pixels, seed: int, config: SmallCNN = SmallCNN()) -> float:
    """AUC of a small convolutional network, trained anew on uint8 real [n, H, W, C] and generated [m, H, W, C].

    seed: of the split, the weights and the batches. On a CPU equal inputs give equal results for one number of threads.
    """
    (x, y), judged = _sides(real, generated, seed)
    images, labels = _images(x), torch.from_numpy(y.astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _fit(images, labels, config)
    with torch.inference_mode():
        lower, higher = (
            np.concatenate([network(part).numpy() for part in _images(side).split(500)]) for side in judged
        )
    return auc(lower, higher)


def _sides(real: NDArray, generated: NDArray, seed: int) -> tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]]:
    """(rows to train on, 0 or 1 for each: generated), (real rows, generated rows) to rank."""
    (real_train, real_test), (made_train, made_test) = halves(len(real), seed), halves(len(generated), seed)
    labels = np.repeat([0, 1], [len(real_train), len(made_train)])
    return (np.concatenate([real[real_train], generated[made_train]]), labels), (real[real_test], generated[made_test])


def _images(pixels: Pixels) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _fit(images: Tensor, labels: Tensor, config: SmallCNN) -> nn.Module:
    layers: list[nn.Module] = []
    channels = images.shape[1]
    for index, width in enumerate(config.widths):
        stride = 1 if index == 0 else 2
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1), nn.Flatten(0))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    batches = max(len(images) // config.batch, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * batches)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(images)).tensor_split(batches):
            loss = functional.binary_cross_entropy_with_logits(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()
