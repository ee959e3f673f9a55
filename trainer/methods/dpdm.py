"""The student: DPDM distillation of a teacher into a denoiser whose outputs are samples, not means.

One weight-shared network serves every level. It is fed real images noised to one of its levels (pure noise at the
top level). Its output is noised again and denoised by two score networks: the frozen teacher, and an auxiliary
diffusion model fitted online to the student's outputs. Their difference is the gradient of the smoothed KL divergence
between the student's outputs and the data (DPDM, Eq. 3.4). Every documented variant is a field of StudentConfig.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fewstep.checkpoint import NetworkModule
from fewstep.conditions import GUIDANCE, Conditions, guidance_weight
from fewstep.precond import Denoiser, Values, guided, with_inputs
from trainer.levels.conditioning import LEVEL_FEATURES, level_features, widen
from trainer.levels.renoise import LevelLists, renoise_levels
from trainer.methods.base import Fed, add_noise, denoiser_of, simulate_input
from trainer.methods.coarse import coarse_part
from trainer.methods.conditions import drawn
from trainer.methods.consistency import pseudo_huber
from trainer.methods.divergence import ScoreNetwork, kl_gradient, l1_error, sid_gradient
from trainer.methods.edm import denoising_loss
from trainer.methods.endpoints import Endpoints
from trainer.methods.ncvsd import Observation, combine
from trainer.run.compute import Compute
from trainer.run.distributed import ranks
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import StudentConfig

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Parts:
    """The three denoisers of a distillation, and what is trained of them."""

    teacher: Denoise  # x [B, C, H, W], sigma [B], labels -> clean images; frozen
    student: Denoiser
    auxiliary: Denoiser
    trained: dict[str, nn.Module]  # "student" and "auxiliary": what holds their weights
    fitted: Denoiser | None = None  # the auxiliary as it is called where it is trained, if that is another way


class Student:
    """trainer.run.loop.Method for a DPDM. Student and auxiliary start as copies of the teacher, or of `start`."""

    served = "student"

    def __init__(
        self,
        teacher: NetworkModule,
        sigma_data: float,
        config: StudentConfig,
        compute: Compute,
        start: NetworkModule | None = None,  # a student to continue from
        endpoints: Endpoints | None = None,  # needed when config.warm > 0
    ) -> None:
        ncvsd = config.objective == "ncvsd"
        frozen = teacher.eval().requires_grad_(False)
        extra = teacher.config.channels if ncvsd else 0
        begun = copy.deepcopy(start if start is not None else teacher)
        told = tuple(each for each in asked_conditions(config) if each not in begun.config.conditions)
        student = begun if begun.config.extra == extra and not told else widen(
            begun, channels=extra - begun.config.extra, conditions=told
        )  # fmt: skip
        features = LEVEL_FEATURES if _sees_level(config) else 0
        auxiliary = widen(teacher, channels=extra, features=features, conditions=asked_conditions(config))
        student, auxiliary = (net.requires_grad_(True).eval() for net in (student, auxiliary))  # eval: no dropout
        self.network = student
        denoiser = partial(denoiser_of, sigma_data=sigma_data, classes=teacher.config.classes, compute=compute)
        # Gradients that pass through the auxiliary without training it must not reach DistributedDataParallel.
        fitted = denoiser(auxiliary, trained=True) if ranks() > 1 else None
        networks: dict[str, nn.Module] = {"student": student, "auxiliary": auxiliary}
        parts = Parts(denoiser(frozen), denoiser(student, trained=True), denoiser(auxiliary), networks, fitted)
        self._take(parts, config, compute.device, endpoints)

    @classmethod
    def of_parts(cls, parts: Parts, config: StudentConfig, device: str) -> "Student":
        """A student whose networks are made elsewhere, for instance of adapters beside one frozen network."""
        made = cls.__new__(cls)
        made._take(parts, config, device, None)
        return made

    def _take(self, parts: Parts, config: StudentConfig, device: str, endpoints: Endpoints | None) -> None:
        self.config, self.endpoints = config, endpoints
        self.ema_width = config.ema_width
        self.auxiliary_sees_level = _sees_level(config)
        self.networks = parts.trained
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "student": adam(parts.trained["student"], config.adam),
            "auxiliary": adam(parts.trained["auxiliary"], config.auxiliary_adam),
        }
        self.lists = LevelLists.of(list(config.level_lists.values()), config.floor, device)
        self.student, self.teacher, self.auxiliary = parts.student, parts.teacher, parts.auxiliary
        self.fitted = parts.fitted or parts.auxiliary

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        values = drawn(self.student.conditions, images, rng)
        return (self.given(values) if values else self)._update(images, labels, progress, rng)

    def given(self, values: Values) -> "Student":
        """The method with conditions bound to its denoisers for one batch; networks and optimisers are shared. A
        teacher takes no guidance weight: it is guided by it."""
        assert isinstance(self.teacher, Denoiser), "a teacher of another kind takes no conditions"
        bound = copy.copy(self)
        taught = self.teacher.given(**{name: value for name, value in values.items() if name != GUIDANCE})
        bound.teacher = guided(taught, values[GUIDANCE]) if GUIDANCE in values else taught
        bound.student, bound.auxiliary, bound.fitted = (
            each.given(**values) for each in (self.student, self.auxiliary, self.fitted)
        )
        return bound

    def _update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        if progress < self.config.warm:
            return self.warm_up(len(images), progress, rng)
        fed = self.feed(images, labels, progress, rng)
        generated = self.generate(fed.x, fed.drawn.sigma, labels, rng)
        recovered = generated.detach()

        scalars: dict[str, Tensor] = {}
        if progress >= self.config.auxiliary_first:
            gradient = self.divergence_gradient(recovered, labels, fed, rng)
            scalars["gap"] = gradient.abs().mean()
            if self.config.coarse:
                gradient = gradient + self.coarse_gradient(recovered, images, labels, fed)
            loss = (gradient * generated).sum() / len(images)
            scalars["gradient"] = descend(self.optimizers["student"], loss, self.config.adam, progress)
        return scalars | self.fit_auxiliary(recovered, labels, fed, progress, rng)

    def feed(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> Fed:
        config = self.config
        simulates = config.simulate and progress >= config.simulate_from
        if simulates and rng.shared_choice(lambda u: u < config.simulate):
            return simulate_input(partial(self.generate, rng=rng), self.lists, images, labels, rng)
        return add_noise(images, self.lists.draw(len(images), config.top, rng), rng)

    def generate(self, x: Tensor, sigma: Tensor, labels: Tensor, rng: Draws) -> Tensor:
        """The student's output [B, C, H, W]. An NCVSD student also takes a latent, drawn anew for every call."""
        student = self.student
        if self.config.objective == "ncvsd":
            student = replace(student, network=with_inputs(student.network, image=rng.normal_like(x)))
        return student(x, sigma, labels)

    def divergence_gradient(self, recovered: Tensor, labels: Tensor | None, fed: Fed, rng: Draws) -> Tensor:
        """The gradient [B, C, H, W] to descend at each output [B, C, H, W], noised to a level drawn for it."""
        config = self.config
        sigma = renoise_levels(config.renoise, fed.drawn, config.floor, rng, config.lognormal)
        noise = sigma[:, None, None, None] * rng.normal_like(recovered)
        teacher = self._teacher_at(sigma, labels, fed)
        auxiliary = partial(self._condition_auxiliary(self.auxiliary, fed), sigma=sigma, labels=labels)
        if config.loss == "sid":
            return sid_gradient(recovered, noise, teacher, auxiliary, config.weight, config.alpha)
        return kl_gradient(recovered, recovered + noise, teacher, auxiliary, config.weight)

    @torch.no_grad()
    def coarse_gradient(self, recovered: Tensor, images: Tensor, labels: Tensor | None, fed: Fed) -> Tensor:
        """The gradient [B, C, H, W] to descend towards the coarse part that the input shows (trainer.methods.coarse),
        in units of the teacher's error, as the divergence has them."""
        sigma = fed.drawn.sigma
        taught = self.teacher(fed.x, sigma, labels)
        return coarse_part(recovered - taught, sigma, self.config.coarse) / l1_error(taught, images)

    def fit_auxiliary(
        self, recovered: Tensor, labels: Tensor, fed: Fed, progress: float, rng: Draws
    ) -> dict[str, Tensor]:
        """Denoising score matching on the student's outputs, at the levels to which they are noised."""
        loss = recovered.new_zeros(())
        denoiser = self._condition_auxiliary(self.fitted, fed)
        for _ in range(self.config.auxiliary_updates):
            sigma = renoise_levels(self.config.renoise, fed.drawn, self.config.floor, rng, self.config.lognormal)
            loss = denoising_loss(denoiser, recovered, labels, sigma, rng.normal_like(recovered)).mean()
            descend(self.optimizers["auxiliary"], loss, self.config.auxiliary_adam, progress)
        return {"auxiliary_loss": loss.detach()}

    def warm_up(self, count: int, progress: float, rng: Draws) -> dict[str, Tensor]:
        """Pseudo-Huber regression of the top level on teacher endpoints."""
        assert self.endpoints is not None, "a warm start needs endpoints"
        noise, labels, images = self.endpoints.draw(count, rng)
        x = self.config.sigma_max * noise
        sigma = torch.full((count,), self.config.sigma_max, device=x.device)
        generated = self.generate(x, sigma, labels, rng)
        loss = pseudo_huber(generated, images).mean()
        norm = descend(self.optimizers["student"], loss, self.config.adam, progress)
        fed = add_noise(images, self.lists.draw(count, 1.0, rng), rng)
        fitted = self.fit_auxiliary(generated.detach(), labels, replace(fed, x=x), progress, rng)
        return {"warm_loss": loss.detach(), "gradient": norm, **fitted}

    def _teacher_at(self, sigma: Tensor, labels: Tensor | None, fed: Fed) -> ScoreNetwork:
        if self.config.objective == "marginal":
            return lambda noisy: self.teacher(noisy, sigma, labels)

        def given_both_observations(noisy: Tensor) -> Tensor:
            both = combine(Observation(noisy, sigma), Observation(fed.x, fed.drawn.sigma))
            return self.teacher(both.x, both.sigma, labels)

        return given_both_observations

    def _condition_auxiliary(self, auxiliary: Denoiser, fed: Fed) -> Denoiser:
        """The auxiliary with its further inputs bound: the level of the student's input, for NCVSD also the input."""
        if not self.auxiliary_sees_level:
            return auxiliary
        image = None
        if self.config.objective == "ncvsd":
            scale = (fed.drawn.sigma**2 + auxiliary.sigma_data**2).rsqrt()
            image = scale[:, None, None, None] * fed.x
        features = level_features(fed.drawn.sigma)
        return replace(auxiliary, network=with_inputs(auxiliary.network, image, features))


def asked_conditions(config: StudentConfig) -> Conditions:
    """What a student takes beside what its teacher takes."""
    return (guidance_weight(config.guidance_max),) if config.guidance_max > 1 else ()


def _sees_level(config: StudentConfig) -> bool:
    return config.auxiliary_sees_level or config.objective == "ncvsd"
