"""The digits of `benchmarks/posterior.py`: a prior, the classifier that is the reward, and another one that judges."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.digit_features import FEATURES, build, load_digit_sets
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.pixels import from_pixels
from fewstep.precond import Denoiser
from trainer.levels.conditioning import LEVEL_FEATURES, level_features
from trainer.methods.edm import denoising_loss
from trainer.run.draws import seeded
from trainer.run.optimizer import descend
from trainer.settings import AdamConfig

WIDTH, BLOCKS = 128, 3
PRIOR_ADAM = AdamConfig(1.5e-3, (0.9, 0.99), decay_from=0.2, final=0.01)


class Perceptron(nn.Module):
    """F for images of 8x8 as vectors: residual layers that are told the level. About 120,000 weights at WIDTH."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem, self.level = nn.Linear(64, width), nn.Linear(LEVEL_FEATURES, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(BLOCKS)
        )
        self.out = nn.Linear(width, 64)

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        h = self.stem(x.flatten(1)) + self.level(level_features((4 * c_noise).exp()))
        for block in self.blocks:
            h = h + block(h)
        return self.out(functional.silu(h)).view_as(x)


def train_prior(images: Tensor, sigma_data: float, updates: int, seed: int, width: int = WIDTH) -> Perceptron:
    """EDM training on images [N, 1, 8, 8], frozen at the end."""
    torch.manual_seed(seed)
    network, rng = Perceptron(width), seeded(seed)
    optimizer = torch.optim.Adam(network.parameters(), PRIOR_ADAM.lr, PRIOR_ADAM.betas)
    denoiser = Denoiser(network, sigma_data)
    for update in range(updates):
        clean = images[rng.integers(len(images), 256)]
        sigma = (-1.0 + 1.4 * rng.normal(256)).exp()
        loss = denoising_loss(denoiser, clean, None, sigma, rng.normal_like(clean)).mean()
        descend(optimizer, loss, PRIOR_ADAM, update / updates)
    return network.eval().requires_grad_(False)


def train_classifier(images: Tensor, labels: Tensor, updates: int, seed: int) -> nn.Sequential:
    """Taught on slightly noised images, as those of a chain are; label smoothing keeps log r of wrong ones finite."""
    torch.manual_seed(seed)
    network, rng = build(), seeded(seed)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(updates):
        rows = rng.integers(len(images), 128)
        noisy = images[rows] + 0.2 * rng.normal_like(images[rows])
        loss = functional.cross_entropy(network(noisy), labels[rows], label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Digits:
    images: Tensor  # [N, 1, 8, 8], what all networks are trained on
    labels: Tensor
    sigma_data: float
    prior: Perceptron
    classifier: nn.Sequential  # its probability of a class is r
    judge: nn.Sequential  # nothing is trained on its answers
    accuracy: tuple[float, float]  # of classifier and judge on held-out digits

    def features(self, images: Tensor) -> np.ndarray:
        """[N, FEATURES] of the judge."""
        found = self.judge[:-1](images).numpy()
        assert found.shape[1] == FEATURES
        return found

    def distance(self, images: Tensor, others: Tensor) -> float:
        """Fréchet distance in the judge's features."""
        return frechet_distance(Moments.of(self.features(images)), Moments.of(self.features(others)))


def make_digits(updates: int, classifier_updates: int, width: int = WIDTH) -> Digits:
    data, held_out = load_digit_sets()
    images, labels = torch.from_numpy(from_pixels(data.images)), torch.from_numpy(data.labels).long()
    others, answers = torch.from_numpy(from_pixels(held_out.images)), torch.from_numpy(held_out.labels).long()
    sigma_data = float(images.std())
    classifier, judge = (train_classifier(images, labels, classifier_updates, seed) for seed in (11, 12))
    correct = tuple(float((net(others).argmax(dim=1) == answers).float().mean()) for net in (classifier, judge))
    prior = train_prior(images, sigma_data, updates, 0, width)
    return Digits(images, labels, sigma_data, prior, classifier, judge, (correct[0], correct[1]))
