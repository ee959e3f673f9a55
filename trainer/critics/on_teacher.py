"""DMD2's adversarial term: a small head on the frozen teacher's features tells outputs from real images.

Yin et al. 2024 (DMD2, Section 4.3) read the auxiliary's innermost features; reading the teacher's, which stand still,
is as good and needs no second loss on the auxiliary. Both sides are noised first, so the head sees no clean image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.card import CheckpointError
from fewstep.checkpoint import NetworkModule
from fewstep.network import UNet
from fewstep.precond import edm_scalings, onehot
from trainer.levels.renoise import lognormal_levels
from trainer.run.compute import Compute, called
from trainer.run.distributed import replicated
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import AdversaryConfig


class Critic(nn.Module):
    """Features [B, width, h, w] -> logits [B]: positive where an image looks real."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(1, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GroupNorm(1, width), nn.SiLU(),
            nn.Conv2d(width, 1, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).mean(dim=(1, 2, 3))


class Adversary:
    """Head, optimiser and the two gradients: of the head, and of the student's outputs."""

    def __init__(self, teacher: NetworkModule, sigma_data: float, config: AdversaryConfig, compute: Compute) -> None:
        if not isinstance(teacher, UNet):
            raise CheckpointError(
                "DMD2's adversarial term reads the features of a U-Net of ours or an EDM network; "
                "a teacher imported from diffusers has none to read: choose another --method"
            )
        self.config, self.sigma_data, self.classes = config, sigma_data, teacher.config.classes
        self.heads = Critic(teacher.feature_widths[-1]).to(compute.device)
        self.optimizer = adam(self.heads, config.adam, compute.device)
        self._features = called(teacher.features, compute)
        self._trained = replicated(self.heads)

    def gradient(self, recovered: Tensor, labels: Tensor, rng: Draws) -> Tensor:
        """Gradient [B, C, H, W] of the non-saturating generator loss at the outputs, weight included."""
        outputs = recovered.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = functional.softplus(-self.heads(self._seen(outputs, labels, rng))).sum()
        # The divergence's gradient is a sum over pixels; the published weights are against a mean.
        return torch.autograd.grad(loss, outputs)[0] * (self.config.weight * recovered[0].numel())

    def fit(self, real: Tensor, recovered: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """One step of the head on real images and on outputs of the same classes."""
        with torch.no_grad():
            seen = [self._seen(images, labels, rng) for images in (real, recovered)]
        on_real, on_fake = self._trained(torch.cat(seen)).chunk(2)
        loss = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
        descend(self.optimizer, loss, self.config.adam, progress)
        right = ((on_real > 0).float().mean() + (on_fake < 0).float().mean()) / 2
        return {"head_loss": loss.detach(), "head_right": right}

    def _seen(self, images: Tensor, labels: Tensor, rng: Draws) -> Tensor:
        """The teacher's innermost features of the images [B, C, H, W], noised."""
        sigma = lognormal_levels(self.config.noise, len(images), rng)
        noisy = images + sigma[:, None, None, None] * rng.normal_like(images)
        scalings = edm_scalings(sigma, self.sigma_data)
        classes = onehot(labels, self.classes, images)
        return self._features(scalings.c_in[:, None, None, None] * noisy, scalings.c_noise, classes)[-1].float()
