"""Every setting of training: frozen values, their defaults and their ranges. Without torch, so that `--help` is quick.

What stands under a field is the help of its flag (fewstep.command_line); the range of its annotation is checked when a
configuration is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args

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
Split = Literal["train", "test"]  # of a data set's images
SPLITS: tuple[Split, ...] = get_args(Split)
Half = Literal["a", "b"]  # of its training images
HALVES: tuple[Half, ...] = get_args(Half)
WIDEST = 0.28  # largest width of an average (trainer.run.ema): a uniform mean over the whole run has 1 / sqrt(12)
RATE = Range(0, 1, above=True)
BELOW_ONE = Range(0, 0.999)
STEPS = Range(1, MAX_STEPS, whole=True)
LEVEL = Range(0, 10_000, above=True)
WIDTH = Range(0, WIDEST, above=True)
COARSE = Range(0, 1)


class MachineError(ValueError):
    """This machine or its environment lacks what was asked for; the message says what to do."""


@dataclass(frozen=True)
class AdamConfig:
    lr: Annotated[float, RATE] = 1e-3
    betas: Annotated[tuple[float, float], Range(0, 0.99999)] = (0.9, 0.999)
    warmup: Annotated[float, SHARE] = 0.02  # fraction of the run over which the rate rises
    decay_from: Annotated[float, SHARE] = 0.0  # fraction of the run after which it falls, linearly
    final: Annotated[float, SHARE] = 1.0  # the rate at the end, as a fraction of `lr`
    clip: Annotated[float, POSITIVE] = 10.0  # largest gradient norm

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class NoiseDistribution:
    """ln sigma ~ N(mean, std^2)."""

    mean: Annotated[float, Range(-10, 10)] = -1.2
    std: Annotated[float, Range(0, 10)] = 1.2

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class TeacherConfig:
    noise: NoiseDistribution = NoiseDistribution()
    adam: AdamConfig = AdamConfig(lr=1e-3, betas=(0.9, 0.99), final=0.02)
    ema_width: Annotated[float, WIDTH] = 0.06  # width of the average that is served (trainer.run.ema)
    label_dropout: Annotated[float, BELOW_ONE] = 0.0
    """Share of the images whose class the teacher is not told: 0.1 for guidance."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class BehaviourMix:
    """Whose trajectories a posterior is trained on, as shares of the updates that sum to 1. Balance may be asked of any
    trajectory, so all of them are right; they differ in what is learned first."""

    on_policy: Annotated[float, SHARE] = 1.0  # the posterior's own
    explore: Annotated[float, SHARE] = 0.0  # its own, with wider steps
    replay: Annotated[float, SHARE] = 0.0  # ends of earlier ones, noised back along another path
    noised_back: Annotated[float, SHARE] = 0.0  # data, noised back
    prior: Annotated[float, SHARE] = 0.0  # the prior's

    def __post_init__(self) -> None:
        check_ranges(self)
        total = self.on_policy + self.explore + self.replay + self.noised_back + self.prior
        if abs(total - 1) > 1e-6:
            raise RangeError(f"the shares of --mix must sum to 1, not {total:g}")


