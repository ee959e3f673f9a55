"""EDM training (Karras et al. 2022, Table 1 and Section 5): the noise it draws and the loss it takes."""

from torch import Tensor

from fewstep.precond import Denoiser


def denoising_loss(denoiser: Denoiser, images: Tensor, labels: Tensor | None, sigma: Tensor, noise: Tensor) -> Tensor:
    """EDM's weighted squared error: per image, mean over pixels. [B], fp32.

    images [B, C, H, W] in [-1, 1]; sigma [B]; noise unit normals shaped like images. The weight
    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 makes every level start at a loss of one.
    """
    denoised = denoiser(images + sigma[:, None, None, None] * noise, sigma, labels)
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return weight * (denoised - images).square().mean(dim=(1, 2, 3))
