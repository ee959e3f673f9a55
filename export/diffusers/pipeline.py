"""The student's sampler as a pipeline of diffusers. Copied into the folder that `export.diffusers.folder` writes.

from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)
images = pipe(class_labels=[9], seeds=[7], num_inference_steps=4).images
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image

from fewstep.noise import noise_for


class FewstepPipeline(DiffusionPipeline):
    """Images of a seed, a class and a number of steps: those that fewstep's server makes."""

    def __init__(
        self,
        network: Any,
        levels: dict[str, list[float]] | None = None,  # diffusers takes what has no default for a module
        sigma_data: float = 0.5,
        class_names: list[str] | None = None,
    ) -> None:
        """levels: the noise levels, high to low, for every number of steps. class_names: of the classes, if any."""
        super().__init__()
        self.register_modules(network=network)
        self.register_to_config(levels=dict(levels or {}), sigma_data=sigma_data, class_names=class_names or [])

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | None = None,
        num_inference_steps: int = 4,
        seeds: int | Sequence[int] | None = None,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images of `output_type` "pil", "np" (float [B, H, W, C] in [0, 1]) or "pt" (float [B, C, H, W] in [0, 1]).

        class_labels: one for each image, or one for all; None: drawn. seeds: one for each image; None: batch_size
        seeds, drawn from the generator if there is one. Raises ValueError.
        """
        config: Any = self.config
        network: Any = self.network
        seeds = _list(seeds) if seeds is not None else _draw(2**62, batch_size, generator)
        labels = _list(class_labels) if class_labels is not None else None
        classes, shape = network.config.classes, (network.config.channels, *2 * (network.config.resolution,))
        onehot = _onehot(labels, classes, len(seeds), generator)
        levels = config.levels.get(str(num_inference_steps))
        if levels is None:
            raise ValueError(f"num_inference_steps {num_inference_steps}: this student has {', '.join(config.levels)}")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type {output_type!r}: choose pil, np or pt")
        noise = noise_for(seeds, shape)
        device, dtype, data = network.device, network.dtype, config.sigma_data
        image = torch.zeros(len(seeds), *shape, device=device)
        for step, sigma in enumerate(levels):  # DPDM, Algorithm 2, with the scalings of Karras et al. 2022, Table 1
            noisy = image + sigma * torch.from_numpy(noise(step)).to(device)
            norm = (sigma**2 + data**2) ** 0.5
            c_noise = torch.full((len(seeds),), float(np.log(sigma) / 4), device=device)
            output = network((noisy / norm).to(dtype), c_noise, onehot.to(device)).float()
            image = (data / norm) ** 2 * noisy + sigma * data / norm * output
        images = _as(image, output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)


def _list(values: int | Sequence[int]) -> list[int]:
    return [values] if isinstance(values, int) else [int(value) for value in values]


def _draw(below: int, count: int, generator: torch.Generator | None) -> list[int]:
    device = generator.device if generator else "cpu"
    return torch.randint(below, (count,), generator=generator, device=device).tolist()


def _onehot(labels: list[int] | None, classes: int, count: int, generator: torch.Generator | None) -> torch.Tensor:
    if not classes:
        if labels is not None:
            raise ValueError("class_labels: this student has no classes")
        return torch.zeros(count, 0)
    labels = _draw(classes, count, generator) if labels is None else labels
    labels = labels * count if len(labels) == 1 else labels
    if len(labels) != count or not all(0 <= label < classes for label in labels):
        raise ValueError(f"class_labels {labels}: give {count} numbers from 0 to {classes - 1}, or one for all images")
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).float()


def _as(image: torch.Tensor, output_type: str) -> Any:
    """[B, C, H, W] nominally in [-1, 1] -> what is asked for; pixels are rounded as EDM does."""
    if output_type == "pt":
        return (image / 2 + 0.5).clamp(0, 1)
    if output_type == "np":
        return (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    pixels = (image * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one.squeeze(2) if one.shape[2] == 1 else one) for one in pixels]
