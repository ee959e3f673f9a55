"""The adversarial term: small heads on the frozen teacher's features tell the student's outputs from real images.

Yin et al. 2024 (DMD2, Section 4.3) read the auxiliary's innermost features; reading the teacher's, which stand still,
is as good and needs no second loss on the auxiliary. Both sides are noised first, so no head ever sees a clean image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.card import CheckpointError
from fewstep.checkpoint import NetworkModule
from fewstep.network import UNet
from fewstep.precond import edm_scalings, onehot
from trainer.levels.conditioning import LEVEL_FEATURES, level_features
from trainer.levels.renoise import lognormal_levels
from trainer.run.compute import Compute, called
from trainer.run.distributed import replicated
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import AdversaryConfig, Scales


class Critic(nn.Module):
    """Features [B, width, h, w] and numbers [B, told] -> logits [B]: positive where an image looks real."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(1, width))
        self.rest = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GroupNorm(1, width), nn.SiLU(),
            nn.Conv2d(width, 1, 1),
        )  # fmt: skip
        self.told = nn.Linear(told, 2 * width) if told else None
        if self.told is not None:
            nn.init.zeros_(self.told.weight)
            nn.init.zeros_(self.told.bias)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        x = self.first(features)
        if self.told is not None:
            scale, shift = self.told(told)[:, :, None, None].chunk(2, dim=1)
            x = x * (1 + scale) + shift
        return self.rest(x).mean(dim=(1, 2, 3))


class Heads(nn.Module):
    """One critic per feature map: maps of `widths` channels and numbers [B, told] -> logits [B, maps]."""

    def __init__(self, widths: Sequence[int], told: int = 0) -> None:
        super().__init__()
        self.critics = nn.ModuleList(Critic(width, told) for width in widths)

    def forward(self, maps: Sequence[Tensor], told: Tensor) -> Tensor:
        return torch.stack([critic(map, told) for critic, map in zip(self.critics, maps, strict=True)], dim=1)


class _Features(nn.Module):
    """The inner half of a network as a module of its own, for the compiler."""

    def __init__(self, network: UNet, scales: Scales) -> None:
        super().__init__()
        self.network, self.first = network, 0 if scales == "all" else -1

    def forward(self, x: Tensor, c_noise: Tensor, onehot: Tensor) -> tuple[Tensor, ...]:
        return self.network.features(x, c_noise, onehot)[self.first :]


class Adversary:
    """Heads, optimiser and the two gradients: of the heads, and of the student's outputs."""

    def __init__(self, teacher: NetworkModule, sigma_data: float, config: AdversaryConfig, compute: Compute) -> None:
        if not isinstance(teacher, UNet):
            raise CheckpointError(
                "the adversarial term reads the features of a U-Net of ours or an EDM network; "
                "a teacher imported from diffusers has none to read: train without --gan"
            )
        self.config, self.sigma_data, self.classes = config, sigma_data, teacher.config.classes
        widths = teacher.feature_widths if config.scales == "all" else teacher.feature_widths[-1:]
        self.heads = Heads(widths, LEVEL_FEATURES if config.sees_level else 0).to(compute.device)
        self.optimizer = adam(self.heads, config.adam, compute.device)
        self._features = called(_Features(teacher, config.scales), compute)
        self._trained = replicated(self.heads)

    def gradient(self, recovered: Tensor, labels: Tensor, fed: Tensor, rng: Draws) -> Tensor:
        """Gradient [B, C, H, W] of the non-saturating generator loss at the outputs, weight included.

        fed [B]: the levels at which the student made them.
        """
        outputs = recovered.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.heads(self._seen(outputs, labels, rng), level_features(fed))
            loss = functional.softplus(-logits).mean(dim=1).sum()
        # The divergence's gradient is a sum over pixels; the published weights are against a mean.
        return torch.autograd.grad(loss, outputs)[0] * (self.config.weight * recovered[0].numel())

    def fit(
        self, real: Tensor, recovered: Tensor, labels: Tensor, fed: Tensor, progress: float, rng: Draws
    ) -> dict[str, Tensor]:
        """One step of the heads on real images and on outputs of the same classes, made at the levels fed [B]."""
        with torch.no_grad():
            seen = [self._seen(images, labels, rng) for images in (real, recovered)]
        maps = [torch.cat(pair) for pair in zip(*seen, strict=True)]
        logits = self._trained(maps, level_features(fed).repeat(2, 1))
        on_real, on_fake = logits.chunk(2)
        loss = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
        descend(self.optimizer, loss, self.config.adam, progress)
        right = ((on_real > 0).float().mean() + (on_fake < 0).float().mean()) / 2
        return {"head_loss": loss.detach(), "head_right": right}

    def _seen(self, images: Tensor, labels: Tensor, rng: Draws) -> tuple[Tensor, ...]:
        """Feature maps of the images [B, C, H, W], noised."""
        sigma = lognormal_levels(self.config.noise, len(images), rng)
        noisy = images + sigma[:, None, None, None] * rng.normal_like(images)
        scalings = edm_scalings(sigma, self.sigma_data)
        classes = onehot(labels, self.classes, images)
        maps = self._features(scalings.c_in[:, None, None, None] * noisy, scalings.c_noise, classes)
        return tuple(found.float() for found in maps)
