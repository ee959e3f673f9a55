"""Every setting of training: frozen values and their defaults. Without torch, so that `--help` is quick."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fewstep.ranges import COUNT, POSITIVE, SHARE, Range, RangeError, check_range, check_ranges
from fewstep.schedule import MAX_STEPS, SIGMA_MAX, SIGMA_MIN, student_levels

MethodName = Literal["dpdm", "tied", "diff-instruct", "dmd2", "consistency", "progressive", "adversarial"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
Rule = Literal["tied", "independent", "lognormal", "subinterval", "hybrid"]
RULES: tuple[Rule, ...] = get_args(Rule)
Weight = Literal["l1", "one"]
Solver = Literal["heun", "euler"]
Metric = Literal["pseudo-huber", "l2"]
Play = Literal["all", "first", "rest"]
Lists = tuple[tuple[float, ...], ...]
WIDEST = 0.28  # of an average (trainer.run.ema): that of an even mean of everything is 1 / sqrt(12)
RATE = Range(0, 1, above=True)
BELOW_ONE = Range(0, 0.999)


class MachineError(ValueError):
    """What this machine or its environment does not offer; the message says what to do."""


@dataclass(frozen=True)
class AdamConfig:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.02  # fraction of the run over which the rate rises
    decay_from: float = 0.0  # fraction of the run after which it falls, linearly
    final: float = 1.0  # what is left of it at the end
    clip: float = 10.0  # largest gradient norm

    def __post_init__(self) -> None:
        check_ranges(self, lr=RATE, warmup=SHARE, decay_from=SHARE, final=SHARE, clip=POSITIVE)
        check_ranges(self, betas=Range(0, 0.99999))


@dataclass(frozen=True)
class NoiseDistribution:
    """ln sigma ~ N(mean, std^2)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        check_ranges(self, mean=Range(-10, 10), std=Range(0, 10))


@dataclass(frozen=True)
class TeacherConfig:
    noise: NoiseDistribution = NoiseDistribution()
    adam: AdamConfig = AdamConfig(lr=1e-3, betas=(0.9, 0.99), final=0.02)
    ema_width: float = 0.06  # of the average that is served (trainer.run.ema)

    def __post_init__(self) -> None:
        _check_average(self)


@dataclass(frozen=True)
class BehaviourMix:
    """Whose trajectories a posterior is trained on, as shares of the updates that sum to 1. Balance may be asked of any
    trajectory, so all of them are right; they differ in what is learned first."""

    on_policy: float = 1.0  # the posterior's own
    explore: float = 0.0  # its own, with wider steps
    replay: float = 0.0  # ends of earlier ones, noised back along another path
    noised_back: float = 0.0  # data, noised back
    prior: float = 0.0  # the prior's

    def __post_init__(self) -> None:
        check_ranges(self, on_policy=SHARE, explore=SHARE, replay=SHARE, noised_back=SHARE, prior=SHARE)
        total = self.on_policy + self.explore + self.replay + self.noised_back + self.prior
        if abs(total - 1) > 1e-6:
            raise RangeError(f"the shares of --mix must sum to 1, not {total:g}")


@dataclass(frozen=True)
class PosteriorConfig:
    """The switches of relative trajectory balance (trainer.methods.rtb)."""

    mix: BehaviourMix = BehaviourMix()
    log_z: Literal["vargrad", "learned"] = "vargrad"  # of the batch, or a parameter
    log_z_lr: float = 0.05
    beta: float = 1.0  # the target is prior x r^beta
    beta_start: float = 1.0  # beta rises from here, linearly,
    beta_until: float = 0.0  # until this share of the run
    explore_noise: float = 0.1  # steps of exploration are wider by this share, falling to 0
    explore_until: float = 0.8  # at this share of the run
    replay_size: int = 4096  # trajectory ends that are kept
    replay_from: float = 0.3  # of the run; replayed updates before are on-policy
    replay_power: float = 0.0  # ends are drawn in proportion to r^this
    levels: int | None = None  # steps of the chain whose gradient is taken, drawn anew in every update; None: all
    dead_zone: float = 0.0  # trajectories with a smaller squared residual are left alone
    clip: float = 3.0  # of residuals, in units of their root mean square
    learn_variance: bool = True  # one factor on the variance of every step
    adam: AdamConfig = AdamConfig(2e-3, (0.9, 0.99), warmup=0.05, decay_from=0.6, final=0.05, clip=1.0)
    ema_width: float = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, log_z_lr=RATE, beta=POSITIVE, beta_start=POSITIVE, beta_until=SHARE, explore_noise=SHARE)
        check_ranges(self, explore_until=SHARE, replay_size=COUNT, replay_from=SHARE, replay_power=Range(0, 10))
        check_ranges(self, levels=COUNT, dead_zone=Range(0, 1000), clip=POSITIVE)
        check_ranges(self, ema_width=Range(0, WIDEST, above=True))


