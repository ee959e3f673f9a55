"""Infilling a toy language by masked diffusion: trajectory balance on symbols, with an exact answer.

    python benchmarks/posterior_language.py            # three minutes of one core
    python benchmarks/posterior_language.py --smoke    # seconds; proves that it runs

A sentence is six symbols of an alphabet of four, and the language a Markov chain that follows a given symbol. A chain
begins with everything masked; each step uncovers `--uncovered` positions, drawn uniformly, and draws the symbol of each
from what the denoiser predicts of it, given what is seen. The prior's denoiser is exact, so with one position a step
its chain makes the language. Symbols that are uncovered together are drawn independently: then it makes another law,
and no denoiser makes the posterior exactly.

ending: r is the likelihood of the two symbols that follow the sentence: it is filled in between known ends.
given:  r is that of two symbols inside the sentence, read through a channel that is right with probability 0.94.

There are 4,096 sentences and 15,625 states with masks. So the law of every chain, Z and the ELBO are sums without a
sample; only "log Z" by importance weights and the effective sample size are of 2,000 trajectories. "TV" is the total
variation to the posterior of the prior's chain, "TV, language" that to the posterior of the language itself.
"""

from fewstep import extras

extras.name_missing()

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, product

import torch
from torch import Tensor, nn

from benchmarks.posterior_closed import MIXED
from benchmarks.posterior_results import end, parsed, said, summary, with_deviations, write_rows
from fewstep.ranges import POSITIVE, number, whole
from trainer.methods.rtb import LogReward, TrajectoryBalance, evaluate
from trainer.run.draws import Draws, seeded
from trainer.settings import PosteriorConfig

SYMBOLS, LENGTH = 4, 6
MASK, BASE = SYMBOLS, SYMBOLS + 1
STATES = BASE**LENGTH
BEFORE, AFTER = 0, (2, 3)  # the symbols around a sentence
GIVEN, RIGHT = {1: 3, 4: 1}, 0.94  # symbols at these positions, read by a channel
Predict = Callable[[Tensor], Tensor]  # states [B, LENGTH] -> log-probabilities of symbols [B, LENGTH, SYMBOLS]
COLUMNS = {
    "reward": "reward", "uncovered": "uncovered", "method": "method", "tv": "TV", "tv_language": "TV, language",
    "log_z": "log Z", "log_z_error": "IS log Z error", "gap": "log Z - ELBO", "ess": "ESS",
}  # fmt: skip


# The language


def transitions() -> Tensor:
    """P(next | symbol) [4, 4]: mostly the alphabet in order, sometimes the same symbol again."""
    ahead = torch.tensor([0.2, 0.6, 0.15, 0.05])
    return torch.stack([ahead.roll(symbol) for symbol in range(SYMBOLS)])


def language() -> Tensor:
    """The probability of every sentence [4, ..., 4]."""
    matrix = transitions()
    joint = matrix[BEFORE]
    for _ in range(LENGTH - 1):
        joint = joint[..., None] * matrix
    return joint


def rewards() -> dict[str, LogReward]:
    """log r of sentences [B, LENGTH], from -8 to 0."""
    matrix = transitions().log()
    wrong = (1 - RIGHT) / (SYMBOLS - 1)

    def ending(sentences: Tensor, y: Tensor) -> Tensor:
        return matrix[sentences[:, -1], AFTER[0]] + matrix[AFTER[0], AFTER[1]]

    def given(sentences: Tensor, y: Tensor) -> Tensor:
        terms = [torch.where(sentences[:, at] == symbol, RIGHT, wrong).log() for at, symbol in GIVEN.items()]
        return torch.stack(terms).sum(dim=0)

    return {"ending": ending, "given": given}


def tilted(joint: Tensor, log_reward: LogReward) -> tuple[Tensor, float]:
    """A law of sentences [4, ..., 4] times r, and log Z."""
    sentences = torch.cartesian_prod(*[torch.arange(SYMBOLS)] * LENGTH)
    product_ = joint.double() * log_reward(sentences, sentences[:, 0]).double().exp().view_as(joint)
    return product_ / product_.sum(), float(product_.sum().log())


def conditionals(joint: Tensor) -> Tensor:
    """log P(symbol of a position | the symbols seen) for every state [STATES, LENGTH, SYMBOLS]. Every sentence must
    have a probability above 0.

    A mask is one more symbol, whose probability is the sum over the others: so the probability of what is seen in any
    state is an entry of one table of 5^6.
    """
    seen = joint.double()
    for axis in range(LENGTH):
        seen = torch.cat([seen, seen.sum(dim=axis, keepdim=True)], dim=axis)
    flat, states = seen.flatten(), all_states()
    found = []
    for position in range(LENGTH):
        empty = number_of(states) - states[:, position] * BASE ** (LENGTH - 1 - position)
        found.append(torch.stack([flat[empty + s * BASE ** (LENGTH - 1 - position)] for s in range(SYMBOLS)], dim=1))
    table = torch.stack(found, dim=1)
    return (table / table.sum(dim=2, keepdim=True)).clamp(min=1e-12).log().float()


