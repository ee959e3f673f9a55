"""A student's last word from real images: it goes on against critics, at every step of its lists.

A divergence pulls a student to what its teacher knows, errors included; a critic compares it with data. It looks
where the sampler does: at the outputs of every step, noised to about the next level of the list, beside real images
noised alike, for that is what the next call is fed. Student and critics play the relativistic game (Jolicoeur-Martineau
2019). What lies below the noise that critics see, they leave to chance: a share of the updates mends it, or holds it.
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
from trainer.run.distributed import replicated
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import AdversarialConfig


class Adversarial:
    """trainer.run.loop.Method: a copy of `start` that plays against critics. `start` stands still."""

    served = "student"

    def __init__(
        self, start: NetworkModule, classifiers: Sequence[NoisyClassifier], sigma_data: float,
        config: AdversarialConfig, compute: Compute,
    ) -> None:  # fmt: skip
        self.config = config
        self.ema_width = config.ema_width
        frozen = start.eval().requires_grad_(False)
        student = copy.deepcopy(frozen).requires_grad_(True).eval()  # eval: no dropout
        self.critics = Critics(classifiers, compute).to(compute.device)
        self.network = student
        self.networks: dict[str, nn.Module] = {"student": student, "critics": self.critics}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "student": adam(student, config.adam, compute.device),
            "critics": adam(self.critics, config.critic_adam, compute.device),
        }
        denoiser = partial(denoiser_of, sigma_data=sigma_data, classes=start.config.classes, compute=compute)
        self.student, self.start = denoiser(replicated(student)), denoiser(frozen)
        self._taught = replicated(self.critics)
        lists, top = config.lists, config.lists[0][0]
        longer = tuple(levels for levels in lists if len(levels) > 1)
        self.playing = {"all": lists, "first": lists[:1], "rest": longer}[config.play]
        self.lowest = max(classifier.config.sigma_min for classifier in classifiers)
        self.highest = min(classifier.config.sigma_max for classifier in classifiers)
        only = top if len(lists[0]) == 1 else None  # mended where it is an image's only call
        self.top = {"all": only, "first": None, "rest": top}[config.play]
        held = lists if config.play == "first" else lists[:-1]
        self.held = tuple(level for levels in held for level in levels[1:])
        longest = max(map(len, self.playing))
        rows = [[*levels, *[0.0] * (longest + 1 - len(levels))] for levels in self.playing]
        self._sigmas = torch.tensor(rows, device=compute.device)  # [lists, longest + 1]

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        config = self.config
        playing = progress >= config.first
        if playing and (self.top or self.held) and rng.shared() < config.keep:
            if self.top and (not self.held or rng.shared() < 0.5):
                first = self.hold_top if config.play == "rest" else self.mend
                return first(self.top, images, labels, progress, rng)
            return self.hold(images, labels, progress, rng)
        x, sigma, below = self.fed(images, labels, rng)
        with torch.set_grad_enabled(playing):
            generated = self.student(x, sigma, labels)
        tau = self.seen_at(below, rng)
        outputs = generated.detach().requires_grad_(playing)
        final = (below == 0)[:, None, None, None]
        viewed = torch.where(final, outputs.clamp(-1, 1), outputs) if config.clip else outputs
        real, fake = (image + tau[:, None, None, None] * rng.normal_like(image) for image in (images, viewed))
        with torch.no_grad():
            on_real = self.critics.see(real, tau)
        on_fake = self.critics.see(fake, tau)
        scalars: dict[str, Tensor] = {}
        if playing:
            margin = self.critics(on_real, tau, labels) - self.critics(on_fake, tau, labels)
            (pull,) = torch.autograd.grad(functional.softplus(margin).mean(), outputs)  # to look the more real
            norm = descend(self.optimizers["student"], (pull * generated).sum(), config.adam, progress)
            scalars = {"margin": margin.detach().mean(), "gradient": norm}
        return scalars | self.fit(on_real, [found.detach() for found in on_fake], tau, labels, progress)

    def fit(
        self, on_real: list[Tensor], on_fake: list[Tensor], tau: Tensor, labels: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """One step of the heads on the maps of real images and of outputs, noised to tau [B]."""
        margin = self._taught(on_real, tau, labels) - self._taught(on_fake, tau, labels)
        loss = functional.softplus(-margin).mean()
        descend(self.optimizers["critics"], loss, self.config.critic_adam, progress)
        return {"critic_loss": loss.detach(), "critic_right": (margin > 0).float().mean()}

    def mend(self, top: float, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """The only call learns to leave nothing for a call at `mend`. images: for their shape alone."""
        x, level = top * rng.normal_like(images), self.config.mend
        generated = self.student(x, self._all(top, images), labels)
        with torch.no_grad():
            target = self.start(generated + level * rng.normal_like(images), self._all(level, images), labels)
        return self._imitate(generated, target, self.config.mended, "mended", progress)

    def hold_top(self, top: float, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """The first call stays as it is. images: for their shape alone."""
        return self._anchor(top * rng.normal_like(images), top, None, labels, "held_top", progress)

    def hold(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        """A lower level stays as it is: of images [B, C, H, W] noised to it the student makes what `start` makes."""
        level = self.held[int(rng.shared() * len(self.held))]
        return self._anchor(images + level * rng.normal_like(images), level, images, labels, "held", progress)

    def _anchor(
        self, x: Tensor, level: float, clean: Tensor | None, labels: Tensor, name: str, progress: float
    ) -> dict[str, Tensor]:
        """In units of the error that `start` makes of the clean images, if x comes from such, else of `mended`."""
        sigma = self._all(level, x)
        with torch.no_grad():
            kept = self.start(x, sigma, labels)
        unit = self.config.mended if clean is None else l1_error(kept, clean)
        return self._imitate(self.student(x, sigma, labels), kept, unit, name, progress)

    def _imitate(
        self, generated: Tensor, target: Tensor, unit: Tensor | float, name: str, progress: float
    ) -> dict[str, Tensor]:
        loss, error = imitation_loss(generated, target, unit)
        descend(self.optimizers["student"], self.config.weight * loss, self.config.adam, progress)
        return {name: error}

    def _all(self, level: float, images: Tensor) -> Tensor:
        return images.new_full((len(images),), level)

    def fed(self, images: Tensor, labels: Tensor, rng: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs [B, C, H, W] of every step, their levels [B], and the next levels [B], 0 after the last.

        Of the batch of all processes the rows of the first step come first, unless only the rest plays, then those of
        the second, and so on; each step's are shared out evenly among the lists that have it. Below the first step
        they are the student's own trajectory or, the rest, real images noised to the level.
        """
        steps, rows = self._sigmas.shape[1] - 1, len(images)
        if self.config.play == "rest":
            counts = (0, *step_rows(rng.ranks * rows, self.config.fall, steps - 1))
        else:
            counts = step_rows(rng.ranks * rows, self.config.fall, steps)
        levels = torch.cat([self._lists(step, count) for step, count in enumerate(counts)])
        levels = levels[rng.rank * rows : (rng.rank + 1) * rows]
        x = own = levels[:, :1, None, None] * rng.normal_like(images)
        sigma, below = levels[:, 0], levels[:, 1]
        for step in range(1, steps):
            fresh, u = rng.normal_like(images), rng.uniform(rows)  # drawn by all processes, whatever rows they have
            done = min(max(sum(counts[:step]) - rng.rank * rows, 0), rows)
            rest = slice(done, None)
            if done == rows:
                continue
            with torch.no_grad():
                recovered = self.student(own[rest], levels[rest, step - 1], labels[rest])
            noise = levels[rest, step, None, None, None] * fresh[rest]
            own = torch.cat([own[:done], recovered + noise])
            follow = (u[rest] < self.config.simulate)[:, None, None, None]
            x = torch.cat([x[:done], torch.where(follow, own[rest], images[rest] + noise)])
            sigma = torch.cat([sigma[:done], levels[rest, step]])
            below = torch.cat([below[:done], levels[rest, step + 1]])
        return x, sigma, below

    def seen_at(self, below: Tensor, rng: Draws) -> Tensor:
        """The levels [B] at which outputs are judged: mostly close to the next call's, or low after the last call."""
        lowest, u = self.lowest, rng.uniform(len(below))
        near = below.clamp(lowest, self.highest)
        last = (lowest * self.config.spread**u).clamp(max=self.highest)
        return torch.where(below > lowest, near * (lowest / near) ** (u**3), last)

    def _lists(self, step: int, count: int) -> Tensor:
        """Lists [count, longest + 1] that have such a step, in turn."""
        able = self._sigmas[sum(len(levels) <= step for levels in self.playing) :]
        return able[torch.arange(count, device=able.device) % len(able)]


def step_rows(batch: int, fall: float, steps: int) -> tuple[int, ...]:
    """How many rows of a batch belong to each of `steps` steps: `fall` times those of the step before."""
    shares = [fall**step for step in range(steps)]
    below = [int(batch * share / sum(shares)) for share in shares[1:]]
    return (batch - sum(below), *below)
