"""The adversarial term: a small head on the frozen teacher's features tells the student's outputs from real images.

Yin et al. 2024 (DMD2, Section 4.3) read the auxiliary's features; reading the teacher's, which stand still, is as
good and needs no second loss on the auxiliary. Both sides are noised first, so the head never sees a clean image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.card import CheckpointError
from fewstep.checkpoint import NetworkModule
from fewstep.network import UNet
from fewstep.precond import edm_scalings, onehot
from trainer.compute import Compute, runner
from trainer.draws import Draws
from trainer.edm import NoiseDistribution
from trainer.optimizer import AdamConfig, adam, descend
from trainer.world import replicated


@dataclass(frozen=True)
class AdversaryConfig:
    weight: float = 0.0  # against the divergence, both as means over pixels; DMD2 takes 3e-3, 0 switches it off
    start: float = 0.0  # fraction of the run before the student feels it; the head learns from the beginning
    noise: NoiseDistribution = NoiseDistribution(-0.5, 1.2)  # where both sides are compared
    adam: AdamConfig = AdamConfig(5e-4, (0.0, 0.999), decay_from=0.4, final=0.05)


class Head(nn.Module):
    """Teacher features [B, width, h, w] -> logits [B]: positive where an image looks real."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(1, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GroupNorm(1, width), nn.SiLU(),
            nn.Conv2d(width, 1, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).mean(dim=(1, 2, 3))


class _Features(nn.Module):
    """The inner half of a network as a module of its own, for the compiler."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor) -> Tensor:
        return self.network.features(x, c_noise, onehot)


class Adversary:
    """Head, optimiser and the two gradients: of the head, and of the student's outputs."""

    def __init__(self, teacher: NetworkModule, sigma_data: float, config: AdversaryConfig, compute: Compute) -> None:
        if not isinstance(teacher, UNet):
            raise CheckpointError(
                "the adversarial term reads the features of a U-Net of ours or an EDM network; "
                "a teacher imported from diffusers has none to read: train without --gan"
            )
        self.config, self.sigma_data, self.classes = config, sigma_data, teacher.config.classes
        self.head = Head(teacher.feature_width).to(compute.device)
        self.optimizer = adam(self.head, config.adam, compute.device)
        self._features = runner(_Features(teacher), compute)
        self._trained = replicated(self.head)

    def gradient(self, recovered: Tensor, labels: Tensor, rng: Draws) -> Tensor:
        """Gradient [B, C, H, W] of the non-saturating generator loss at the outputs, weight included."""
        outputs = recovered.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.head(self._seen(outputs, labels, rng))
            loss = functional.softplus(-logits).sum()
        # The divergence's gradient is a sum over pixels; the published weights are against a mean.
        return torch.autograd.grad(loss, outputs)[0] * (self.config.weight * recovered[0].numel())

    def fit(self, real: Tensor, recovered: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """One step of the head on real images and outputs of the same classes."""
        with torch.no_grad():
            seen = torch.cat([self._seen(images, labels, rng) for images in (real, recovered)])
        logits = self._trained(seen)
        on_real, on_fake = logits.chunk(2)
        loss = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
        descend(self.optimizer, loss, self.config.adam, progress)
        right = ((on_real > 0).float().mean() + (on_fake < 0).float().mean()) / 2
        return {"head_loss": loss.detach(), "head_right": right}

    def _seen(self, images: Tensor, labels: Tensor, rng: Draws) -> Tensor:
        """Features of the images [B, C, H, W], noised."""
        sigma = self.config.noise.sample(len(images), rng)
        noisy = images + sigma[:, None, None, None] * rng.normal_like(images)
        scalings = edm_scalings(sigma, self.sigma_data)
        classes = onehot(labels, self.classes, images)
        return self._features(scalings.c_in[:, None, None, None] * noisy, scalings.c_noise, classes)
