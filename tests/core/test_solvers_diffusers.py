"""Every solver against diffusers' scheduler for it, an independent implementation: same denoiser, same sigmas.

The denoiser is the conditional mean of a mixture of Gaussians over images, in float64. The schedulers' own sigmas are
replaced by ours, in float64. Where a scheduler works at x_vp = alpha x with alpha = 1 / sqrt(1 + sigma^2), its x is
scaled on the way in and out.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_ipndm import IPNDMScheduler
from diffusers.schedulers.scheduling_sasolver import SASolverScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from fewstep.dpmpp import sample_dpmpp
from fewstep.ipndm import sample_ipndm
from fewstep.precond import edm_scalings
from fewstep.sa_solver import middle_interval, sample_sa
from fewstep.samplers import sample_euler, sample_heun
from fewstep.schedule import logsnr_sigmas, solver_sigmas
from fewstep.unipc import sample_unipc

# diffusers hands a tensor to numpy in a way that numpy 2 frowns upon
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIGMA_DATA = 0.5
SHAPE = (3, 2, 4, 4)
SCHEDULES = {"logsnr": logsnr_sigmas, "karras": solver_sigmas}
LEVELS = (2, 3, 4, 8, 14, 15, 35)
LARGEST_GAP = 1e-11  # images are of order 1, and of order 80 on the way

Tensor = torch.Tensor
Schedule = Callable[[int], tuple[float, ...]]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)

_CENTRES = torch.randn((4, *SHAPE[1:]), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.6


def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
    """E[x0 | x] for four Gaussians of spread 0.3 with weights 0.1, 0.2, 0.3, 0.4."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1).expand(x.shape[0], 1, 1, 1)
    spread = 0.3**2 + sigma[None] ** 2
    away = x[None] - _CENTRES[:, None]
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=x.dtype).log()[:, None] - (away**2 / spread).sum((2, 3, 4)) / 2
    means = _CENTRES[:, None] + 0.3**2 / spread * away
    return (logits.softmax(0)[:, :, None, None, None] * means).sum(0)


