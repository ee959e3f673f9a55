"""The student: DPDM distillation of a teacher into a denoiser whose outputs are samples, not means.

One weight-shared network serves every level. It is fed real images noised to one of its levels (pure noise at the
top level); its output is noised again and judged there by the frozen teacher and by an auxiliary diffusion model
fitted online to the student's outputs. Their difference is the gradient of the smoothed KL divergence between what
the student recovers and the data (DPDM, Eq. 3.4). Every documented variant of this is a field of StudentConfig.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.checkpoint import NetworkModule
from fewstep.guidance import guided
from fewstep.precond import Denoiser, with_inputs
from fewstep.schedule import MAX_STEPS
from trainer.compute import Compute, runner
from trainer.conditioning import LEVEL_FEATURES, level_features, widened
from trainer.consistency import pseudo_huber
from trainer.discriminator import Adversary, AdversaryConfig
from trainer.divergence import Judge, Weight, kl_gradient, l1_error, sid_gradient
from trainer.draws import Draws
from trainer.edm import denoising_loss
from trainer.endpoints import Endpoints
from trainer.feeding import Fed, Levels, noised, simulated
from trainer.optimizer import AdamConfig, adam, descend
from trainer.posterior import Observation, combined
from trainer.renoise import ContinuousLevels, LevelLists, Rule, renoise_levels, served_lists
from trainer.world import replicated


@dataclass(frozen=True)
class StudentConfig:
    """The switches of DPDM. docs/adr/0003, 0009 and 0012 say how the defaults were chosen."""

    renoise: Rule = "hybrid"
    levels: Literal["lists", "continuous"] = "lists"  # fed at the served levels, or at any
    steps: tuple[int, ...] = tuple(range(1, MAX_STEPS + 1))  # step counts whose levels are trained and served
    sigma_min: float = 0.01  # of the Karras levels behind each list
    sigma_max: float = 2.5  # the top level, where pure noise goes in (Diff-Instruct); 80 in the paper
    lists: tuple[tuple[float, ...], ...] = ()  # the level list of each of `steps`, where they are not Karras'
    floor: float = 0.05  # lowest level at which outputs are judged; below, the judges' own error dominates
    top: float = 0.3  # share of each longer list's draws spent on its top level
    # What pulls outputs to the data beside the adversary; none: nothing, the adversary alone (GDD, Zheng & Yang 2024).
    loss: Literal["kl", "sid", "none"] = "kl"
    alpha: float = 1.0  # of the SiD loss
    weight: Weight = "l1"
    guidance: float = 1.0  # autoguidance of the teacher that judges, by a worse one; 1: none (docs/adr/0017)
    objective: Literal["marginal", "posterior"] = "marginal"  # what outputs are matched to: p(x0), or p(x0 | x_t)
    auxiliary_sees_level: bool = True  # tell the auxiliary which level the student was fed
    auxiliary_updates: int = 1  # per student update
    auxiliary_first: float = 0.0  # fraction of the run in which only the auxiliary learns, to catch up with `start`
    simulate: float = 0.0  # share of updates fed from the student's own trajectory
    simulate_from: float = 0.5  # and after which fraction of the run: early trajectories are not worth learning from
    # Share of updates in which the levels below the top imitate `start`; in all others only the top level learns.
    keep: float = 0.0
    warm: float = 0.0  # fraction of the run in which the top level regresses on stored teacher endpoints
    warm_pairs: int = 4096
    adversary: AdversaryConfig = AdversaryConfig()
    adam: AdamConfig = AdamConfig(5e-5, (0.0, 0.999), decay_from=0.4, final=0.05)
    # The auxiliary has to follow a moving student: with equal rates it lags, and the outputs oscillate (ADR 0003).
    auxiliary_adam: AdamConfig = AdamConfig(5e-4, (0.0, 0.999), decay_from=0.4, final=0.05)
    ema_halflife: float = 100_000  # images, and at most the share
    ema_ramp: float = 0.15  # of those seen: student and auxiliary go to and fro for long (docs/adr/0015)

    @property
    def level_lists(self) -> dict[int, tuple[float, ...]]:
        """The level list of every step count: what is trained and, until it is calibrated, what is served."""
        lists = self.lists or served_lists(self.steps, self.sigma_min, self.sigma_max)
        return dict(zip(self.steps, lists, strict=True))


class Student:
    """trainer.loop.Method for a DPDM. Student and auxiliary start as copies of the teacher, or of `start`."""

    served = "student"

    def __init__(
        self,
        teacher: NetworkModule,
        sigma_data: float,
        config: StudentConfig,
        compute: Compute,
        start: NetworkModule | None = None,  # a student to continue from
        endpoints: Endpoints | None = None,  # needed when config.warm > 0
        guide: NetworkModule | None = None,  # needed when config.guidance > 1
    ) -> None:
        self.config, self.endpoints = config, endpoints
        self.ema_halflife, self.ema_ramp = config.ema_halflife, config.ema_ramp
        posterior = config.objective == "posterior"
        self.tells_level = config.auxiliary_sees_level or posterior
        frozen = teacher.eval().requires_grad_(False)
        extra = teacher.config.channels if posterior else 0
        begun = copy.deepcopy(start if start is not None else teacher)
        student = begun if begun.config.extra == extra else widened(begun, channels=extra)
        auxiliary = widened(teacher, channels=extra, features=LEVEL_FEATURES if self.tells_level else 0)
        student, auxiliary = (net.requires_grad_(True).eval() for net in (student, auxiliary))  # eval: no dropout
        self.network = student
        self.networks: dict[str, nn.Module] = {"student": student}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"student": adam(student, config.adam, compute.device)}
        if config.loss != "none":  # without a divergence nobody asks the auxiliary
            self.networks["auxiliary"] = auxiliary
            self.optimizers["auxiliary"] = adam(auxiliary, config.auxiliary_adam, compute.device)
        self.adversary = None
        if config.adversary.weight > 0:
            self.adversary = Adversary(frozen, sigma_data, config.adversary, compute)
            self.networks["heads"], self.optimizers["heads"] = self.adversary.heads, self.adversary.optimizer
        self.lists = LevelLists.of(list(config.level_lists.values()), config.floor, compute.device)
        anywhere = ContinuousLevels(config.sigma_min, config.sigma_max, config.steps, config.floor)
        self.levels: Levels = self.lists if config.levels == "lists" else anywhere
        denoiser = lambda network: Denoiser(runner(network, compute), sigma_data, teacher.config.classes)  # noqa: E731
        self.student, self.teacher = denoiser(replicated(student)), denoiser(frozen)
        if config.guidance > 1:
            assert guide is not None, "guidance needs a guide"
            worse = runner(guide.eval().requires_grad_(False), compute)
            network = guided(self.teacher.network, worse, config.guidance)
            self.teacher = replace(self.teacher, network=network)
        if config.keep:
            assert start is not None, "levels are kept as those of a student to continue from"
            longer = [levels for levels in config.level_lists.values() if len(levels) > 1]
            below = LevelLists.of(longer, config.floor, compute.device)
            self.kept_levels: Levels = below if config.levels == "lists" else anywhere
            self.kept = denoiser(copy.deepcopy(start).eval().requires_grad_(False))
        # Gradients that pass through the auxiliary without training it must not reach DistributedDataParallel.
        self.fitted = self.auxiliary = denoiser(auxiliary)
        if (shared := replicated(auxiliary)) is not auxiliary:
            self.fitted = denoiser(shared)

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        if progress < self.config.warm:
            return self.warm_up(len(images), progress, rng)
        if self.config.keep and progress >= self.config.auxiliary_first and rng.shared() < self.config.keep:
            return self.imitate(images, labels, progress, rng)
        fed = self.feed(images, labels, progress, rng)
        generated = self.generated(fed.x, fed.drawn.sigma, labels, rng)
        recovered = generated.detach()

        scalars: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        if progress >= self.config.auxiliary_first:
            if self.config.loss != "none":
                gradients.append(self.divergence_gradient(recovered, labels, fed, rng))
                scalars["gap"] = gradients[-1].abs().mean()
            if self.adversary and progress >= self.config.adversary.start:
                gradients.append(self.adversary.gradient(recovered, labels, fed.drawn.sigma, rng))
                scalars["adversarial"] = gradients[-1].abs().mean()
        if gradients:
            loss = (sum(gradients) * generated).sum() / len(images)
            scalars["gradient"] = descend(self.optimizers["student"], loss, self.config.adam, progress)
        scalars |= self.fit_auxiliary(recovered, labels, fed, progress, rng)
        if self.adversary:
            scalars |= self.adversary.fit(images, recovered, labels, fed.drawn.sigma, progress, rng)
        return scalars

    def feed(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> Fed:
        config = self.config
        if config.simulate and progress >= config.simulate_from and rng.shared() < config.simulate:
            return simulated(partial(self.generated, rng=rng), self.lists, images, labels, rng)
        return noised(images, self.levels.draw(len(images), 1.0 if config.keep else config.top, rng), rng)

    def generated(self, x: Tensor, sigma: Tensor, labels: Tensor, rng: Draws) -> Tensor:
        """The student's output [B, C, H, W]; a posterior student decides by noise that is fresh in every call."""
        student = self.student
        if self.config.objective == "posterior":
            student = replace(student, network=with_inputs(student.network, image=rng.normal_like(x)))
        return student(x, sigma, labels)

    def divergence_gradient(self, recovered: Tensor, labels: Tensor | None, fed: Fed, rng: Draws) -> Tensor:
        """The gradient [B, C, H, W] to descend at each output [B, C, H, W], judged at a level drawn for it."""
        config = self.config
        sigma = renoise_levels(config.renoise, fed.drawn, config.floor, rng)
        noise = sigma[:, None, None, None] * rng.normal_like(recovered)
        teacher = self._teacher_at(sigma, labels, fed)
        auxiliary = partial(self._told(self.auxiliary, fed), sigma=sigma, labels=labels)
        if config.loss == "sid":
            return sid_gradient(recovered, noise, teacher, auxiliary, config.weight, config.alpha)
        return kl_gradient(recovered, recovered + noise, teacher, auxiliary, config.weight)

    def fit_auxiliary(
        self, recovered: Tensor, labels: Tensor, fed: Fed, progress: float, rng: Draws
    ) -> dict[str, Tensor]:
        """Denoising score matching on the student's outputs, at the levels where they are judged."""
        if self.config.loss == "none":
            return {}
        loss = recovered.new_zeros(())
        denoiser = self._told(self.fitted, fed)
        for _ in range(self.config.auxiliary_updates):
            sigma = renoise_levels(self.config.renoise, fed.drawn, self.config.floor, rng)
            loss = denoising_loss(denoiser, recovered, labels, sigma, rng.normal_like(recovered)).mean()
            descend(self.optimizers["auxiliary"], loss, self.config.auxiliary_adam, progress)
        return {"auxiliary_loss": loss.detach()}

    def imitate(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """Regression on the outputs that `start` has below the top level, in units of its error."""
        fed = noised(images, self.kept_levels.draw(len(images), 0.0, rng), rng)
        generated = self.generated(fed.x, fed.drawn.sigma, labels, rng)
        recovered = generated.detach()
        with torch.no_grad():
            kept = self.kept(fed.x, fed.drawn.sigma, labels)
        drift = (recovered - kept) / l1_error(kept, images)
        loss = (drift * generated).sum() / len(images)
        norm = descend(self.optimizers["student"], loss, self.config.adam, progress)
        return {"drift": drift.abs().mean(), "gradient": norm}

    def warm_up(self, count: int, progress: float, rng: Draws) -> dict[str, Tensor]:
        """Pseudo-Huber regression of the top level on teacher endpoints."""
        assert self.endpoints is not None, "a warm start needs endpoints"
        noise, labels, images = self.endpoints.draw(count, rng)
        x = self.config.sigma_max * noise
        sigma = torch.full((count,), self.config.sigma_max, device=x.device)
        generated = self.generated(x, sigma, labels, rng)
        loss = pseudo_huber(generated, images).mean()
        norm = descend(self.optimizers["student"], loss, self.config.adam, progress)
        fed = noised(images, self.levels.draw(count, 1.0, rng), rng)
        fitted = self.fit_auxiliary(generated.detach(), labels, replace(fed, x=x), progress, rng)
        return {"warm_loss": loss.detach(), "gradient": norm, **fitted}

    def _teacher_at(self, sigma: Tensor, labels: Tensor | None, fed: Fed) -> Judge:
        if self.config.objective == "marginal":
            return partial(self.teacher, sigma=sigma, labels=labels)

        def judge(noisy: Tensor) -> Tensor:
            both = combined(Observation(noisy, sigma), Observation(fed.x, fed.drawn.sigma))
            return self.teacher(both.x, both.sigma, labels)

        return judge

    def _told(self, auxiliary: Denoiser, fed: Fed) -> Denoiser:
        """The auxiliary, told what its configuration lets it know of the student's input."""
        if not self.tells_level:
            return auxiliary
        image = None
        if self.config.objective == "posterior":
            scale = (fed.drawn.sigma**2 + auxiliary.sigma_data**2).rsqrt()
            image = scale[:, None, None, None] * fed.x
        features = level_features(fed.drawn.sigma)
        return replace(auxiliary, network=with_inputs(auxiliary.network, image, features))
