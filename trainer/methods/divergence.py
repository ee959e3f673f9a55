"""The student's training signal: the gradient of a divergence at each output.

Two score networks give it: the teacher, for the data, and the auxiliary, for the student's outputs. Every function
takes the student's outputs `recovered` [B, C, H, W], detached, and the same outputs noised to `sigma` [B], and returns
a gradient [B, C, H, W] to descend. The loss of an update is the sum of gradient * output.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.settings import Weight

ScoreNetwork = Callable[[Tensor], Tensor]  # noisy [B, C, H, W] -> denoised, with levels and labels bound


@torch.no_grad()
def kl_gradient(
    recovered: Tensor, noisy: Tensor, teacher: ScoreNetwork, auxiliary: ScoreNetwork, weight: Weight
) -> Tensor:
    """Smoothed KL divergence (DPDM, Eq. 3.4; Luo et al. 2023, Diff-Instruct, Eq. 3.4).

    The score difference is (D_auxiliary - D_teacher) / sigma^2. `one` drops sigma^2, as Diff-Instruct's code does;
    `l1` divides by the teacher's mean absolute error instead, which weighs all levels equally (Yin et al. 2024,
    DMD, Eq. 8).
    """
    real, fake = teacher(noisy), auxiliary(noisy)
    return (fake - real) / _scale(recovered, real, weight)


def sid_gradient(
    recovered: Tensor, noise: Tensor, teacher: ScoreNetwork, auxiliary: ScoreNetwork, weight: Weight, alpha: float
) -> Tensor:
    """Score identity distillation (Zhou et al. 2024, SiD, Eq. 23): a Fisher divergence, whose gradient passes through
    both score networks into the output. `noise` [B, C, H, W] is added to the output and includes the factor sigma.

    alpha 0.5 is half the difference of the two squared errors. 1.2 is the paper's best on its own data sets; users
    report that it diverges on theirs, where 0.5 or less did not.
    """
    outputs = recovered.detach().requires_grad_(True)
    with torch.enable_grad():
        noisy = outputs + noise
        real, fake = teacher(noisy), auxiliary(noisy)
        gap = real - fake
        scale = _scale(outputs.detach(), real.detach(), weight)
        loss = (gap * ((real - outputs) - alpha * gap) / scale).sum()
    return torch.autograd.grad(loss, outputs)[0]


def _scale(recovered: Tensor, real: Tensor, weight: Weight) -> Tensor | float:
    if weight == "one":
        return 1.0
    return l1_error(recovered, real)


def l1_error(images: Tensor, others: Tensor) -> Tensor:
    """Mean absolute difference [B, 1, 1, 1] of images [B, C, H, W], at least 1e-4, so that one can divide by it."""
    return (images - others).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-4)
