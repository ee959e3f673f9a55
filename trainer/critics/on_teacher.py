"""DMD2's adversarial term: a small head on the frozen teacher's features tells outputs from real images.

Yin et al. 2024 (DMD2, Section 4.3) read the auxiliary's innermost features. The teacher's, which are frozen, work as
well and need no second loss on the auxiliary. Real images and outputs are both noised first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.card import CheckpointError
from fewstep.checkpoint import NetworkModule
from fewstep.network import UNet
from fewstep.precond import edm_scalings, onehot
from trainer.levels.renoise import lognormal_levels
from trainer.run.compute import Compute, wrap_for_compute
from trainer.run.distributed import replicate
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import AdversaryConfig


class Critic(nn.Module):
    """Features [B, width, h, w] -> logits [B], positive for real images."""

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
    """The head and its optimiser. Gives the gradient at the student's outputs, and fits the head."""

    def __init__(self, teacher: NetworkModule, sigma_data: float, config: AdversaryConfig, compute: Compute) -> None:
        if not isinstance(teacher, UNet):
            raise CheckpointError(
                "DMD2's adversarial term reads the features of a U-Net of ours or an EDM network; "
                "a teacher imported from diffusers or EDM2 has none to read: choose another --method"
            )
        self.config, self.sigma_data, self.classes = config, sigma_data, teacher.config.classes
        self.heads = Critic(teacher.feature_widths[-1]).to(compute.device)
        self.optimizer = adam(self.heads, config.adam)
        self._features = wrap_for_compute(teacher.features, compute)
        self._replicated_heads = replicate(self.heads, divided=compute.shard)

    def gradient(self, recovered: Tensor, labels: Tensor, rng: Draws) -> Tensor:
        """Gradient [B, C, H, W] of the non-saturating generator loss at the outputs, weight included."""
        outputs = recovered.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = functional.softplus(-self.heads(self._features_of_noised(outputs, labels, rng))).sum()
        # The divergence's gradient is a sum over pixels; the published weights are relative to a mean.
        return torch.autograd.grad(loss, outputs)[0] * (self.config.weight * recovered[0].numel())

    def fit(self, real: Tensor, recovered: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """One step of the head on real images and on outputs of the same classes."""
        with torch.no_grad():
            features = [self._features_of_noised(images, labels, rng) for images in (real, recovered)]
        on_real, on_fake = self._replicated_heads(torch.cat(features)).chunk(2)
        loss = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
        descend(self.optimizer, loss, self.config.adam, progress)
        right = ((on_real > 0).float().mean() + (on_fake < 0).float().mean()) / 2
        return {"head_loss": loss.detach(), "head_right": right}

    def _features_of_noised(self, images: Tensor, labels: Tensor, rng: Draws) -> Tensor:
        """The teacher's innermost features of the images [B, C, H, W], noised."""
        sigma = lognormal_levels(self.config.noise, len(images), rng)
        noisy = images + sigma[:, None, None, None] * rng.normal_like(images)
        scalings = edm_scalings(sigma, self.sigma_data)
        classes = onehot(labels, self.classes, images)
        return self._features(scalings.c_in[:, None, None, None] * noisy, scalings.c_noise, classes)[-1].float()