def all_states() -> Tensor:
    """[STATES, LENGTH], in the order of `number_of`."""
    return torch.cartesian_prod(*[torch.arange(BASE)] * LENGTH)


def number_of(states: Tensor) -> Tensor:
    """States [B, LENGTH] read as digits to the base BASE: [B]."""
    return states @ BASE ** torch.arange(LENGTH - 1, -1, -1)


def looked_up(table: Tensor) -> Predict:
    return lambda states: table[number_of(states)]


# The chain


@dataclass(frozen=True)
class Masked:
    """trainer.methods.rtb.Chains: two denoisers in one chain of masked diffusion. They predict log-probabilities
    [B, LENGTH, SYMBOLS]; which positions are uncovered is as likely under both, and cancels in log-ratios."""

    prior: Predict
    posterior: Predict
    log_reward: LogReward
    uncovered: int  # positions a step, a divisor of LENGTH
    log_variance: Tensor = torch.zeros(0)  # symbols have none
    groups: int = 1

    @property
    def steps(self) -> int:
        return LENGTH // self.uncovered

    def start(self, like: Tensor, rng: Draws) -> Tensor:
        return torch.full_like(like, MASK)

    def clean(self, i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.prior(x), self.posterior(x)

    def prior_step(self, i: int, x: Tensor, prior: Tensor, rng: Draws) -> Tensor:
        return self.own_step(i, x, prior, rng, 1.0)

    def own_step(self, i: int, x: Tensor, posterior: Tensor, rng: Draws, widened: float) -> Tensor:
        """Symbols at the temperature `widened`."""
        number = rng.uniform(x.numel()).view(*x.shape, 1)
        below = (posterior / widened).softmax(dim=2).cumsum(dim=2) <= number
        symbols = below.sum(dim=2).clamp(max=SYMBOLS - 1)
        order = torch.where(x == MASK, rng.uniform(x.numel()).view_as(x), 2.0)  # what is seen comes last
        chosen = order.argsort(dim=1)[:, : self.uncovered]
        return x.scatter(1, chosen, symbols.gather(1, chosen))

    def ratio(self, i: int, x: Tensor, following: Tensor, prior: Tensor, posterior: Tensor) -> Tensor:
        """log of the posterior's probability of the new symbols over the prior's [B]."""
        symbols = following.clamp(max=SYMBOLS - 1)[:, :, None]
        gap = (posterior - prior).gather(2, symbols)[:, :, 0]
        return torch.where(x != following, gap, torch.zeros_like(gap)).sum(dim=1)

    def step_ratio(self, i: int, x: Tensor, following: Tensor, prior: Tensor, y: Tensor) -> Tensor:
        return self.ratio(i, x, following, prior, self.posterior(x))

    def image(self, last: Tensor, y: Tensor) -> Tensor:
        return last

    def noised_back(self, images: Tensor, rng: Draws) -> list[Tensor]:
        return self.renoised(images, rng)

    def renoised(self, last: Tensor, rng: Draws) -> list[Tensor]:
        """Sentences masked in a random order."""
        place = rng.uniform(last.numel()).view_as(last).argsort(dim=1).argsort(dim=1)
        return [torch.where(place < i * self.uncovered, last, MASK) for i in range(self.steps + 1)]


class Filler(nn.Module):
    """The posterior's denoiser: the prior's log-probabilities and a perceptron's correction, 0 at first."""

    def __init__(self, prior: Predict, width: int = 64) -> None:
        super().__init__()
        self.prior = prior
        last = nn.Linear(width, LENGTH * SYMBOLS)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Linear(LENGTH * BASE, width), nn.SiLU(), nn.Linear(width, width),
                                  nn.SiLU(), last)  # fmt: skip

    def forward(self, states: Tensor) -> Tensor:
        told = nn.functional.one_hot(states, BASE).float().flatten(1)
        return (self.prior(states) + self.body(told).view(-1, LENGTH, SYMBOLS)).log_softmax(dim=2)


@torch.no_grad()
def law(predict: Predict, uncovered: int, prior: Predict | None = None) -> tuple[Tensor, float]:
    """The probability of every sentence [4, ..., 4] under a chain, and the expected sum of its steps' divergences from
    those of `prior` (0 without one), by a sum over all states."""
    table = predict(states := all_states()).double().exp()
    before = table if prior is None else prior(states).double().exp()
    hidden = (states == MASK).sum(dim=1)
    divergence = ((table * (table / before).log()).sum(dim=2) * (states == MASK)).sum(dim=1)
    mass, total = torch.zeros(STATES, dtype=torch.float64), 0.0
    mass[-1] = 1.0  # everything masked
    for left in range(LENGTH, 0, -uncovered):
        total += float((mass * divergence * uncovered / left).sum())
        following = torch.zeros_like(mass)
        for positions in combinations(range(LENGTH), uncovered):
            rows = ((states[:, positions] == MASK).all(dim=1) & (hidden == left)).nonzero()[:, 0]
            share = mass[rows] / math.comb(left, uncovered)
            for symbols in product(range(SYMBOLS), repeat=uncovered):
                pairs = list(zip(positions, symbols, strict=True))
                moved = sum((symbol - MASK) * BASE ** (LENGTH - 1 - at) for at, symbol in pairs)
                chance = torch.stack([table[rows, at, symbol] for at, symbol in pairs]).prod(dim=0)
                following.index_add_(0, rows + moved, share * chance)
        mass = following
    return mass[hidden == 0].view((SYMBOLS,) * LENGTH), total


