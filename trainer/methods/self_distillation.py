"""Progressive distillation of a student by itself: one call imitates that call and a few more.

Salimans & Ho 2022 train one step of a deterministic sampler to do the work of two. A DPDM re-noises between its calls,
so that what further calls lead to is random, and under a squared error the student learns its mean. At small levels
little of it is random: further calls there only mend fine detail, and the mean of what they lead to is nearly as close
to the data as one of them (docs/log.md, self-distillation). No score network is asked, so nothing pulls back towards
the teacher's own errors.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from fewstep.checkpoint import NetworkModule
from fewstep.schedule import check_levels
from trainer.methods.base import denoiser_of, imitation_loss, own_trajectory
from trainer.methods.divergence import l1_error
from trainer.run.compute import Compute
from trainer.run.distributed import replicated
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import ProgressiveConfig, further_levels


class Progressive:
    """trainer.run.loop.Method: a copy of `start` that learns from `start`, which stands still.

    The levels that are to stay as they are learn from `kept`, if that is given: a student of the same lists, and
    usually the one that `start` was made from.
    """

    served = "student"

    def __init__(
        self, start: NetworkModule, sigma_data: float, config: ProgressiveConfig, compute: Compute,
        kept: NetworkModule | None = None,
    ) -> None:  # fmt: skip
        """Raises ValueError when the further levels are not positive and descending."""
        check_levels(config.further)
        self.config = config
        self.ema_width = config.ema_width
        frozen = start.eval().requires_grad_(False)
        student = copy.deepcopy(frozen).requires_grad_(True).eval()  # eval: no dropout
        self.network = student
        self.networks: dict[str, nn.Module] = {"student": student}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"student": adam(student, config.adam, compute.device)}
        denoiser = partial(denoiser_of, sigma_data=sigma_data, classes=start.config.classes, compute=compute)
        self.student, self.start = denoiser(replicated(student)), denoiser(frozen)
        self.kept = denoiser(kept.eval().requires_grad_(False)) if kept is not None else self.start
        self.further = further_levels(config.lists, config.further, config.further_for)

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        path = self.draw(rng)
        level, clean = path[-1], images
        x = level * rng.normal_like(images)
        if len(path) > 1:  # sampling starts from nothing but noise, and goes on from something like an image
            if self.config.simulate and rng.shared() < self.config.simulate:
                clean = own_trajectory(self.student, path[:-1], images, labels, rng)
            x = clean + x
        target, unit = self.target(x, level, clean, labels, rng)
        generated = self.student(x, images.new_full((len(images),), level), labels)
        shown = generated
        if self.further[level] and self.config.saturate:
            shown, target = generated.clamp(-1, 1), saturated(target, self.config.saturate)
        loss, error = imitation_loss(generated, target, unit, shown)
        norm = descend(self.optimizers["student"], loss, self.config.adam, progress)
        return {"mended" if self.further[level] else "kept": error, "gradient": norm}

    def draw(self, rng: Draws) -> tuple[float, ...]:
        """A list up to the level of a batch, the same in every process.

        The lists have equal chances, and within one the top has its share and the levels below share the rest.
        """
        lists = self.config.lists
        levels = lists[int(rng.shared() * len(lists))]
        u = rng.shared()
        if u < self.config.top or len(levels) == 1:
            return levels[:1]
        below = (u - self.config.top) / (1 - self.config.top)
        return levels[: 2 + int(below * (len(levels) - 1))]

    @torch.no_grad()
    def target(
        self, x: Tensor, level: float, clean: Tensor, labels: Tensor | None, rng: Draws
    ) -> tuple[Tensor, Tensor]:
        """What the output for x [B, C, H, W] at this level should be, and the unit [B, 1, 1, 1] of its error.

        The unit is how far the further calls move the image. Where there are none it is how far what is to be kept is
        from the images [B, C, H, W] that x was before the noise, and `keep` weighs it.
        """
        call = lambda denoiser, x, level: denoiser(x, x.new_full((len(x),), level), labels)  # noqa: E731
        if not self.further[level]:
            target = call(self.kept, x, level)
            return target, l1_error(target, clean) / self.config.keep
        first = target = call(self.start, x, level)
        for lower in self.further[level]:
            target = call(self.start, target + lower * rng.normal_like(x), lower)
        return target, l1_error(target, first)


def saturated(images: Tensor, margin: float) -> Tensor:
    """Images in which what is within `margin` of an end of [-1, 1], or beyond it, is that end."""
    images = torch.where(images < margin - 1, -1.0, images)
    return torch.where(images > 1 - margin, 1.0, images)
