"""Every setting of training: frozen values and their defaults. Without torch, so that `--help` is quick."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fewstep.ranges import COUNT, POSITIVE, SHARE, Range, RangeError, check_range, check_ranges
from fewstep.schedule import MAX_STEPS, SIGMA_MAX, SIGMA_MIN, student_levels

MethodName = Literal["dpdm", "tied", "diff-instruct", "dmd2", "consistency", "progressive", "adversarial"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
Rule = Literal["tied", "independent", "lognormal", "subinterval", "hybrid"]
RULES: tuple[Rule, ...] = get_args(Rule)
Weight = Literal["l1", "one"]
Objective = Literal["marginal", "ncvsd"]
Solver = Literal["heun", "euler"]
Metric = Literal["pseudo-huber", "l2"]
TrainedSteps = Literal["all", "first", "rest"]
Lists = tuple[tuple[float, ...], ...]
WIDEST = 0.28  # largest width of an average (trainer.run.ema): a uniform mean over the whole run has 1 / sqrt(12)
RATE = Range(0, 1, above=True)
BELOW_ONE = Range(0, 0.999)


class MachineError(ValueError):
    """This machine or its environment lacks what was asked for; the message says what to do."""


@dataclass(frozen=True)
class AdamConfig:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.02  # fraction of the run over which the rate rises
    decay_from: float = 0.0  # fraction of the run after which it falls, linearly
    final: float = 1.0  # the rate at the end, as a fraction of `lr`
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
    ema_width: float = 0.06  # width of the average that is served (trainer.run.ema)

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
class DistilConfig:
    """How a posterior's chain becomes a student (trainer.posterior_distil). The comments are the command's help."""

    student: Path | None = None  # a student of the prior from which its student starts; default: the teacher
    pool: int = 4096  # images of the chain that it learns from (default 4096)
    weighted: bool = False  # draw them by their importance weights
    consolidate: int = 400  # updates of the teacher of all levels, or of the one network (default 400)
    updates: int = 1000  # updates of the student (default 1000)
    lr: float = 2e-3  # of the adapters of teacher and auxiliary; the student's is a quarter
    adam: AdamConfig = AdamConfig(2e-3, (0.9, 0.99), warmup=0.05, decay_from=0.5, final=0.02, clip=1.0)

    def __post_init__(self) -> None:
        check_ranges(self, pool=Range(2, 10**6, whole=True), consolidate=COUNT, updates=COUNT, lr=RATE)


@dataclass(frozen=True)
class AdversaryConfig:
    """The adversarial term of DMD2."""

    # Weight of this term relative to the divergence, both as means over pixels; DMD2 uses 3e-3, and 0 turns it off.
    weight: float = 0.0
    noise: NoiseDistribution = NoiseDistribution(-0.5, 1.2)  # levels at which real images and outputs are compared
    adam: AdamConfig = AdamConfig(5e-4, (0.0, 0.999), decay_from=0.4, final=0.05)

    def __post_init__(self) -> None:
        check_ranges(self, weight=Range(0, 1000))


@dataclass(frozen=True)
class StudentConfig:
    """The switches of DPDM. docs/adr/0003, 0009 and 0012 explain the defaults."""

    renoise: Rule = "hybrid"
    steps: tuple[int, ...] = tuple(range(1, MAX_STEPS + 1))  # step counts whose levels are trained and served
    sigma_min: float = 0.01  # lowest of the Karras levels that each list is taken from
    sigma_max: float = 2.5  # the top level, whose input is pure noise (Diff-Instruct); 80 in the paper
    lists: tuple[tuple[float, ...], ...] = ()  # the level list of each of `steps`, where they are not Karras'
    # Lowest level to which outputs are noised. Below it the errors of the two score networks dominate.
    floor: float = 0.05
    top: float = 0.3  # share of each longer list's draws spent on its top level
    loss: Literal["kl", "sid"] = "kl"  # the divergence between outputs and data that is minimised
    alpha: float = 1.0  # of the SiD loss
    weight: Weight = "l1"
    objective: Objective = "marginal"  # what outputs are matched to: p(x0), or with "ncvsd" p(x0 | x_t)
    auxiliary_sees_level: bool = True  # the level of the student's input is an input of the auxiliary
    auxiliary_updates: int = 1  # per student update
    auxiliary_first: float = 0.0  # fraction of the run, at its start, in which only the auxiliary is trained
    simulate: float = 0.0  # share of updates whose input is the student's own trajectory
    simulate_from: float = 0.5  # fraction of the run before the first of them: early trajectories are poor inputs
    warm: float = 0.0  # fraction of the run, at its start, in which the top level regresses on teacher endpoints
    warm_pairs: int = 4096
    adversary: AdversaryConfig = AdversaryConfig()  # of `--method dmd2` alone
    adam: AdamConfig = AdamConfig(5e-5, (0.0, 0.999), decay_from=0.4, final=0.05)
    # The auxiliary must follow a changing student: with equal rates it lags, and the outputs oscillate (ADR 0003).
    auxiliary_adam: AdamConfig = AdamConfig(5e-4, (0.0, 0.999), decay_from=0.4, final=0.05)
    ema_width: float = 0.15  # student and auxiliary oscillate slowly (docs/log.md, averages)

    def __post_init__(self) -> None:
        _check_average(self)
        _check_steps(self)
        check_ranges(self, alpha=Range(0, 10), auxiliary_updates=Range(1, 1000, whole=True), warm_pairs=COUNT)
        check_ranges(self, auxiliary_first=SHARE, simulate=SHARE, simulate_from=SHARE, warm=SHARE, top=BELOW_ONE)
        check_ranges(self, floor=POSITIVE)

    @property
    def level_lists(self) -> dict[int, tuple[float, ...]]:
        """The level list of every step count. It is trained, and served until the levels are calibrated."""
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
    # longer than a CPU's: in a short run with weight 1 the student drifts away from the ends of the teacher's ODE.
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
    """The switches of progressive distillation. docs/log.md (self-distillation) explains the defaults."""

    further: tuple[float, ...] = (0.1, 0.05)  # levels of the further calls that a list's last call learns to replace
    # Only lists of up to this many calls learn it; longer lists are anchored. None: all lists learn.
    further_for: int | None = None
    # Pixels of a target within this margin of black or white (-1, 1) are set to black or white, and the error is taken
    # after clipping, because images are clipped in the end. 0: targets stay as they are. docs/log.md, saturated targets
    saturate: float = 0.0
    top: float = 0.65  # share of each longer list's updates spent on its top level
    anchor_weight: float = 1.0  # weight of the updates that keep a level as it is
    simulate: float = 0.0  # share of the updates below the top whose input is the student's own trajectory
    lists: tuple[tuple[float, ...], ...] = ()  # the lists that `start` and the result serve, ascending in length
    adam: AdamConfig = AdamConfig(2e-4, (0.9, 0.99), decay_from=0.3, final=0.05)
    ema_width: float = 0.15

    def __post_init__(self) -> None:
        _check_average(self)
        check_ranges(self, further=POSITIVE, further_for=Range(1, MAX_STEPS, whole=True), anchor_weight=POSITIVE)
        check_ranges(self, saturate=SHARE, top=BELOW_ONE, simulate=SHARE)


@dataclass(frozen=True)
class AdversarialConfig:
    """The switches of adversarial continuation. docs/log.md (critics on classifiers) explains the defaults."""

    lists: Lists = ()  # the level lists of `start` that are trained, ascending in length
    # Which calls are trained against the critics: all; the first one of the list of one call, while all lower levels
    # are anchored; or all but the first, while the top level is anchored. docs/log.md, one call against critics
    trained_steps: TrainedSteps = "all"
    clip: bool = False  # critics see the last outputs of a list clipped to [-1, 1], as viewers do
    fall: float = 0.5  # rows of a batch at a list's second step, as a fraction of those at its first; and so on
    simulate: float = 0.5  # share of the rows below the first step whose input is the student's own trajectory
    spread: float = 10.0  # a last output is noised to between once and this many times the classifiers' lowest level
    first: float = 0.1  # fraction of the run, at its start, in which only the critics are trained
    # Share of the updates without critics, in which the student imitates `start`. With trained_steps "all", half of
    # them self-distil the list of one call (its output learns what `start` makes of it with a further call at
    # `self_distill_level`), and half anchor the lower levels of all lists but the longest. With "rest" the first half
    # anchors the top level; with "first" all of them anchor the lower levels of all lists.
    imitation_share: float = 0.4
    imitation_weight: float = 0.05  # weight of the loss of these updates
    self_distill_level: float = 0.05  # level of the further call (docs/log.md, self-distillation)
    # Unit of the error of self-distillation and of the anchored top level: how far a call at `self_distill_level` moves
    # a pixel. The unit of the lower levels is the error of `start` on noised images.
    self_distill_unit: float = 0.04
    adam: AdamConfig = AdamConfig(4e-6, (0.9, 0.99), warmup=0.02, decay_from=0.3, final=0.1, clip=1.0)
    critic_adam: AdamConfig = AdamConfig(1e-3, (0.5, 0.99), warmup=0.0)
    ema_width: float = 0.2  # under critics the student oscillates over longer times than a short average covers

    def __post_init__(self) -> None:
        _check_average(self)
        check_ranges(self, fall=Range(0, 1, above=True), simulate=SHARE, first=SHARE, imitation_share=BELOW_ONE)
        check_ranges(self, spread=Range(1, 10_000), imitation_weight=POSITIVE)
        check_ranges(self, self_distill_level=POSITIVE, self_distill_unit=POSITIVE)


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
    """The levels of the further calls in a target, for every level of the lists.

    There are none unless the level is the last of a list (of at most `longest` calls, if that is given). A further call
    is made only from a level at least 1.5 times as high: at nearly the same level it changes nothing.
    """
    last = {levels[-1] for levels in lists if longest is None or len(levels) <= longest}
    levels = {level for levels in lists for level in levels}
    return {level: tuple(f for f in further if 1.5 * f < level) if level in last else () for level in levels}


def seen_lists(lists: Sequence[Sequence[float]], lowest: float) -> Lists:
    """The lists whose last level the critics can see, ascending in length. Lower levels hardly change an image."""
    return tuple(sorted((tuple(levels) for levels in lists if levels[-1] >= lowest), key=len))