@dataclass(frozen=True)
class AdversaryConfig:
    """The adversarial term of DMD2."""

    weight: float = 0.0  # against the divergence, both as means over pixels; DMD2 takes 3e-3, 0 switches it off
    noise: NoiseDistribution = NoiseDistribution(-0.5, 1.2)  # where both sides are compared
    adam: AdamConfig = AdamConfig(5e-4, (0.0, 0.999), decay_from=0.4, final=0.05)

    def __post_init__(self) -> None:
        check_ranges(self, weight=Range(0, 1000))


@dataclass(frozen=True)
class StudentConfig:
    """The switches of DPDM. docs/adr/0003, 0009 and 0012 say how the defaults were chosen."""

    renoise: Rule = "hybrid"
    steps: tuple[int, ...] = tuple(range(1, MAX_STEPS + 1))  # step counts whose levels are trained and served
    sigma_min: float = 0.01  # of the Karras levels behind each list
    sigma_max: float = 2.5  # the top level, where pure noise goes in (Diff-Instruct); 80 in the paper
    lists: tuple[tuple[float, ...], ...] = ()  # the level list of each of `steps`, where they are not Karras'
    floor: float = 0.05  # lowest level at which outputs are judged; below, the judges' own error dominates
    top: float = 0.3  # share of each longer list's draws spent on its top level
    loss: Literal["kl", "sid"] = "kl"  # the divergence that pulls outputs to the data
    alpha: float = 1.0  # of the SiD loss
    weight: Weight = "l1"
    objective: Literal["marginal", "posterior"] = "marginal"  # what outputs are matched to: p(x0), or p(x0 | x_t)
    auxiliary_sees_level: bool = True  # tell the auxiliary which level the student was fed
    auxiliary_updates: int = 1  # per student update
    auxiliary_first: float = 0.0  # fraction of the run in which only the auxiliary learns, to catch up with `start`
    simulate: float = 0.0  # share of updates fed from the student's own trajectory
    simulate_from: float = 0.5  # and after which fraction of the run: early trajectories are not worth learning from
    warm: float = 0.0  # fraction of the run in which the top level regresses on stored teacher endpoints
    warm_pairs: int = 4096
    adversary: AdversaryConfig = AdversaryConfig()  # of `--method dmd2` alone
    adam: AdamConfig = AdamConfig(5e-5, (0.0, 0.999), decay_from=0.4, final=0.05)
    # The auxiliary has to follow a moving student: with equal rates it lags, and the outputs oscillate (ADR 0003).
    auxiliary_adam: AdamConfig = AdamConfig(5e-4, (0.0, 0.999), decay_from=0.4, final=0.05)
    ema_width: float = 0.15  # student and auxiliary go to and fro for long (docs/log.md, averages)

    def __post_init__(self) -> None:
        _check_average(self)
        _check_steps(self)
        check_ranges(self, alpha=Range(0, 10), auxiliary_updates=Range(1, 1000, whole=True), warm_pairs=COUNT)
        check_ranges(self, auxiliary_first=SHARE, simulate=SHARE, simulate_from=SHARE, warm=SHARE, top=BELOW_ONE)
        check_ranges(self, floor=POSITIVE)

    @property
    def level_lists(self) -> dict[int, tuple[float, ...]]:
        """The level list of every step count: what is trained and, until it is calibrated, what is served."""
        lists = self.lists or served_lists(self.steps, self.sigma_min, self.sigma_max)
        return dict(zip(self.steps, lists, strict=True))


@dataclass(frozen=True)
class ConsistencyConfig:
    """The switches of consistency distillation. N and the solver are the paper's for CIFAR-10 (Appendix C)."""

    intervals: int = 18  # N: Karras levels above the final zero
    sigma_min: float = SIGMA_MIN
    sigma_max: float = SIGMA_MAX
    solver: Solver = "heun"  # of the teacher's ODE over one interval
    metric: Metric = "pseudo-huber"
    # One over the width of the interval (Song & Dhariwal 2024), or 1 as in the paper, whose runs are a thousand times
    # longer than a CPU's: in a short one, 1 lets the student drift ever further from the ends of the teacher's ODE.
    weight: Literal["inverse", "constant"] = "inverse"
    target_halflife: float = 0.0  # images, of the average that makes the targets; 0: the student itself
    steps: tuple[int, ...] = tuple(range(1, MAX_STEPS + 1))  # step counts served
    adam: AdamConfig = AdamConfig(4e-4, (0.9, 0.999), decay_from=0.4, final=0.05, clip=100.0)  # norms are about 50
    ema_width: float = 0.06

    def __post_init__(self) -> None:
        _check_average(self)
        _check_steps(self)
        check_ranges(self, intervals=Range(1, 10_000, whole=True), target_halflife=Range(0))


