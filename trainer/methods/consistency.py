"""Consistency distillation of a teacher (Song et al. 2023, Algorithm 2), an alternative to DPDM in the same loop.

The student learns to map a noisy image to the end of the teacher's ODE in one call. Two neighbouring points of a
trajectory have the same end, so the output for the noisier one is regressed on the output for the other, by the student
itself or a moving average of it. The levels are EDM's: N Karras levels and then an exact zero. At zero every image is
its own end, so the target of the last interval is the teacher's step to zero. EDM's preconditioning, with which
D(x, 0) = x (Geng et al. 2024, ECT), needs no change, and the result is served like any other student.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from fewstep.checkpoint import NetworkModule
from fewstep.samplers import BoundDenoiser, check_solver
from fewstep.schedule import solver_sigmas
from trainer.methods.base import denoiser_of
from trainer.run.compute import Compute
from trainer.run.draws import Draws
from trainer.run.ema import average_of, blend
from trainer.run.optimizer import adam, descend
from trainer.settings import ConsistencyConfig, Solver


class Consistency:
    """trainer.run.loop.Method for a consistency model. The student starts as a copy of the teacher, or of `start`."""

    served = "student"

    def __init__(
        self,
        teacher: NetworkModule,
        sigma_data: float,
        config: ConsistencyConfig,
        compute: Compute,
        start: NetworkModule | None = None,  # a student to continue from
    ) -> None:
        """Raises ValueError when levels are not positive and descending, or when `start` is not such a student."""
        if start is not None and _images_of(start) != _images_of(teacher):
            raise ValueError("the student to start from makes other images than the teacher; start from the teacher")
        sigmas = solver_sigmas(config.intervals, config.sigma_min, config.sigma_max)
        check_solver(sigmas)
        self.config = config
        self.ema_width = config.ema_width
        self.sigmas = torch.tensor(sigmas, device=compute.device)
        frozen = teacher.eval().requires_grad_(False)
        student = copy.deepcopy(start if start is not None else teacher).requires_grad_(True).eval()  # no dropout
        self.network = student
        self.networks: dict[str, nn.Module] = {"student": student}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"student": adam(student, config.adam)}
        target = student
        if config.target_halflife > 0:
            target = self.networks["target"] = average_of(student)
        denoiser = partial(denoiser_of, sigma_data=sigma_data, classes=teacher.config.classes, compute=compute)
        self.student, self.teacher, self.target = denoiser(student, trained=True), denoiser(frozen), denoiser(target)

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        loss = self.loss(images, labels, rng).mean()
        norm = descend(self.optimizers["student"], loss, self.config.adam, progress)
        if self.config.target_halflife > 0:
            decay = 0.5 ** (rng.ranks * len(images) / self.config.target_halflife)
            blend(self.networks["target"], self.networks["student"], decay)
        return {"loss": loss.detach(), "gradient": norm}

    def loss(self, images: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Consistency distillation loss (Song et al. 2023, Eq. 7) of each image, at a level drawn for it. [B]."""
        index = rng.integers(self.config.intervals, len(images))
        sigma, sigma_next = self.sigmas[index], self.sigmas[index + 1]
        x = images + sigma[:, None, None, None] * rng.normal_like(images)
        ended = self.student(x, sigma, labels)
        target = self.targets(x, sigma, sigma_next, labels)
        distance = (
            pseudo_huber(ended, target) if self.config.metric == "pseudo-huber" else squared_distance(ended, target)
        )
        return distance / (sigma - sigma_next) if self.config.weight == "inverse" else distance

    @torch.no_grad()
    def targets(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, labels: Tensor | None) -> Tensor:
        """Targets for x [B, C, H, W] at sigma [B]: a step of the teacher's ODE to sigma_next [B], then one call."""
        nearer = solver_step(partial(self.teacher, labels=labels), x, sigma, sigma_next, self.config.solver)
        at_zero = sigma_next == 0
        ended = self.target(nearer, torch.where(at_zero, sigma, sigma_next), labels)
        return torch.where(at_zero[:, None, None, None], nearer, ended)


def _images_of(network: NetworkModule) -> tuple[int, ...]:
    """The properties in which a student must agree with its teacher."""
    config = network.config
    return config.resolution, config.channels, config.classes, config.extra


def solver_step(denoiser: BoundDenoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, solver: Solver) -> Tensor:
    """x [B, C, H, W] taken down the probability-flow ODE, each row from its sigma [B] to its sigma_next [B].

    One step as in `fewstep.samplers`, where all rows share a level (Karras et al. 2022, Algorithm 1). At sigma 0 there
    is no slope to correct with: rows that end there keep Euler's step.
    """
    at, width = sigma[:, None, None, None], (sigma_next - sigma)[:, None, None, None]
    slope = (x - denoiser(x, sigma)) / at
    euler = x + width * slope
    if solver == "euler":
        return euler
    correctable = torch.where(sigma_next > 0, sigma_next, sigma)
    slope_next = (euler - denoiser(euler, correctable)) / correctable[:, None, None, None]
    heun = x + width * (slope + slope_next) / 2
    return torch.where((sigma_next > 0)[:, None, None, None], heun, euler)


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """Distance of images [B, C, H, W], [B] (Song & Dhariwal 2024, Eq. 7): Euclidean, but smooth at zero."""
    bend = 0.00054 * a[0].numel() ** 0.5
    return (squared_distance(a, b) + bend**2).sqrt() - bend


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distance of images [B, C, H, W]. [B]."""
    return (a - b).square().sum(dim=(1, 2, 3))
