"""The chain of a posterior's run: a student's own steps, or a teacher's ancestral sampler with measured variances."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.ancestral import Chain, VarianceRule, ancestral_chain, denoising_errors, student_chain
from fewstep.card import Card
from fewstep.noise_torch import noise_for
from fewstep.precond import Denoiser
from fewstep.ranges import RangeError
from fewstep.samplers import sample_heun
from fewstep.schedule import solver_sigmas

MEASURED = 256  # images of the prior by which its error is measured
HEUN_LEVELS = 18


def steps_of_student(prior: Path, card: Card, steps: int) -> Chain:
    """The student's own steps. Raises RangeError for a number of them that it does not take."""
    if steps not in card.levels or steps < 2:
        listed = ", ".join(str(each) for each in sorted(card.levels) if each > 1)
        raise RangeError(f"{prior} is a student of {listed} steps; choose --steps among them, not {steps}")
    return student_chain(card.levels[steps])


def chain_of_teacher(
    denoiser: Denoiser, card: Card, sigmas: Sequence[float], variance: VarianceRule, device: str
) -> Chain:
    """For the variance "opt" the prior's error is measured at every level, which is shown while it lasts."""
    if variance != "opt":
        return ancestral_chain(sigmas, variance)
    say(f"measuring the prior's error at {len(sigmas)} levels, on {MEASURED} of its samples")
    labels = torch.arange(MEASURED, device=device) % denoiser.classes if denoiser.classes else None
    calls, done = 2 * HEUN_LEVELS - 1 + len(sigmas), 0

    def bound(x: Tensor, sigma: float) -> Tensor:
        nonlocal done
        made = denoiser(x, sigma, labels)
        done += 1
        if done % max(calls // 10, 1) == 0:
            say(f"measuring  {done} of {calls} network calls")
        return made

    with torch.no_grad():
        start = noise_for(range(MEASURED), card.image_shape, device)
        images = sample_heun(bound, start, solver_sigmas(HEUN_LEVELS)).images
        noise = noise_for(range(MEASURED, 2 * MEASURED), card.image_shape, device)
        return ancestral_chain(sigmas, "opt", denoising_errors(bound, images, sigmas, noise))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
