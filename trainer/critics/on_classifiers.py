"""Critics: small heads on the feature maps of frozen classifiers (Sauer et al. 2021, Projected GAN). They learn fast.

The noise level is an input of the classifiers, so that one critic works at every level of a student's lists.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.critics.classifier import NoisyClassifier
from trainer.levels.conditioning import LEVEL_FEATURES, level_features
from trainer.run.compute import Compute, wrap_for_compute


class Head(nn.Module):
    """A map [B, width, h, w], a level and a class -> logit [B] (Miyato & Koyama 2018, projection discriminator)."""

    def __init__(self, width: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, hidden, 1)
        self.level_embedding = nn.Linear(LEVEL_FEATURES, hidden)
        self.out, self.label = nn.Conv2d(hidden, 1, 1), nn.Embedding(classes, hidden)
        nn.init.zeros_(self.level_embedding.weight)
        nn.init.normal_(self.label.weight, std=0.05)

    def forward(self, x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        x = functional.leaky_relu(self.first(_standardise(x)), 0.2) + self.level_embedding(level)[:, :, None, None]
        x = functional.leaky_relu(self.second(x), 0.2)
        typical = (self.label(labels)[:, :, None, None] * x).sum(dim=1).mean(dim=(1, 2))
        return self.out(x).mean(dim=(1, 2, 3)) + typical


class Critics(nn.Module):
    """A head for every feature map of every classifier; only the heads have parameters of this module."""

    def __init__(self, classifiers: Sequence[NoisyClassifier], compute: Compute) -> None:
        super().__init__()
        classes = classifiers[0].config.classes
        widths = [width for classifier in classifiers for width in classifier.feature_widths]
        self.heads = nn.ModuleList(Head(width, classes) for width in widths)
        self._maps = [wrap_for_compute(classifier.features, compute) for classifier in classifiers]

    def see(self, noisy: Tensor, sigma: Tensor) -> list[Tensor]:
        """The feature maps of images [B, C, H, W] noised to sigma [B]. Gradients pass to the images."""
        return [found.float() for maps in self._maps for found in maps(noisy, sigma)]

    def forward(self, maps: Sequence[Tensor], sigma: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, heads]."""
        level = level_features(sigma)
        return torch.stack([head(x, level, labels) for head, x in zip(self.heads, maps, strict=True)], dim=1)


def _standardise(x: Tensor) -> Tensor:
    """Every image's map at mean 0 and variance 1. torch's GroupNorm crashes in the backward pass of 1x1 maps
    that are channels-last (2.11, CPU), which a vector of features is."""
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), keepdim=True, unbiased=False)
    return (x - mean) * (variance + 1e-5).rsqrt()
