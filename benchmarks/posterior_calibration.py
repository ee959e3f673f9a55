"""Is a sampler of p(x | y) calibrated? Simulation-based calibration (Talts et al. 2018) for linear measurements.

    python benchmarks/posterior_calibration.py            # two minutes of one core
    python benchmarks/posterior_calibration.py --smoke    # seconds; proves that it runs

x ~ N(0, S) in four dimensions and y = A x + noise are drawn many times. If samples given y have the law p(x | y), the
rank of x among them is uniform, in every coordinate; a histogram of ranks shows what is wrong: a hill for samples that
are spread too widely, a valley for too narrowly, a slope for a wrong mean. "p": of a chi-square test of uniform ranks,
the smallest of the coordinates times their number (Bonferroni). "coverage": how often x lies in the central 90 %.

exact       samples of the posterior in closed form: a control that must pass
chain       the ancestral chain with the exact conditional mean given y as its denoiser
RTB         trajectory balance, one sampler told y, trained on measurements that are drawn anew; also with its
            importance weights
DPS         diffusion posterior sampling with scale 1: a control that must fail
"""

from fewstep import extras

extras.name_missing()

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import table
from benchmarks.posterior_results import end, parsed, said, write_rows
from benchmarks.posterior_rivals import dps
from benchmarks.posterior_told import Told, gaussian_denoiser, gaussian_error, told_problem, train_told
from fewstep.ancestral import Chain, ancestral_chain
from fewstep.ranges import POSITIVE, number, whole
from fewstep.schedule import karras_sigmas
from trainer.methods.rtb import Problem, own_steps, walk
from trainer.run.draws import Draws, seeded
from trainer.settings import PosteriorConfig

BINS, INTERVAL = 20, 0.9
COLUMNS = {"sampler": "sampler", "levels": "levels", "p": "p", "coverage": "coverage of 90 %", "spread": "ranks' std"}
Sampler = Callable[
    [Tensor, int, Draws], tuple[Tensor, Tensor | None]
]  # y [M, m], samples L -> [L, M, d], weights [L, M]


@dataclass(frozen=True)
class Linear:
    """x ~ N(0, covariance), y = matrix x + std e."""

    covariance: Tensor  # [d, d]
    matrix: Tensor  # [m, d]
    std: float

    def draw(self, count: int, rng: Draws) -> tuple[Tensor, Tensor]:
        """x [count, d] and y [count, m]."""
        root = torch.linalg.cholesky(self.covariance)
        x = rng.normal_like(torch.empty(count, len(self.covariance))) @ root.T
        return x, x @ self.matrix.T + self.std * rng.normal_like(torch.empty(count, len(self.matrix)))

    def prior(self, x: Tensor, sigma: float, measured: Tensor) -> Tensor:
        """E[x0 | x] [B, d], whatever was measured."""
        return gaussian_denoiser(self.covariance, torch.zeros_like(x), x, sigma)

    def posterior(self) -> tuple[Tensor, Tensor]:
        """The covariance [d, d], and the matrix [d, m] that takes y to the mean."""
        precision = torch.linalg.inv(self.covariance) + self.matrix.T @ self.matrix / self.std**2
        covariance = torch.linalg.inv(precision)
        return covariance, covariance @ self.matrix.T / self.std**2


def linear_case() -> Linear:
    rotation = torch.linalg.qr(seeded(1).normal_like(torch.empty(4, 4)))[0]
    covariance = rotation @ torch.diag(torch.tensor([1.5, 1.0, 0.5, 0.25])) @ rotation.T
    return Linear(covariance, torch.tensor([[1.0, 0.5, 0.0, -0.5], [0.0, 1.0, 1.0, 0.0]]), 0.5)


def chain_of(case: Linear, levels: int) -> Chain:
    sigmas = karras_sigmas(levels, 0.02, 40.0)
    return ancestral_chain(sigmas, "opt", [gaussian_error(case.covariance, sigma) for sigma in sigmas])


def told(case: Linear, chain: Chain) -> Told:
    return Told(case.prior, chain, case.matrix.shape[1], case.matrix.shape[0])


def problem_of(case: Linear, network: Told, measured: Tensor) -> Problem:
    """y of the problem is the number of a measurement in `measured` [M, m]."""
    prior = lambda x, sigma, given: case.prior(x.flatten(1), float(sigma[0]), given).view_as(x)  # noqa: E731
    gap = lambda images, given: images.flatten(1) @ case.matrix.T - given  # noqa: E731
    log_reward = lambda images, given: -gap(images, given).square().sum(dim=1) / (2 * case.std**2)  # noqa: E731
    return told_problem(prior, network, network.chain, log_reward, network.log_variance, measured)


def trained(case: Linear, chain: Chain, updates: int, lr: float, seed: int, *, learn_variance: bool = True) -> Told:
    """Every update has 16 new measurements, with 8 trajectories each: each has a Z of its own."""
    network, (m, d) = told(case, chain), case.matrix.shape
    config = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=lr), learn_variance=learn_variance)
    draw = lambda count, rng: case.draw(count, rng)[1]  # noqa: E731
    train_told(lambda table: problem_of(case, network, table), network, draw, config, updates, seeded(seed), d=d, m=m)
    return network.requires_grad_(False)


def by_rtb(case: Linear, network: Told, weighted: bool) -> Sampler:
    def run(measured: Tensor, samples: int, rng: Draws) -> tuple[Tensor, Tensor | None]:
        problem, count = problem_of(case, network, measured), len(measured)
        found = []
        for _ in range(samples):
            first = problem.start(torch.empty(count, 1, 1, 4), rng)
            made = walk(problem, torch.arange(count), first, own_steps(problem, rng))
            found.append((made.images.flatten(1), -made.residual(1.0)))
        images, log_weights = (torch.stack(column) for column in zip(*found, strict=True))
        return images, log_weights.softmax(dim=0) if weighted else None

    return run