@dataclass(frozen=True)
class PosteriorConfig:
    """The switches of relative trajectory balance (trainer.methods.rtb)."""

    mix: BehaviourMix = BehaviourMix()
    """Shares of the behaviours on_policy, explore, replay, noised_back and prior; they sum to 1."""
    log_z: Literal["vargrad", "learned"] = "vargrad"
    """log Z: of the batch, or a parameter that is learned."""
    log_z_lr: Annotated[float, RATE] = 0.05
    beta: Annotated[float, POSITIVE] = 1.0
    """The target is prior x r^beta."""
    beta_start: Annotated[float, POSITIVE] = 1.0
    """beta at the start of the run (default: --beta)."""
    beta_until: Annotated[float, SHARE] = 0.0
    """Share of the run over which beta rises, linearly."""
    explore_noise: Annotated[float, SHARE] = 0.1  # steps of exploration are wider by this share, falling to 0
    explore_until: Annotated[float, SHARE] = 0.8  # at this share of the run
    replay_size: Annotated[int, COUNT] = 4096  # trajectory ends that are kept
    replay_from: Annotated[float, SHARE] = 0.3  # of the run; replayed updates before are on-policy
    replay_power: Annotated[float, Range(0, 10)] = 0.0  # ends are drawn in proportion to r^this
    levels: Annotated[int | None, COUNT] = None
    """Take the gradient of so many steps of the chain, drawn anew in every update (default: all)."""
    dead_zone: Annotated[float, Range(0, 1000)] = 0.0
    """Trajectories with a smaller squared residual are left alone."""
    clip: Annotated[float, POSITIVE] = 3.0
    """Largest residual, in units of their root mean square."""
    learn_variance: bool = True  # one factor on the variance of every step
    adam: AdamConfig = AdamConfig(2e-3, (0.9, 0.99), warmup=0.05, decay_from=0.6, final=0.05, clip=1.0)
    ema_width: Annotated[float, WIDTH] = 0.05

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class AdversaryConfig:
    """The adversarial term of DMD2."""

    # Weight of this term relative to the divergence, both as means over pixels; DMD2 uses 3e-3, and 0 turns it off.
    weight: Annotated[float, Range(0, 1000)] = 0.0
    noise: NoiseDistribution = NoiseDistribution(-0.5, 1.2)  # levels at which real images and outputs are compared
    adam: AdamConfig = AdamConfig(5e-4, (0.0, 0.999), decay_from=0.4, final=0.05)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class StudentConfig:
    """The switches of DPDM. docs/adr/0003 and 0012 explain the defaults."""

    renoise: Rule = "hybrid"
    """Levels to which outputs are noised."""
    steps: Annotated[tuple[int, ...], STEPS] = tuple(range(1, MAX_STEPS + 1))  # whose levels are trained and served
    sigma_min: Annotated[float, POSITIVE] = 0.01  # lowest of the Karras levels that each list is taken from
    sigma_max: Annotated[float, LEVEL] = 2.5
    """The student's top level, whose input is pure noise; 80 in the paper."""
    lists: Lists = ()  # the level list of each of `steps`, where they are not Karras'
    # Lowest level to which outputs are noised. Below it the errors of the two score networks dominate.
    floor: Annotated[float, POSITIVE] = 0.05
    top: Annotated[float, BELOW_ONE] = 0.3
    """Share of each longer list's draws spent on its top level."""
    loss: Literal["kl", "sid"] = "kl"
    """Divergence between outputs and data: KL (DPDM) or Fisher (SiD)."""
    alpha: Annotated[float, Range(0, 10)] = 1.0
    """Of the SiD loss: 0.5, 1.0 or 1.2."""
    weight: Weight = "l1"
    """Normalise the gradient by the teacher's error, or not."""
    objective: Objective = "marginal"
    """What outputs are matched to: p(x0), or p(x0 | x_t)."""
    auxiliary_sees_level: bool = True
    """The level of the student's input is an input of the auxiliary, or not."""
    auxiliary_updates: Annotated[int, Range(1, 1000, whole=True)] = 1
    """Updates of the auxiliary per student update."""
    auxiliary_first: Annotated[float, SHARE] = 0.0
    """Share of the run, at its start, in which only the auxiliary is trained."""
    simulate: Annotated[float, SHARE] = 0.0
    """Share of updates whose input is the student's own trajectory."""
    simulate_from: Annotated[float, SHARE] = 0.5  # early trajectories are poor inputs
    """Share of the run before the first of them."""
    warm: Annotated[float, SHARE] = 0.0
    """Share of the run, at its start, in which the top level regresses on stored teacher endpoints."""
    warm_pairs: Annotated[int, COUNT] = 4096
    """Endpoints to store for --warm."""
    coarse: Annotated[float, COARSE] = 0.0
    """The coarse part of outputs is drawn to that of the teacher's: means under windows so wide that noise of the level
    moves them by at most this, such as 0.05 (images reach from -1 to 1); 0: it is not."""
    lognormal: NoiseDistribution = NoiseDistribution()  # of the rules lognormal and hybrid
    guidance_max: Annotated[float, Range(1, 100)] = 1.0
    """The student takes a guidance weight of each request, from 1 to this; 1: it takes none."""
    adversary: AdversaryConfig = AdversaryConfig()  # of `--method dmd2` alone
    adam: AdamConfig = AdamConfig(5e-5, (0.0, 0.999), decay_from=0.4, final=0.05)
    # The auxiliary must follow a changing student: with equal rates it lags, and the outputs oscillate (ADR 0003).
    auxiliary_adam: AdamConfig = AdamConfig(5e-4, (0.0, 0.999), decay_from=0.4, final=0.05)
    ema_width: Annotated[float, WIDTH] = 0.15  # student and auxiliary oscillate slowly (docs/log.md, averages)

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_top(self)

    @property
    def level_lists(self) -> dict[int, tuple[float, ...]]:
        """The level list of every step count. It is trained, and served until the levels are calibrated."""
        lists = self.lists or served_lists(self.steps, self.sigma_min, self.sigma_max)
        return dict(zip(self.steps, lists, strict=True))


@dataclass(frozen=True)
class ConsistencyConfig:
    """The switches of consistency distillation. N and the solver are the paper's for CIFAR-10 (Appendix C)."""

    intervals: Annotated[int, Range(1, 10_000, whole=True)] = 18
    """Intervals of the teacher's ODE: Karras levels above the final zero."""
    sigma_min: Annotated[float, POSITIVE] = SIGMA_MIN
    sigma_max: Annotated[float, LEVEL] = SIGMA_MAX
    solver: Solver = "heun"
    """Of the teacher's ODE over one interval."""
    metric: Metric = "pseudo-huber"
    """Distance of outputs and targets."""
    # One over the width of the interval (Song & Dhariwal 2024), or 1 as in the paper, whose runs are a thousand times
    # longer than a CPU's: in a short run with weight 1 the student drifts away from the ends of the teacher's ODE.
    weight: Literal["inverse", "constant"] = "inverse"
    target_halflife: Annotated[float, Range(0)] = 0.0
    """Images, of the average that makes the targets; 0: the student itself."""
    steps: Annotated[tuple[int, ...], STEPS] = tuple(range(1, MAX_STEPS + 1))  # step counts served
    adam: AdamConfig = AdamConfig(4e-4, (0.9, 0.999), decay_from=0.4, final=0.05, clip=100.0)  # norms are about 50
    ema_width: Annotated[float, WIDTH] = 0.06

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_top(self)


