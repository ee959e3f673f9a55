"""The teacher: EDM training of one denoiser (Karras et al. 2022)."""

import torch
from torch import Tensor, nn

from fewstep.checkpoint import NetworkModule
from fewstep.precond import Denoiser
from trainer.levels.renoise import lognormal_levels
from trainer.methods.conditions import of_images, without_some
from trainer.run.compute import Compute, runner
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import TeacherConfig


class Teacher:
    """trainer.run.loop.Method for an EDM denoiser."""

    served = "teacher"

    def __init__(self, network: NetworkModule, sigma_data: float, config: TeacherConfig, compute: Compute) -> None:
        self.config = config
        self.ema_width = config.ema_width
        self.networks: dict[str, nn.Module] = {"teacher": network.train()}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"teacher": adam(network, config.adam)}
        run = runner(network, compute, trained=True)
        self.denoiser = Denoiser(run, sigma_data, network.config.classes, network.config.conditions)

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        sigma = lognormal_levels(self.config.noise, len(images), rng)
        labels = without_some(labels, self.config.label_dropout, rng)
        denoiser = self.denoiser.given(**of_images(self.denoiser.conditions, images))
        loss = denoising_loss(denoiser, images, labels, sigma, rng.normal_like(images)).mean()
        norm = descend(self.optimizers["teacher"], loss, self.config.adam, progress)
        return {"loss": loss.detach(), "gradient": norm}


def denoising_loss(denoiser: Denoiser, images: Tensor, labels: Tensor | None, sigma: Tensor, noise: Tensor) -> Tensor:
    """EDM's weighted squared error: per image, mean over pixels. [B], fp32.

    images [B, C, H, W] in [-1, 1]; sigma [B]; noise unit normals shaped like images. The weight
    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 makes every level start at a loss of one.
    """
    denoised = denoiser(images + sigma[:, None, None, None] * noise, sigma, labels)
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return weight * (denoised - images).square().mean(dim=(1, 2, 3))
