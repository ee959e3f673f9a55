"""Progressive distillation of a student by itself: one call imitates that call and a few more.

Salimans & Ho 2022 train one step of a deterministic sampler to do the work of two. A DPDM re-noises between its calls,
so that the result of further calls is random, and under a squared error the student learns its mean. At small levels
the randomness is small: further calls there only correct fine detail, and the mean of their results is nearly as close
to the data as one result (docs/log.md, self-distillation). No score network takes part, so the teacher's errors are not
copied again. With `coarse` the teacher says what brightness and colours the targets have, where the input shows them
(trainer.methods.coarse).
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from fewstep.checkpoint import NetworkModule
from fewstep.precond import Denoiser
from fewstep.schedule import check_levels
from trainer.methods.base import denoiser_of, imitation_loss, own_trajectory
from trainer.methods.coarse import coarse_part, highest_level
from trainer.methods.divergence import l1_error
from trainer.run.compute import Compute
from trainer.run.draws import Draws
from trainer.run.optimizer import adam, descend
from trainer.settings import ProgressiveConfig, further_levels


class Progressive:
    """trainer.run.loop.Method: a copy of `start` that learns from `start`, which is frozen.

    A level without further calls is anchored: it imitates `kept` if that is given, and `start` otherwise. `kept` serves
    the same lists and is usually the student that `start` was trained from.
    """

    served = "student"

    def __init__(
        self, start: NetworkModule, sigma_data: float, config: ProgressiveConfig, compute: Compute,
        kept: NetworkModule | None = None, teacher: NetworkModule | None = None,
    ) -> None:  # fmt: skip
        """teacher: needed when config.coarse > 0. Raises ValueError when the further levels are not positive and
        descending."""
        check_levels(config.further)
        self.config = config
        self.ema_width = config.ema_width
        frozen = start.eval().requires_grad_(False)
        student = copy.deepcopy(frozen).requires_grad_(True).eval()  # eval: no dropout
        self.network = student
        self.networks: dict[str, nn.Module] = {"student": student}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"student": adam(student, config.adam)}
        denoiser = partial(denoiser_of, sigma_data=sigma_data, classes=start.config.classes, compute=compute)
        self.student, self.start = denoiser(student, trained=True), denoiser(frozen)
        self.kept = denoiser(kept.eval().requires_grad_(False)) if kept is not None else self.start
        self.teacher = denoiser(teacher.eval().requires_grad_(False)) if teacher is not None and config.coarse else None
        self.further = further_levels(config.lists, config.further, config.further_for)

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        path = self.draw(rng)
        level, clean, simulate = path[-1], images, self.config.simulate
        x = level * rng.normal_like(images)
        if len(path) > 1:  # the top level's input is pure noise; lower ones get an image with noise
            if simulate and rng.shared_choice(lambda u: u < simulate):
                clean = own_trajectory(self.student, path[:-1], images, labels, rng)
            x = clean + x
        target, unit = self.target(x, level, clean, labels, rng)
        generated = self.student(x, images.new_full((len(images),), level), labels)
        shown = generated
        if self.further[level] and self.config.saturate:
            shown, target = generated.clamp(-1, 1), saturate_extremes(target, self.config.saturate)
        loss, error = imitation_loss(generated, target, unit, shown)
        norm = descend(self.optimizers["student"], loss, self.config.adam, progress)
        return {"self_distillation_error" if self.further[level] else "anchor_error": error, "gradient": norm}

    def draw(self, rng: Draws) -> tuple[float, ...]:
        """The levels of a list down to the one that a batch trains, the same in every process.

        All lists are equally likely. Within a list the top level has probability `top`, and the other levels are
        equally likely.
        """
        lists, top = self.config.lists, self.config.top
        levels = rng.shared_choice(lambda u: lists[int(u * len(lists))])

        def down_to(u: float) -> tuple[float, ...]:
            if u < top or len(levels) == 1:
                return levels[:1]
            return levels[: 2 + int((u - top) / (1 - top) * (len(levels) - 1))]

        return rng.shared_choice(down_to)

    @torch.no_grad()
    def target(
        self, x: Tensor, level: float, clean: Tensor, labels: Tensor | None, rng: Draws
    ) -> tuple[Tensor, Tensor]:
        """The target of the output for x, both [B, C, H, W], at this level, and the unit [B, 1, 1, 1] of its error.

        The unit is the mean distance by which the further calls move the image. Without further calls it is the error
        of the target to `clean` [B, C, H, W], the images that x was before the noise, divided by `anchor_weight`.
        """
        if not self.further[level]:
            target = self.corrected(self.kept, x, level, labels)
            return target, l1_error(target, clean) / self.config.anchor_weight
        first = target = self.corrected(self.start, x, level, labels)
        for lower in self.further[level]:
            target = self.corrected(self.start, target + lower * rng.normal_like(x), lower, labels)
        return target, l1_error(target, first)

    def corrected(self, denoiser: Denoiser, x: Tensor, level: float, labels: Tensor | None) -> Tensor:
        """The output of a frozen denoiser for x [B, C, H, W], with the coarse part of the teacher's."""
        sigma = x.new_full((len(x),), level)
        output = denoiser(x, sigma, labels)
        if self.teacher is None or level > highest_level(min(x.shape[-2:]), self.config.coarse):
            return output
        return output + coarse_part(self.teacher(x, sigma, labels) - output, sigma, self.config.coarse)


def saturate_extremes(images: Tensor, margin: float) -> Tensor:
    """Images [B, C, H, W] whose pixels beyond 1 - margin are 1, and those below margin - 1 are -1."""
    images = torch.where(images < margin - 1, -1.0, images)
    return torch.where(images > 1 - margin, 1.0, images)