def variation(one: Tensor, other: Tensor) -> float:
    """Total variation of two laws, in [0, 1]."""
    return float((one - other).abs().sum() / 2)


# The comparison


@dataclass(frozen=True)
class Task:
    name: str
    log_reward: LogReward
    uncovered: int
    prior: Predict
    chain_law: Tensor  # of the prior's chain
    target: Tensor  # its posterior
    log_z: float
    language_target: Tensor

    def problem(self, posterior: Predict) -> Masked:
        return Masked(self.prior, posterior, self.log_reward, self.uncovered)

    def judged(self, posterior: Predict, seed: int) -> dict[str, float]:
        made, divergence = law(posterior, self.uncovered, self.prior)
        sentences = torch.cartesian_prod(*[torch.arange(SYMBOLS)] * LENGTH)
        expected = float((made.flatten() * self.log_reward(sentences, sentences[:, 0])).sum())
        like, y = torch.empty(2000, LENGTH, dtype=torch.long), torch.zeros(2000, dtype=torch.long)
        numbers = evaluate(self.problem(posterior), like, y, 1.0, seeded(seed))
        return {
            "tv": variation(made, self.target), "tv_language": variation(made, self.language_target),
            "log_z_error": abs(numbers["log_z"] - self.log_z),
            "gap": self.log_z - (expected - divergence), "ess": numbers["ess"],
        }  # fmt: skip


def make_task(name: str, uncovered: int) -> Task:
    log_reward, prior = rewards()[name], looked_up(conditionals(language()))
    chain_law, _ = law(prior, uncovered)
    target, log_z = tilted(chain_law, log_reward)
    return Task(name, log_reward, uncovered, prior, chain_law, target, log_z, tilted(language(), log_reward)[0])


def trained(task: Task, config: PosteriorConfig, updates: int, batch: int, seed: int) -> Filler:
    """`noised_back`, where the mix has it, is of sentences of the language."""
    torch.manual_seed(seed)
    network, rng = Filler(task.prior), seeded(100 + seed)
    method = TrajectoryBalance(task.problem(network), network, config, torch.empty(LENGTH, dtype=torch.long))
    chances = language().flatten()
    for update in range(updates):
        rows = torch.multinomial(chances, batch, replacement=True, generator=rng.generator)
        sentences = torch.stack(torch.unravel_index(rows, (SYMBOLS,) * LENGTH), dim=1)
        method.update(sentences, torch.zeros(batch, dtype=torch.long), update / updates, rng)
    return network.requires_grad_(False)


def divisor(text: str) -> int:
    """argparse's type of --uncovered."""
    value = whole(1, LENGTH)(text)
    if LENGTH % value:
        raise argparse.ArgumentTypeError(f"a step cannot uncover {value} of {LENGTH} positions: give 1, 2, 3 or 6")
    return value


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    began, rows = time.monotonic(), []
    config = PosteriorConfig(adam=replace(PosteriorConfig().adam, lr=args.lr))
    tasks: list[tuple[str, int]] = [(name, uncovered) for name in rewards() for uncovered in args.uncovered]
    for name, uncovered in tasks:
        task = make_task(name, uncovered)
        found = {
            "prior": [task.judged(task.prior, 0)],
            "exact conditionals": [task.judged(looked_up(conditionals(task.target)), 0)],
        }
        for method, chosen in (("RTB", config), ("RTB, mixed behaviours", replace(config, mix=MIXED))):
            runs = [trained(task, chosen, args.updates, args.batch, seed) for seed in range(args.seeds)]
            found[method] = [task.judged(network, 200 + seed) for seed, network in enumerate(runs)]
        rows += [
            {"reward": name, "uncovered": uncovered, "method": method, "log_z": task.log_z, **summary(runs)}
            for method, runs in found.items()
        ]
        said(f"{name}, {uncovered} uncovered a step: TV {found['RTB'][0]['tv']:.3f}", began)
        write_rows(args, "posterior_language", rows)
    end(args.out, with_deviations(rows, COLUMNS))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--uncovered",
        nargs="+",
        type=divisor,
        default=[1, 2],
        help="positions that a step uncovers, divisors of six (default 1 2)",
    )
    add("--seeds", type=whole(1), default=3, help="runs of each training, with seeds from 0 (default %(default)s)")
    add("--updates", type=whole(1), default=400, help="of trajectory balance (default %(default)s)")
    add("--batch", type=whole(2), default=128, help="sentences per update (default %(default)s)")
    add("--lr", type=number(POSITIVE), default=5e-3, help="of trajectory balance (default %(default)s)")
    args = parsed(parser, "posterior-language")
    if args.smoke:
        args.seeds, args.updates, args.batch = 1, 3, 16
    return args


if __name__ == "__main__":
    main()