@dataclass(frozen=True)
class ProgressiveConfig:
    """The switches of progressive distillation. docs/log.md (self-distillation) says how the defaults were chosen."""

    further: tuple[float, ...] = (0.1, 0.05)  # levels of the calls that a list's last call learns to do without
    # Only lists of up to so many calls learn to, and longer ones stay as they are; None: all lists learn.
    further_for: int | None = None
    # What further calls leave so close to black or white is to be that, and an output may lie beyond, since images are
    # clipped in the end. 0: as they leave it. docs/log.md, saturated targets
    saturate: float = 0.0
    top: float = 0.65  # share of each longer list's updates spent on its top level
    keep: float = 1.0  # weight of the levels that are to stay as they are
    simulate: float = 0.0  # share of the updates below the top that are fed the student's own trajectory
    lists: tuple[tuple[float, ...], ...] = ()  # what `start` serves, ascending in length, served by the result, too
    adam: AdamConfig = AdamConfig(2e-4, (0.9, 0.99), decay_from=0.3, final=0.05)
    ema_width: float = 0.15

    def __post_init__(self) -> None:
        _check_average(self)
        check_ranges(self, further=POSITIVE, further_for=Range(1, MAX_STEPS, whole=True), keep=POSITIVE)
        check_ranges(self, saturate=SHARE, top=BELOW_ONE, simulate=SHARE)


@dataclass(frozen=True)
class AdversarialConfig:
    """The switches of adversarial continuation. Defaults: docs/log.md, critics on classifiers."""

    lists: Lists = ()  # what is trained: level lists that `start` serves, ascending in length
    # Whose outputs critics judge: all calls'; the first's where it is the only one, while all lower levels are held; or
    # the rest's, while the top level is held. docs/log.md, one call against critics
    play: Play = "all"
    clip: bool = False  # critics see a list's last outputs as a viewer does, clipped
    fall: float = 0.5  # rows of a batch at a list's second step, of those at its first; and so on
    simulate: float = 0.5  # share of the rows below the first step that are fed the student's own trajectory
    spread: float = 10.0  # a final output is seen at the least noise that classifiers know, up to so many times that
    first: float = 0.1  # fraction of the run in which the critics alone learn
    # Share of the updates without critics. Half of them are for a list of one call, whose output learns what `start`
    # makes of it with a call at `mend` (docs/log.md, self-distillation), or, with `play` "rest", anchor the top level;
    # the others anchor the lower levels of all lists but the longest. With `play` "first" all of them anchor the lower
    # levels of all lists.
    keep: float = 0.4
    mend: float = 0.05
    weight: float = 0.05  # of those updates, in units of the error that `start` makes of noised images,
    mended: float = 0.04  # or of how far a call at `mend` moves a pixel
    adam: AdamConfig = AdamConfig(4e-6, (0.9, 0.99), warmup=0.02, decay_from=0.3, final=0.1, clip=1.0)
    critic_adam: AdamConfig = AdamConfig(1e-3, (0.5, 0.99), warmup=0.0)
    ema_width: float = 0.2  # critics push to and fro for longer than a short average reaches

    def __post_init__(self) -> None:
        _check_average(self)
        check_ranges(self, fall=Range(0, 1, above=True), simulate=SHARE, first=SHARE, keep=BELOW_ONE)
        check_ranges(self, spread=Range(1, 10_000), mend=POSITIVE, weight=POSITIVE, mended=POSITIVE)


def _check_average(config: TeacherConfig | StudentConfig | ConsistencyConfig | ProgressiveConfig | AdversarialConfig):
    check_ranges(config, ema_width=Range(0, WIDEST, above=True))


def _check_steps(config: StudentConfig | ConsistencyConfig) -> None:
    check_ranges(config, steps=Range(1, MAX_STEPS, whole=True), sigma_min=POSITIVE)
    check_range("--sigma-max", config.sigma_max, Range(config.sigma_min, 10_000, above=True))


def served_lists(steps: Sequence[int], sigma_min: float, sigma_max: float = SIGMA_MAX) -> tuple[tuple[float, ...], ...]:
    return tuple(student_levels(k, sigma_min, sigma_max) for k in steps)


def further_levels(
    lists: Sequence[Sequence[float]], further: Sequence[float], longest: int | None = None
) -> Mapping[float, tuple[float, ...]]:
    """For every level of the lists, the calls that follow it in a target: none, unless a list ends with it,
    of up to `longest` calls if that is given.

    A call follows only one that is clearly above it: 1.5 times, since a call at nearly the same level mends nothing.
    """
    last = {levels[-1] for levels in lists if longest is None or len(levels) <= longest}
    levels = {level for levels in lists for level in levels}
    return {level: tuple(f for f in further if 1.5 * f < level) if level in last else () for level in levels}


def seen_lists(lists: Sequence[Sequence[float]], lowest: float) -> Lists:
    """The lists, ascending in length, whose last level the critics can see. What lies below hardly changes an image."""
    return tuple(sorted((tuple(levels) for levels in lists if levels[-1] >= lowest), key=len))
