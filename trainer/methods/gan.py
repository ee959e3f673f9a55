"""Adversarial continuation: a student is trained on against critics, at every step of its level lists.

A divergence moves a student towards its teacher, whose errors it copies; a critic compares the student with data. The
critics compare what the next call gets as its input: the outputs of every step, noised to about the next level of the
list, and real images noised to the same level. The loss is the relativistic one (Jolicoeur-Martineau 2019). Critics do
not see detail below the noise added for them, so a share of the updates imitates the student before training: these
updates self-distil its first call or anchor its calls.
"""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.checkpoint import NetworkModule
from trainer.critics.classifier import NoisyClassifier
from trainer.critics.on_classifiers import Critics
from trainer.methods.base import denoiser_of, imitation_loss
from trainer.methods.divergence import l1_error
from trainer.run.compute import Compute
from trainer.run.distributed import replicate
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import AdversarialConfig


class Adversarial:
    """trainer.run.loop.Method: a copy of `start` that is trained against critics. `start` is frozen."""

    served = "student"

    def __init__(
        self, start: NetworkModule, classifiers: Sequence[NoisyClassifier], sigma_data: float,
        config: AdversarialConfig, compute: Compute,
    ) -> None:  # fmt: skip
        self.config, self.divided = config, compute.shard
        self.ema_width = config.ema_width
        frozen = start.eval().requires_grad_(False)
        student = copy.deepcopy(frozen).requires_grad_(True).eval()  # eval: no dropout
        self.critics = Critics(classifiers, compute).to(compute.device)
        self.network = student
        self.networks: dict[str, nn.Module] = {"student": student, "critics": self.critics}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "student": adam(student, config.adam),
            "critics": adam(self.critics, config.critic_adam),
        }
        denoiser = partial(denoiser_of, sigma_data=sigma_data, classes=start.config.classes, compute=compute)
        self.student, self.start = denoiser(student, trained=True), denoiser(frozen)
        self._replicated_critics = replicate(self.critics, divided=compute.shard)
        lists, top = config.lists, config.lists[0][0]
        longer = tuple(levels for levels in lists if len(levels) > 1)
        self.trained_lists = {"all": lists, "first": lists[:1], "rest": longer}[config.trained_steps]
        self.lowest = max(classifier.config.sigma_min for classifier in classifiers)
        self.highest = min(classifier.config.sigma_max for classifier in classifiers)
        only = top if len(lists[0]) == 1 else None  # self-distilled only where an image has no other call
        self.imitated_top = {"all": only, "first": None, "rest": top}[config.trained_steps]
        anchored = lists if config.trained_steps == "first" else lists[:-1]
        self.anchored_levels = tuple(level for levels in anchored for level in levels[1:])
        longest = max(map(len, self.trained_lists))
        rows = [[*levels, *[0.0] * (longest + 1 - len(levels))] for levels in self.trained_lists]
        self._sigmas = torch.tensor(rows, device=compute.device)  # [lists, longest + 1]

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        config = self.config
        student_learns = progress >= config.first
        imitates = self.imitated_top or self.anchored_levels
        if student_learns and imitates and rng.shared_choice(lambda u: u < config.imitation_share):
            if self.imitated_top and (not self.anchored_levels or rng.shared_choice(lambda u: u < 0.5)):
                imitate_top = self.anchor_top if config.trained_steps == "rest" else self.self_distill
                return imitate_top(self.imitated_top, images, labels, progress, rng)
            return self.anchor_lower(images, labels, progress, rng)
        x, sigma, below = self.draw_inputs(images, labels, rng)
        with torch.set_grad_enabled(student_learns):
            generated = self.student(x, sigma, labels)
        tau = self.draw_critic_levels(below, rng)
        outputs = generated.detach().requires_grad_(student_learns)
        final = (below == 0)[:, None, None, None]
        viewed = torch.where(final, outputs.clamp(-1, 1), outputs) if config.clip else outputs
        real, fake = (image + tau[:, None, None, None] * rng.normal_like(image) for image in (images, viewed))
        with torch.no_grad():
            on_real = self.critics.see(real, tau)
        on_fake = self.critics.see(fake, tau)
        scalars: dict[str, Tensor] = {}
        if student_learns:
            margin = self.critics(on_real, tau, labels) - self.critics(on_fake, tau, labels)
            (pull,) = torch.autograd.grad(functional.softplus(margin).mean(), outputs)  # towards higher logits
            norm = descend(self.optimizers["student"], (pull * generated).sum(), config.adam, progress)
            scalars = {"margin": margin.detach().mean(), "gradient": norm}
        return scalars | self.fit(on_real, [found.detach() for found in on_fake], tau, labels, progress)

    def fit(
        self, on_real: list[Tensor], on_fake: list[Tensor], tau: Tensor, labels: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """One step of the heads on the feature maps of real images and of outputs, noised to tau [B]."""
        margin = self._replicated_critics(on_real, tau, labels) - self._replicated_critics(on_fake, tau, labels)
        loss = functional.softplus(-margin).mean()
        descend(self.optimizers["critics"], loss, self.config.critic_adam, progress)
        return {"critic_loss": loss.detach(), "critic_right": (margin > 0).float().mean()}

    def self_distill(
        self, top: float, images: Tensor, labels: Tensor, progress: float, rng: Draws
    ) -> dict[str, Tensor]:
        """The only call learns what `start` makes of its output with a call at `self_distill_level`.

        Only the shape of `images` is used.
        """
        x, level = top * rng.normal_like(images), self.config.self_distill_level
        generated = self.student(x, self._all(top, images), labels)
        with torch.no_grad():
            target = self.start(generated + level * rng.normal_like(images), self._all(level, images), labels)
        return self._imitate(generated, target, self.config.self_distill_unit, "self_distillation_error", progress)

    def anchor_top(self, top: float, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """The first call imitates that of `start`. Only the shape of `images` is used."""
        return self._anchor(top * rng.normal_like(images), top, None, labels, "anchor_top_error", progress)

    def anchor_lower(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """A call at a lower level imitates that of `start`, on images [B, C, H, W] noised to the level."""
        levels = self.anchored_levels
        level = rng.shared_choice(lambda u: levels[int(u * len(levels))])
        return self._anchor(images + level * rng.normal_like(images), level, images, labels, "anchor_error", progress)

    def _anchor(
        self, x: Tensor, level: float, clean: Tensor | None, labels: Tensor, name: str, progress: float
    ) -> dict[str, Tensor]:
        """Regression on the outputs of `start` for x. The unit is their error to the clean images that x was made
        of, or `self_distill_unit` where x is pure noise.
        """
        sigma = self._all(level, x)
        with torch.no_grad():
            target = self.start(x, sigma, labels)
        unit = self.config.self_distill_unit if clean is None else l1_error(target, clean)
        return self._imitate(self.student(x, sigma, labels), target, unit, name, progress)

    def _imitate(
        self, generated: Tensor, target: Tensor, unit: Tensor | float, name: str, progress: float
    ) -> dict[str, Tensor]:
        loss, error = imitation_loss(generated, target, unit)
        descend(self.optimizers["student"], self.config.imitation_weight * loss, self.config.adam, progress)
        return {name: error}

    def _all(self, level: float, images: Tensor) -> Tensor:
        return images.new_full((len(images),), level)

    def draw_inputs(self, images: Tensor, labels: Tensor, rng: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs [B, C, H, W] of every step, their levels [B], and the next levels [B], 0 after the last.

        In the batch of all processes the rows of the first step come first (there are none with trained_steps "rest"),
        then those of the second, and so on. The rows of a step are divided evenly among the lists that have it. Below
        the first step the inputs are the student's own trajectory in a share of the rows, and real images noised to
        the level in the others.
        """
        steps, rows = self._sigmas.shape[1] - 1, len(images)
        if self.config.trained_steps == "rest":
            counts = (0, *step_rows(rng.ranks * rows, self.config.fall, steps - 1))
        else:
            counts = step_rows(rng.ranks * rows, self.config.fall, steps)
        levels = torch.cat([self._lists(step, count) for step, count in enumerate(counts)])
        levels = levels[rng.rank * rows : (rng.rank + 1) * rows]
        x = own = levels[:, :1, None, None] * rng.normal_like(images)
        sigma, below = levels[:, 0], levels[:, 1]
        for step in range(1, steps):
            fresh, u = rng.normal_like(images), rng.uniform(rows)  # drawn in every process, so that all stay in step
            done = min(max(sum(counts[:step]) - rng.rank * rows, 0), rows)
            if done == rows and not self.divided:
                continue
            # All processes have to call a divided network together: one without rows of this step calls it with its
            # last row, and drops the output.
            rest = slice(min(done, rows - 1), None)
            with torch.no_grad():
                recovered = self.student(own[rest], levels[rest, step - 1], labels[rest])
            if done == rows:
                continue
            noise = levels[rest, step, None, None, None] * fresh[rest]
            own = torch.cat([own[:done], recovered + noise])
            follow = (u[rest] < self.config.simulate)[:, None, None, None]
            x = torch.cat([x[:done], torch.where(follow, own[rest], images[rest] + noise)])
            sigma = torch.cat([sigma[:done], levels[rest, step]])
            below = torch.cat([below[:done], levels[rest, step + 1]])
        return x, sigma, below

    def draw_critic_levels(self, below: Tensor, rng: Draws) -> Tensor:
        """The levels [B] to which outputs are noised for critics: mostly near the next call's, low after the last."""
        lowest, u = self.lowest, rng.uniform(len(below))
        near = below.clamp(lowest, self.highest)
        last = (lowest * self.config.spread**u).clamp(max=self.highest)
        return torch.where(below > lowest, near * (lowest / near) ** (u**3), last)

    def _lists(self, step: int, count: int) -> Tensor:
        """The lists [count, longest + 1] that have this step, in turn."""
        able = self._sigmas[sum(len(levels) <= step for levels in self.trained_lists) :]
        return able[torch.arange(count, device=able.device) % len(able)]


def step_rows(batch: int, fall: float, steps: int) -> tuple[int, ...]:
    """How many rows of a batch belong to each of `steps` steps: `fall` times those of the step before."""
    shares = [fall**step for step in range(steps)]
    below = [int(batch * share / sum(shares)) for share in shares[1:]]
    return (batch - sum(below), *below)
