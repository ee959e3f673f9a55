"""The reward of a class, or of any class of a set: log of the classifier's probability."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.critics.classifier import NoisyClassifier
from trainer.methods.rtb import LogReward

Logits = Callable[[Tensor], Tensor]  # images [B, C, H, W] -> [B, classes]


def class_reward(logits: Logits, classes: Sequence[int]) -> LogReward:
    """log sum of p(c | image) over the classes: at most 0, so rejection from the prior is exact."""
    chosen = list(classes)
    return lambda images, _: logits(images).log_softmax(dim=1)[:, chosen].logsumexp(dim=1)


def told_class_reward(logits: Logits) -> LogReward:
    """log p(y | image): one posterior for all classes, told which by y."""
    return lambda images, y: logits(images).log_softmax(dim=1).gather(1, y[:, None])[:, 0]


def clean_logits(classifier: NoisyClassifier) -> Logits:
    """A classifier of noisy images at the lowest level it was taught: images are what a chain makes, nearly clean."""
    level = classifier.config.sigma_min
    return lambda images: classifier(images, torch.full((len(images),), level, device=images.device))
