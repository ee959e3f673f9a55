"""The student: DPDM distillation of a teacher into a denoiser whose outputs are samples, not means.

One weight-shared network serves every level. It is fed real images noised to one of its levels (pure noise at the
top level); its output is noised again and judged there by the frozen teacher and by an auxiliary diffusion model
fitted online to the student's outputs. Their difference is the gradient of the smoothed KL divergence between what
the student recovers and the data (DPDM, Eq. 3.4); no gradient passes through either judge.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.network import UNet
from fewstep.precond import Denoiser
from fewstep.schedule import MAX_STEPS
from trainer.compute import Compute, runner
from trainer.edm import denoising_loss
from trainer.optimizer import AdamConfig, adam, descend
from trainer.renoise import Drawn, LevelLists, Rule, renoise_levels, served_lists


@dataclass(frozen=True)
class StudentConfig:
    renoise: Rule = "hybrid"
    steps: tuple[int, ...] = tuple(range(1, MAX_STEPS + 1))  # step counts whose levels are trained and served
    sigma_min: float = 0.01  # of the Karras levels behind each list
    floor: float = 0.05  # lowest level at which outputs are judged; below, the judges' own error dominates
    top: float = 0.3  # share of each longer list's draws spent on its top level
    adam: AdamConfig = AdamConfig(5e-5, (0.0, 0.999), decay_from=0.4, final=0.05)
    # The auxiliary has to follow a moving student: with equal rates it lags, and the outputs oscillate (ADR 0003).
    auxiliary_adam: AdamConfig = AdamConfig(5e-4, (0.0, 0.999), decay_from=0.4, final=0.05)
    auxiliary_updates: int = 1  # per student update
    ema_halflife: float = 20_000  # images


class Student:
    """trainer.loop.Method for a DPDM. Student and auxiliary start as copies of the teacher."""

    served = "student"

    def __init__(self, teacher: UNet, sigma_data: float, config: StudentConfig, compute: Compute) -> None:
        self.config = config
        self.ema_halflife = config.ema_halflife
        student = copy.deepcopy(teacher).requires_grad_(True).eval()  # eval: dropout would blur the judges
        auxiliary = copy.deepcopy(student)
        self.networks: dict[str, nn.Module] = {"student": student, "auxiliary": auxiliary}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "student": adam(student, config.adam, compute.device),
            "auxiliary": adam(auxiliary, config.auxiliary_adam, compute.device),
        }
        self.lists = LevelLists.of(served_lists(config.steps, config.sigma_min), config.floor, compute.device)
        classes = teacher.config.classes
        frozen = teacher.eval().requires_grad_(False)
        self.student, self.auxiliary, self.teacher = (
            Denoiser(runner(network, compute), sigma_data, classes) for network in (student, auxiliary, frozen)
        )

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        drawn = self.lists.draw(len(images), self.config.top, rng)
        noisy = drawn.sigma[:, None, None, None] * _normal_like(images, rng)
        # At the top level sampling starts from pure noise, so that is what training feeds there.
        x = torch.where((drawn.position == 0)[:, None, None, None], noisy, images + noisy)
        generated = self.student(x, drawn.sigma, labels)
        recovered = generated.detach()

        judged_at = renoise_levels(self.config.renoise, drawn, self.config.floor, rng)
        gradient, gap = self.kl_gradient(recovered, labels, judged_at, rng)
        loss = (gradient * generated).sum() / len(images)
        norm = descend(self.optimizers["student"], loss, self.config.adam, progress)

        fitted = self.fit_auxiliary(recovered, labels, drawn, progress, rng)
        return {"gap": gap, "auxiliary_loss": fitted, "gradient": norm}

    @torch.no_grad()
    def kl_gradient(
        self, recovered: Tensor, labels: Tensor | None, sigma: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the smoothed KL at each output [B, C, H, W], and the mean distance between the judges.

        The score difference of Eq. 3.4 is (D_auxiliary - D_teacher) / sigma^2; dividing by the teacher's mean
        absolute error instead of sigma^2 gives every level the same say (Yin et al. 2024, Eq. 8).
        """
        noisy = recovered + sigma[:, None, None, None] * _normal_like(recovered, rng)
        real = self.teacher(noisy, sigma, labels)
        fake = self.auxiliary(noisy, sigma, labels)
        scale = (recovered - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-4)
        return (fake - real) / scale, (fake - real).abs().mean()

    def fit_auxiliary(
        self, recovered: Tensor, labels: Tensor, drawn: Drawn, progress: float, rng: torch.Generator
    ) -> Tensor:
        """Denoising score matching on the student's outputs, at the levels where they are judged."""
        loss = recovered.new_zeros(())
        for _ in range(self.config.auxiliary_updates):
            sigma = renoise_levels(self.config.renoise, drawn, self.config.floor, rng)
            noise = _normal_like(recovered, rng)
            loss = denoising_loss(self.auxiliary, recovered, labels, sigma, noise).mean()
            descend(self.optimizers["auxiliary"], loss, self.config.auxiliary_adam, progress)
        return loss.detach()


def _normal_like(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng, device=x.device)
