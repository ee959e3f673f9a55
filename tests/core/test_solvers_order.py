"""Order of convergence of every multistep solver, in float64 on the analytic Gaussian pair.

What is measured is the path: the largest distance, over all levels down to sigma 0.1, between the x a solver shows the
denoiser and the exact solution, in units of the spread that x has there. The slope is over several level counts. Below
0.1 come a few more levels, because the last steps have lower orders (lower_order_final). The start has sigma 500: the
first steps have lower orders too, and what they leave behind falls with sigma^-2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from fewstep.analytic import Gaussian
from fewstep.dpmpp import sample_dpmpp
from fewstep.ipndm import sample_ipndm
from fewstep.sa_solver import sample_sa
from fewstep.samplers import sample_euler
from fewstep.schedule import karras_sigmas, logsnr_sigmas
from fewstep.unipc import sample_unipc

Solver = Callable[..., Any]
PAIR = Gaussian(mean=0.2, std=0.5)
COUNTS = (90, 130, 180, 250)
END, TAIL = 0.1, (0.08, 0.06, 0.04, 0.02, 0.0)


def draw(step: int) -> np.ndarray:
    return np.random.default_rng((0, step)).normal(size=(1, 1, 8, 1))


def exact(x: np.ndarray, start: float, sigma: float) -> np.ndarray:
    """The probability-flow ODE from x at `start` to `sigma`: down to 0 and up again."""
    clean = PAIR.flow(x, start)
    return PAIR.mean + np.hypot(PAIR.std, sigma) / PAIR.std * (clean - PAIR.mean)


def path_error(solver: Solver, sigmas: tuple[float, ...]) -> float:
    seen: list[tuple[float, np.ndarray]] = []

    def denoiser(x, sigma):
        seen.append((float(sigma[0]), x))
        return PAIR.teacher(x, sigma)

    solver(denoiser, draw, sigmas)
    start = sigmas[0] * draw(0)
    errors = [
        np.abs(x - exact(start, sigmas[0], sigma)).max() / np.hypot(PAIR.std, sigma)
        for sigma, x in seen
        if sigma >= END * (1 - 1e-9)
    ]
    return max(errors)


def logsnr(levels: int) -> tuple[float, ...]:
    return (*logsnr_sigmas(levels, END, 500.0)[:-1], *TAIL)


def order(solver: Solver, schedule: Callable[[int], tuple[float, ...]] = logsnr) -> float:
    errors = [path_error(solver, schedule(levels)) for levels in COUNTS]
    return float(-np.polyfit(np.log(COUNTS), np.log(errors), 1)[0])


def test_the_measurement_finds_order_one_for_euler():
    assert order(sample_euler) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("lower_order_final", [True, False])
def test_dpmpp_2m_has_order_two(lower_order_final: bool):
    assert order(partial(sample_dpmpp, order=2, lower_order_final=lower_order_final)) == pytest.approx(2, abs=0.1)


def test_dpmpp_3m_as_published_has_order_two_and_corrected_three():
    # docs/adr/0008 quotes these.
    assert order(partial(sample_dpmpp, order=3)) == pytest.approx(2, abs=0.25)
    assert order(partial(sample_dpmpp, order=3, corrected=True)) == pytest.approx(3, abs=0.1)


def test_dpmpp_3m_as_published_comes_ever_closer_to_order_two():
    fine = [path_error(partial(sample_dpmpp, order=3), logsnr(levels)) for levels in (500, 1000)]
    assert np.log2(fine[0] / fine[1]) == pytest.approx(2, abs=0.03)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc_has_one_order_more_than_its_predictor(p: int, variant: Any):
    assert order(partial(sample_unipc, order=p, variant=variant)) == pytest.approx(p + 1, abs=0.1)


@pytest.mark.parametrize("corrector", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("predictor", [1, 2, 3, 4])
def test_sa_solver_without_noise_has_its_deterministic_order(predictor: int, corrector: int):
    expected = min(predictor + 1, corrector) if corrector else predictor
    measured = order(partial(sample_sa, tau=0.0, predictor_order=predictor, corrector_order=corrector))
    # x is seen as predicted. Where corrector = predictor the prediction's own error, of one order more, still adds to
    # what the corrector leaves. At 4 and 4 it is all there is to see: the corrector's constant is 13 times smaller.
    assert expected - 0.1 < measured < expected + (1.05 if predictor == corrector == 4 else 0.3)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_ipndm_has_its_order_on_equal_steps_of_sigma(p: int):
    def error(steps: int) -> float:
        seen: dict[float, np.ndarray] = {}

        def denoiser(x, sigma):
            seen[float(sigma[0])] = x
            return PAIR.teacher(x, sigma)

        sigmas = tuple(np.linspace(10.0, 0.0, steps + 1).tolist())
        sample_ipndm(denoiser, draw, sigmas, order=p)
        # Higher up, what the first Euler step left behind hides an error of fourth order.
        return max(np.abs(x - exact(10.0 * draw(0), 10.0, sigma)).max() for sigma, x in seen.items() if sigma < 0.5)

    counts = [6 * count for count in COUNTS]
    slope = np.polyfit(np.log(counts), np.log([error(steps) for steps in counts]), 1)[0]
    assert -slope == pytest.approx(p, abs=0.15)


@pytest.mark.parametrize("p", [2, 3, 4])
def test_ipndm_has_order_two_on_karras_levels(p: int):
    def karras(levels: int) -> tuple[float, ...]:
        return (*karras_sigmas(levels, END, 500.0), *TAIL)

    assert order(partial(sample_ipndm, order=p), karras) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    "solver",
    [sample_dpmpp, partial(sample_dpmpp, order=3), sample_unipc, partial(sample_sa, tau=0.0), sample_ipndm],
    ids=["2m", "3m", "unipc", "sa", "ipndm"],
)
def test_at_ten_calls_every_multistep_solver_ends_closer_than_euler(solver: Solver):
    sigmas = logsnr_sigmas(10)
    end = PAIR.flow(sigmas[0] * draw(0), sigmas[0])
    euler = np.abs(sample_euler(PAIR.teacher, draw, sigmas).images - end).max()
    assert np.abs(solver(PAIR.teacher, draw, sigmas).images - end).max() < 0.5 * euler