def draws(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def gap(sampler: Callable[..., Any], sigmas: Sequence[float], theirs: Tensor, **settings: Any) -> float:
    """Largest difference of a pixel between our sampler's images and `theirs`."""
    ours = sampler(denoise, draws(len(sigmas)).__getitem__, sigmas, **settings).images
    assert ours.dtype == torch.float64
    assert ours.std() > 0.3, "the images are nearly constant; nothing is compared"
    return float((ours - theirs).abs().max())


def set_sigmas(scheduler: Any, sigmas: Sequence[float]) -> None:
    levels = len(sigmas) - 1
    scheduler.set_timesteps(levels)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(levels, dtype=torch.float64)
    scheduler.set_begin_index(0)


def edm_images(scheduler: Any, sigmas: Sequence[float]) -> Tensor:
    """EDM's schedulers take the output of the raw network F and precondition it themselves."""
    set_sigmas(scheduler, sigmas)
    x = sigmas[0] * draws(1)[0]
    for sigma, t in zip(sigmas[:-1], scheduler.timesteps, strict=True):
        scheduler.scale_model_input(x, t)
        c_skip, c_out, _, _ = edm_scalings(torch.tensor(sigma, dtype=x.dtype), SIGMA_DATA)
        output = (denoise(x, sigma) - c_skip * x) / c_out
        x = scheduler.step(output, t, x).prev_sample
    return x


def vp_images(scheduler: Any, sigmas: Sequence[float], generator: torch.Generator | None = None) -> Tensor:
    """The last call is made here: SA-Solver's scheduler cannot step to sigma 0."""
    set_sigmas(scheduler, sigmas)
    settings = {} if generator is None else {"generator": generator}
    x = sigmas[0] * draws(1)[0]
    for (sigma, sigma_next), t in zip(pairwise(sigmas[:-1]), scheduler.timesteps[:-1], strict=True):
        alpha, alpha_next = 1 / math.hypot(1, sigma), 1 / math.hypot(1, sigma_next)
        x = scheduler.step(denoise(x, sigma), t, alpha * x, **settings).prev_sample / alpha_next
    return denoise(x, sigmas[-2])


@each_schedule
@pytest.mark.parametrize("levels", LEVELS)
def test_euler_is_edm_euler(levels: int, schedule: Schedule):
    # This scheduler casts x to float32 at every step.
    sigmas = schedule(levels)
    assert gap(sample_euler, sigmas, edm_images(EDMEulerScheduler(sigma_data=SIGMA_DATA), sigmas)) < 2e-6


@each_schedule
@pytest.mark.parametrize("levels", LEVELS)
def test_heun_is_heun_discrete(levels: int, schedule: Schedule):
    sigmas = schedule(levels)
    scheduler: Any = HeunDiscreteScheduler(prediction_type="sample")
    set_sigmas(scheduler, sigmas)
    calls = [sigmas[0], *(sigma for sigma in sigmas[1:-1] for _ in range(2))]  # what each call is made at
    scheduler.sigmas = torch.tensor([*calls, 0.0], dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(calls), dtype=torch.float64)
    x = sigmas[0] * draws(1)[0]
    for sigma, t in zip(calls, scheduler.timesteps, strict=True):
        x = scheduler.step(denoise(x, sigma), t, x).prev_sample
    assert gap(sample_heun, sigmas, x) < LARGEST_GAP


@each_schedule
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("levels", LEVELS)
def test_dpmpp_is_edm_dpmsolver_multistep(levels: int, order: int, schedule: Schedule):
    sigmas = schedule(levels)
    theirs = edm_images(EDMDPMSolverMultistepScheduler(sigma_data=SIGMA_DATA, solver_order=order), sigmas)
    lower_order_final = levels < 15  # diffusers' own rule
    assert gap(sample_dpmpp, sigmas, theirs, order=order, lower_order_final=lower_order_final) < LARGEST_GAP


def test_the_corrected_3m_is_not_what_diffusers_computes():
    sigmas = logsnr_sigmas(8)
    theirs = edm_images(EDMDPMSolverMultistepScheduler(sigma_data=SIGMA_DATA, solver_order=3), sigmas)
    assert gap(sample_dpmpp, sigmas, theirs, order=3, corrected=True) > 1e-3


@each_schedule
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("levels", LEVELS)
def test_unipc_is_unipc_multistep(levels: int, order: int, variant: Any, schedule: Schedule):
    sigmas = schedule(levels)
    scheduler = UniPCMultistepScheduler(solver_order=order, solver_type=variant, prediction_type="sample")
    assert gap(sample_unipc, sigmas, vp_images(scheduler, sigmas), order=order, variant=variant) < LARGEST_GAP


def test_unipcs_scheduler_also_ends_on_the_denoised_image():
    sigmas = logsnr_sigmas(5)
    scheduler: Any = UniPCMultistepScheduler(solver_order=3, prediction_type="sample")
    set_sigmas(scheduler, sigmas)
    x = sigmas[0] * draws(1)[0]
    for (sigma, sigma_next), t in zip(pairwise(sigmas), scheduler.timesteps, strict=True):
        x = scheduler.step(denoise(x, sigma), t, x / math.hypot(1, sigma)).prev_sample * math.hypot(1, sigma_next)
    assert gap(sample_unipc, sigmas, x) < LARGEST_GAP


@each_schedule
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4)])
def test_sa_solver_is_sa_solver(predictor: int, corrector: int, tau: float, schedule: Schedule):
    for levels in (2, 3, 4, 12):
        sigmas = schedule(levels)
        low, high = middle_interval(sigmas)
        generator = torch.Generator().manual_seed(2)
        torch.randn(SHAPE, generator=generator, dtype=torch.float64)  # draws()[0], the start
        scheduler = SASolverScheduler(
            predictor_order=predictor,
            corrector_order=corrector,
            prediction_type="sample",
            tau_func=lambda t, sigmas=sigmas, low=low, high=high: tau if low <= sigmas[int(t)] <= high else 0.0,
        )
        theirs = vp_images(scheduler, sigmas, generator)
        settings: dict[str, Any] = {"tau": tau, "predictor_order": predictor, "corrector_order": corrector}
        assert gap(sample_sa, sigmas, theirs, **settings) < LARGEST_GAP


@each_schedule
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", LEVELS)
def test_ipndm_is_ipndm_at_x_vp(levels: int, order: int, schedule: Schedule):
    # In x / alpha its step is x + (sigma_next - sigma) * (mix of past noises), and the noise (x - D) / sigma is our
    # slope. It asks for v = alpha eps - sin x0 and knows order 4 only; forgetting older noises gives the lower ones.
    sigmas = schedule(levels)
    scheduler: Any = IPNDMScheduler()
    scheduler.set_timesteps(levels)
    scheduler.alphas = torch.tensor([1 / math.hypot(1, sigma) for sigma in sigmas], dtype=torch.float64)
    scheduler.betas = torch.tensor([sigma / math.hypot(1, sigma) for sigma in sigmas], dtype=torch.float64)
    scheduler.set_begin_index(0)
    x = scheduler.betas[0] * draws(1)[0]
    for i, (sigma, t) in enumerate(zip(sigmas[:-1], scheduler.timesteps, strict=True)):
        alpha, beta = scheduler.alphas[i], scheduler.betas[i]
        denoised = denoise(x / alpha, sigma)
        v = alpha * (x - alpha * denoised) / beta - beta * denoised
        scheduler.ets = scheduler.ets[max(0, len(scheduler.ets) - (order - 1)) :]
        x = scheduler.step(v, t, x).prev_sample
    assert gap(sample_ipndm, sigmas, x, order=order) < LARGEST_GAP