def by_chain(case: Linear, chain: Chain) -> Sampler:
    """With the exact conditional mean as its denoiser."""
    covariance, gain = case.posterior()

    def run(measured: Tensor, samples: int, rng: Draws) -> tuple[Tensor, Tensor | None]:
        mean = (measured @ gain.T).repeat(samples, 1)
        x = chain.sigmas[0] * rng.normal_like(mean)
        for i, sigma in enumerate(chain.sigmas[:-1]):
            clean = gaussian_denoiser(covariance, mean, x, sigma)
            moved = (1 - chain.gains[i]) * x + chain.gains[i] * clean
            x = moved + math.sqrt(chain.variances[i]) * rng.normal_like(mean)
        return gaussian_denoiser(covariance, mean, x, chain.sigmas[-1]).view(samples, len(measured), -1), None

    return run


def by_dps(case: Linear, chain: Chain) -> Sampler:
    def run(measured: Tensor, samples: int, rng: Draws) -> tuple[Tensor, Tensor | None]:
        problem = problem_of(case, told(case, chain), measured)
        y, like = torch.arange(len(measured)), torch.empty(len(measured), 1, 1, 4)
        reward = lambda images, _: problem.log_reward(images, y)  # noqa: E731
        return torch.stack([dps(problem, like, reward, 1.0, rng).flatten(1) for _ in range(samples)]), None

    return run


def exactly(case: Linear) -> Sampler:
    covariance, gain = case.posterior()
    root = torch.linalg.cholesky(covariance)

    def run(measured: Tensor, samples: int, rng: Draws) -> tuple[Tensor, Tensor | None]:
        unit = rng.normal_like(torch.empty(samples, len(measured), len(covariance)))
        return measured @ gain.T + unit @ root.T, None

    return run


def places(truth: Tensor, samples: Tensor, weights: Tensor | None, rng: Draws) -> Tensor:
    """Where truth [M, d] lies among samples [L, M, d], in (0, 1): [M, d]. Uniform for calibrated samples: exactly for
    equal weights, and for weights [L, M] that sum to 1 up to their number."""
    count = len(samples)
    even = torch.full(samples.shape[:2], 1 / count) if weights is None else weights
    below = ((samples < truth) * even[:, :, None]).sum(dim=0)
    return (count * below + rng.uniform(truth.numel()).view_as(truth)) / (count + 1)


def uniformity(place: Tensor) -> float:
    """p of Pearson's chi-square test that places [M] are uniform, in BINS bins."""
    counts = torch.histc(place.double(), BINS, 0, 1)
    expected = len(place) / BINS
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((BINS - 1) / 2, dtype=torch.float64), statistic / 2))


def calibration(case: Linear, sampler: Sampler, trials: int, samples: int, seed: int) -> dict[str, Any]:
    rng = seeded(seed)
    truth, measured = case.draw(trials, rng)
    made, weights = sampler(measured, samples, rng)
    place = places(truth, made, weights, rng)
    dimensions = place.shape[1]
    inside = ((place - 0.5).abs() < INTERVAL / 2).double().mean(dim=0)
    return {
        "p": min(min(uniformity(place[:, k]) for k in range(dimensions)) * dimensions, 1.0),
        "coverage": float(inside.mean()),
        "coverages": inside.tolist(),
        "spread": float(place.std()),  # uniform: 0.289
        "histograms": [torch.histc(place[:, k], BINS, 0, 1).int().tolist() for k in range(dimensions)],
    }


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    began, case, rows = time.monotonic(), linear_case(), []

    def add(name: str, levels: int | None, sampler: Sampler) -> None:
        with torch.no_grad() if name != "DPS, scale 1" else torch.enable_grad():
            found = calibration(case, sampler, args.trials, args.samples, args.seed)
        rows.append({"sampler": name, "levels": levels, **found})
        said(f"{name}, {levels} levels: p {found['p']:.3g}, coverage {found['coverage']:.3f}", began)

    add("exact", None, exactly(case))
    for levels in args.levels:
        chain = chain_of(case, levels)
        add("chain", levels, by_chain(case, chain))
        network = trained(case, chain, args.updates, args.lr, args.seed)
        add("RTB", levels, by_rtb(case, network, weighted=False))
        add("RTB, weighted", levels, by_rtb(case, network, weighted=True))
        fixed = trained(case, chain, args.updates, args.lr, args.seed, learn_variance=False)
        add("RTB, fixed variance", levels, by_rtb(case, fixed, weighted=False))
        add("DPS, scale 1", levels, by_dps(case, chain))
        write_rows(args, "posterior_calibration", rows)
    end(args.out, table(rows, COLUMNS))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--levels", nargs="+", type=whole(3), default=[20, 60], help="of the chains (default 20 60)")
    add("--trials", type=whole(100), default=1000, help="measurements (default 1000)")
    add("--samples", type=whole(19), default=99, help="given each (default 99)")
    add("--updates", type=whole(1), default=300, help="of trajectory balance (default 300)")
    add("--lr", type=number(POSITIVE), default=0.02, help="of trajectory balance (default %(default)s)")
    add("--seed", type=whole(0), default=0, help="of measurements and training (default %(default)s)")
    args = parsed(parser, "posterior-calibration")
    if args.smoke:
        args.levels, args.trials, args.samples, args.updates = [5], 100, 19, 3
    return args


if __name__ == "__main__":
    main()