@dataclass(frozen=True)
class ProgressiveConfig:
    """The switches of progressive distillation. docs/log.md (self-distillation) explains the defaults."""

    further: Annotated[tuple[float, ...], POSITIVE] = (0.1, 0.05)
    """Levels of the further calls that every list's last call learns to replace, highest first: 0.1,0.05."""
    further_for: Annotated[int | None, Range(0, MAX_STEPS, whole=True)] = None
    """Only lists of up to so many calls learn it; longer lists are anchored (default: all learn). 0, which needs
    --coarse: none does."""
    # The error is taken after clipping, because images are clipped in the end. docs/log.md, saturated targets
    saturate: Annotated[float, SHARE] = 0.0
    """Targets this close to black or white (-1, 1) are set to it; 0: they stay as they are."""
    coarse: Annotated[float, COARSE] = 0.0  # the targets' coarse part is the teacher's
    top: Annotated[float, BELOW_ONE] = 0.65  # share of each longer list's updates spent on its top level
    anchor_weight: Annotated[float, POSITIVE] = 1.0  # weight of the updates that keep a level as it is
    simulate: Annotated[float, SHARE] = 0.0  # of the updates below the top: input is the student's own trajectory
    lists: Lists = ()  # the lists that `start` and the result serve, ascending in length
    adam: AdamConfig = AdamConfig(2e-4, (0.9, 0.99), decay_from=0.3, final=0.05)
    ema_width: Annotated[float, WIDTH] = 0.15

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class AdversarialConfig:
    """The switches of adversarial continuation. docs/log.md (critics on classifiers) explains the defaults."""

    lists: Lists = ()  # the level lists of `start` that are trained, ascending in length
    # "first": the list of one call, while all lower levels are anchored. docs/log.md, one call against critics
    trained_steps: TrainedSteps = "all"
    """All calls; the first where it is the only one (others are anchored); or the rest (the first is anchored)."""
    clip: bool = False
    """Critics see the last outputs of a list clipped to [-1, 1], as viewers do, or not."""
    # Rows of a batch at a list's second step, as a fraction of those at its first; and so on.
    fall: Annotated[float, RATE] = 0.5
    # Share of the rows below the first step whose input is the student's own trajectory.
    simulate: Annotated[float, SHARE] = 0.5
    # A last output is noised to between once and this many times the classifiers' lowest level.
    spread: Annotated[float, Range(1, 10_000)] = 10.0
    first: Annotated[float, SHARE] = 0.1  # fraction of the run, at its start, in which only the critics are trained
    # In updates without critics the student imitates `start`. With trained_steps "all", half of them self-distil the
    # list of one call (its output learns what `start` makes of it with a further call at `self_distill_level`), and
    # half anchor the lower levels of all lists but the longest. With "rest" the first half anchors the top level; with
    # "first" all of them anchor the lower levels of all lists.
    imitation_share: Annotated[float, BELOW_ONE] = 0.4
    """Share of updates without critics, which self-distil or anchor calls of --init."""
    imitation_weight: Annotated[float, POSITIVE] = 0.05  # weight of the loss of these updates
    self_distill_level: Annotated[float, POSITIVE] = 0.05  # level of the further call (docs/log.md, self-distillation)
    # Unit of the error of self-distillation and of the anchored top level: how far a call at `self_distill_level` moves
    # a pixel. The unit of the lower levels is the error of `start` on noised images.
    self_distill_unit: Annotated[float, POSITIVE] = 0.04
    adam: AdamConfig = AdamConfig(4e-6, (0.9, 0.99), warmup=0.02, decay_from=0.3, final=0.1, clip=1.0)
    critic_adam: AdamConfig = AdamConfig(1e-3, (0.5, 0.99), warmup=0.0)
    # Under critics the student oscillates over longer times than a short average covers.
    ema_width: Annotated[float, WIDTH] = 0.2

    def __post_init__(self) -> None:
        check_ranges(self)


# Settings that earlier runs do not have, and what they mean there. They are left out of what a run is known by while
# they say that, so that earlier runs go on.
LATER = {"coarse": 0.0, "label_dropout": 0.0, "guidance_max": 1.0, "lognormal": NoiseDistribution()}


def stored_settings(settings: Any) -> dict[str, Any]:
    """A configuration of this file as a run stores it."""
    return {
        name: value for name, value in asdict(settings).items()
        if name not in LATER or getattr(settings, name) != LATER[name]
    }  # fmt: skip


def _check_top(config: StudentConfig | ConsistencyConfig) -> None:
    check_range("--sigma-max", config.sigma_max, Range(config.sigma_min, LEVEL.high, above=True))


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
