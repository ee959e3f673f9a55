"""DMD2 (Yin et al. 2024, "Improved Distribution Matching Distillation"): a rival of DPDM, trained by the same loop.

An update takes a fresh batch of the student's outputs, made along its own trajectory, and fits two things to them: the
auxiliary diffusion model, and a critic that tells them from real images. Every fifth update (`auxiliary_updates`) the
student takes a step first: along the difference of the auxiliary's and the teacher's denoised images at a level drawn
from all levels, and towards higher logits of the critic (Sections 4.2 to 4.5). The critic reads the features of the
teacher, which is frozen, and not those of the auxiliary as in the paper (trainer.critics.on_teacher).
"""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from fewstep.checkpoint import NetworkModule
from fewstep.schedule import SIGMA_MAX
from trainer.critics.on_teacher import Adversary
from trainer.levels.renoise import Drawn, LevelLists, renoise_levels
from trainer.methods.base import denoiser_of, simulate_input
from trainer.methods.divergence import kl_gradient
from trainer.methods.edm import denoising_loss
from trainer.run.compute import Compute
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import StudentConfig


def dmd2(base: StudentConfig) -> StudentConfig:
    """The paper's settings with the recipe's optimisers. Its student serves 1, 2 and 4 steps and is trained on their
    lists alike; the longest contains the levels of the others."""
    return replace(
        base, renoise="independent", steps=(1, 2, 4), sigma_min=0.002, sigma_max=SIGMA_MAX, auxiliary_sees_level=False,
        auxiliary_updates=5, simulate=1.0, simulate_from=0.0, adversary=replace(base.adversary, weight=3e-3),
    )  # fmt: skip


class DMD2:
    """trainer.run.loop.Method. Student and auxiliary start as copies of the teacher, or of `start`."""

    served = "student"

    def __init__(
        self, teacher: NetworkModule, sigma_data: float, config: StudentConfig, compute: Compute,
        start: NetworkModule | None = None,
    ) -> None:  # fmt: skip
        """Raises CheckpointError when the teacher has no features that a critic could read."""
        self.config = config
        self.ema_width = config.ema_width
        frozen = teacher.eval().requires_grad_(False)
        student = copy.deepcopy(start if start is not None else teacher).requires_grad_(True).eval()  # eval: no dropout
        auxiliary = copy.deepcopy(teacher).requires_grad_(True).eval()
        self.adversary = Adversary(frozen, sigma_data, config.adversary, compute)
        self.network, self.turns = student, Turns()
        self.networks: dict[str, nn.Module] = {
            "student": student, "auxiliary": auxiliary, "heads": self.adversary.heads, "turns": self.turns,
        }  # fmt: skip
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "student": adam(student, config.adam),
            "auxiliary": adam(auxiliary, config.auxiliary_adam),
            "heads": self.adversary.optimizer,
        }
        self.lists = LevelLists.of(list(config.level_lists.values()), config.floor, compute.device)
        denoiser = partial(denoiser_of, sigma_data=sigma_data, classes=teacher.config.classes, compute=compute)
        self.student, self.teacher = denoiser(student, trained=True), denoiser(frozen)
        self.auxiliary, self.fitted = denoiser(auxiliary), denoiser(auxiliary, trained=True)

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        config, scalars = self.config, {}
        students_turn = rng.decide(lambda: self.turns.next() % config.auxiliary_updates == 0)
        fed = simulate_input(self.student, self.lists, images, labels, rng)
        with torch.set_grad_enabled(students_turn):
            generated = self.student(fed.x, fed.drawn.sigma, labels)
        outputs = generated.detach()
        if students_turn:
            divergence = self.divergence_gradient(outputs, labels, fed.drawn, rng)
            adversarial = self.adversary.gradient(outputs, labels, rng)
            loss = ((divergence + adversarial) * generated).sum() / len(images)
            norm = descend(self.optimizers["student"], loss, config.adam, progress)
            scalars = {"gap": divergence.abs().mean(), "adversarial": adversarial.abs().mean(), "gradient": norm}
        sigma = renoise_levels(config.renoise, fed.drawn, config.floor, rng)
        loss = denoising_loss(self.fitted, outputs, labels, sigma, rng.normal_like(outputs)).mean()
        descend(self.optimizers["auxiliary"], loss, config.auxiliary_adam, progress)
        return scalars | {"auxiliary_loss": loss.detach()} | self.adversary.fit(images, outputs, labels, progress, rng)

    def divergence_gradient(self, outputs: Tensor, labels: Tensor, drawn: Drawn, rng: Draws) -> Tensor:
        """The gradient [B, C, H, W] to descend at each output: (D_auxiliary - D_teacher) over the teacher's error."""
        sigma = renoise_levels(self.config.renoise, drawn, self.config.floor, rng)
        noisy = outputs + sigma[:, None, None, None] * rng.normal_like(outputs)
        real, fake = (partial(network, sigma=sigma, labels=labels) for network in (self.teacher, self.auxiliary))
        return kl_gradient(outputs, noisy, real, fake, self.config.weight)


class Turns(nn.Module):
    """Counts updates, on the host. It is a module, so that the count is saved and resumed with the networks."""

    done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def next(self) -> int:
        """Count one update and return its number: 1, 2, ..."""
        self.done += 1
        return int(self.done.numpy())
