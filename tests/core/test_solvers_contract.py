"""What every multistep solver promises: calls counted, ends that are exact, refusals in words, numpy like torch."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from fewstep import noise, noise_torch
from fewstep.analytic import Gaussian
from fewstep.dpmpp import sample_dpmpp
from fewstep.ipndm import sample_ipndm
from fewstep.sa_solver import sample_sa
from fewstep.samplers import sample_euler
from fewstep.schedule import logsnr_sigmas, solver_sigmas
from fewstep.unipc import sample_unipc

PAIR = Gaussian(mean=0.2, std=0.5)
NO_VARIANT: Any = "bh3"
SEEDS, SHAPE = (0, 5, 2**63 + 1), (1, 4, 4)
SOLVERS: dict[str, Callable[..., Any]] = {
    "2m": sample_dpmpp,
    "3m": partial(sample_dpmpp, order=3),
    "3m corrected": partial(sample_dpmpp, order=3, corrected=True),
    "3m to the end": partial(sample_dpmpp, order=3, lower_order_final=False),
    "unipc 1": partial(sample_unipc, order=1),
    "unipc 2 bh1": partial(sample_unipc, order=2, variant="bh1"),
    "unipc 3": sample_unipc,
    "sa": sample_sa,
    "sa everywhere": partial(sample_sa, tau=1.3, interval=(0.0, math.inf), predictor_order=2, corrector_order=0),
    "ipndm 4": sample_ipndm,
    "ipndm 2": partial(sample_ipndm, order=2),
}
DATA_PREDICTION = [name for name in SOLVERS if "ipndm" not in name]  # these end on the denoised image itself
each_solver = pytest.mark.parametrize("name", SOLVERS)


def draw(step: int) -> np.ndarray:
    return np.random.default_rng((1, step)).normal(size=(2, 1, 3, 1))


@each_solver
def test_a_solver_with_n_levels_makes_n_calls_one_at_each_level(name: str):
    for levels in range(1, 36):
        called: list[float] = []

        def denoiser(x, sigma, called=called):
            assert sigma.shape == (2,) and (sigma == sigma[0]).all()
            called.append(float(sigma[0]))
            return PAIR.teacher(x, sigma)

        sigmas = logsnr_sigmas(levels)
        assert SOLVERS[name](denoiser, draw, sigmas).nfe == levels
        assert called == list(sigmas[:-1])


@each_solver
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 7])
def test_a_denoiser_that_always_says_the_same_image_makes_every_solver_end_there(name: str, levels: int):
    target = np.full((2, 1, 3, 1), 0.7)
    images = SOLVERS[name](lambda x, sigma: target, draw, logsnr_sigmas(levels)).images
    np.testing.assert_allclose(images, target, atol=1e-9)


@pytest.mark.parametrize("name", DATA_PREDICTION)
@pytest.mark.parametrize("levels", [1, 2, 5, 20])
def test_the_last_step_returns_the_last_denoised_image(name: str, levels: int):
    denoised: list[np.ndarray] = []

    def denoiser(x, sigma):
        denoised.append(PAIR.teacher(x, sigma))
        return denoised[-1]

    images = SOLVERS[name](denoiser, draw, solver_sigmas(levels)).images
    np.testing.assert_array_equal(images, denoised[-1])


@each_solver
def test_one_level_is_one_call_on_pure_noise(name: str):
    images = SOLVERS[name](PAIR.teacher, draw, (80.0, 0.0)).images
    np.testing.assert_allclose(images, PAIR.teacher(80.0 * draw(0), np.array([80.0, 80.0])), atol=1e-12)


@pytest.mark.parametrize("schedule", [solver_sigmas, logsnr_sigmas])
def test_order_one_is_euler(schedule: Callable[[int], tuple[float, ...]]):
    sigmas = schedule(7)
    euler = sample_euler(PAIR.teacher, draw, sigmas).images
    first_order_sa = partial(sample_sa, tau=0.0, predictor_order=1, corrector_order=0)
    for solver in (partial(sample_ipndm, order=1), first_order_sa):
        np.testing.assert_allclose(solver(PAIR.teacher, draw, sigmas).images, euler, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["2m", "3m", "3m corrected", "3m to the end"])
def test_a_multistep_solver_without_corrector_starts_with_euler(name: str):
    sigmas = logsnr_sigmas(2)
    euler = sample_euler(PAIR.teacher, draw, sigmas).images
    np.testing.assert_allclose(SOLVERS[name](PAIR.teacher, draw, sigmas).images, euler, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sa_solver_without_noise_is_unipc_with_bh1(order: int):
    for levels in (1, 2, 3, 4, 9):
        sigmas = solver_sigmas(levels)
        unipc = sample_unipc(PAIR.teacher, draw, sigmas, order=order, variant="bh1").images
        sa = sample_sa(PAIR.teacher, draw, sigmas, tau=0.0, predictor_order=order, corrector_order=order + 1).images
        np.testing.assert_array_equal(sa, unipc)


def test_an_image_that_is_a_polynomial_in_lambda_is_integrated_exactly():
    # dx / dlambda = D - x; for a parabola D(lambda) a particular solution is D - D' + D'', and what x differs from it
    # shrinks like sigma. Three points carry a parabola, from the third level on.
    def denoised(time: float) -> float:
        return 0.3 + 0.7 * time + 0.2 * time**2

    def particular(time: float) -> float:
        return denoised(time) - (0.7 + 0.4 * time) + 0.4

    seen: dict[float, np.ndarray] = {}

    def denoiser(x, sigma):
        seen[float(sigma[0])] = x
        return np.full_like(x, denoised(-math.log(sigma[0])))

    sigmas = (20.0, 9.0, 5.0, 3.1, 1.7, 1.0, 0.4, 0.1, 0.0)
    solver = partial(sample_dpmpp, order=3, corrected=True, lower_order_final=False)
    solver(denoiser, draw, sigmas)
    for sigma, sigma_next in pairwise(sigmas[2:-1]):
        decayed = (seen[sigma] - particular(-math.log(sigma))) * sigma_next / sigma
        np.testing.assert_allclose(seen[sigma_next], particular(-math.log(sigma_next)) + decayed, atol=1e-11)


@each_solver
def test_torch_and_numpy_agree_in_float32(name: str):
    kinds: set[Any] = set()

    def denoiser(x, sigma):
        kinds.update((x.dtype, sigma.dtype))
        return PAIR.teacher(x, sigma)

    sigmas = logsnr_sigmas(8, 0.01, 20.0)
    ours = SOLVERS[name](denoiser, noise.noise_for(SEEDS, SHAPE), sigmas).images
    theirs = SOLVERS[name](denoiser, noise_torch.noise_for(SEEDS, SHAPE), sigmas).images
    assert isinstance(ours, np.ndarray) and isinstance(theirs, torch.Tensor)
    assert ours.shape == theirs.shape == (3, *SHAPE)
    assert kinds | {ours.dtype, theirs.dtype} == {np.dtype(np.float32), torch.float32}
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-5)


@each_solver
def test_an_image_does_not_depend_on_its_batch(name: str):
    def run(seeds: tuple[int, ...]) -> np.ndarray:
        return SOLVERS[name](PAIR.teacher, noise.noise_for(seeds, SHAPE), logsnr_sigmas(6)).images

    together = run((3, 4, 5))
    for row, seed in enumerate((3, 4, 5)):
        np.testing.assert_array_equal(together[row], run((seed,))[0])


@each_solver
def test_the_noise_and_the_denoised_images_are_left_alone(name: str):
    kept = {step: np.full((1, 1, 2, 1), float(step + 1)) for step in range(8)}
    answers: list[tuple[np.ndarray, np.ndarray]] = []

    def denoiser(x, sigma):
        answer = PAIR.teacher(x, sigma)
        answers.append((answer, answer.copy()))
        return answer

    SOLVERS[name](denoiser, lambda step: kept[step], logsnr_sigmas(7))
    assert all((array == step + 1).all() for step, array in kept.items())
    assert all((answer == copy).all() for answer, copy in answers)


@each_solver
@pytest.mark.parametrize("sigmas", [(), (0.0,), (1.0, 2.0), (2.0, -1.0), (math.nan,), (math.inf,)], ids=str)
def test_bad_levels_are_refused_before_the_network_is_called(name: str, sigmas: tuple[float, ...]):
    def untouched(x, sigma):
        raise AssertionError("the network was called")

    with pytest.raises(ValueError, match="descending"):
        SOLVERS[name](untouched, draw, (*sigmas, 0.0))
    with pytest.raises(ValueError, match="end in 0"):
        SOLVERS[name](untouched, draw, (2.0, 1.0))


@pytest.mark.parametrize(
    ("solver", "sentence"),
    [
        (partial(sample_dpmpp, order=1), "order 2 or 3, not 1"),
        (partial(sample_dpmpp, order=4), "order 2 or 3, not 4"),
        (partial(sample_dpmpp, order=2, corrected=True), "only order 3 has a corrected form"),
        (partial(sample_unipc, order=0), "order 1, 2 or 3, not 0"),
        (partial(sample_unipc, order=4), "order 1, 2 or 3, not 4"),
        (partial(sample_unipc, variant=NO_VARIANT), "'bh1' or 'bh2', not 'bh3'"),
        (partial(sample_sa, tau=-0.1), "tau must be 0 or more"),
        (partial(sample_sa, tau=math.inf), "tau must be 0 or more, and finite"),
        (partial(sample_sa, tau=math.nan), "tau must be 0 or more"),
        (partial(sample_sa, predictor_order=0), "from 1 to 4, not 0"),
        (partial(sample_sa, predictor_order=5), "from 1 to 4, not 5"),
        (partial(sample_sa, corrector_order=-1), r"from 0 \(none\) to 4, not -1"),
        (partial(sample_sa, corrector_order=5), r"from 0 \(none\) to 4, not 5"),
        (partial(sample_sa, interval=(2.0, 1.0)), r"\(low, high\) in sigma, not \(2.0, 1.0\)"),
        (partial(sample_ipndm, order=0), "from 1 to 4, not 0"),
        (partial(sample_ipndm, order=5), "from 1 to 4, not 5"),
    ],
)
def test_settings_that_do_not_exist_are_refused_in_a_sentence(solver: Callable[..., Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        solver(PAIR.teacher, draw, logsnr_sigmas(3))
